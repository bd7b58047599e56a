import keras
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.parameter_server.shard_variables import (
    find_slot_indices,
    make_variable,
)


def make_variables():
    # Two of one path, and one that no optimizer factors.
    return [
        make_variable("body/kernel", (2, 3), "float32"),
        make_variable("head/kernel", (3, 4), "float32"),
        make_variable("head/kernel", (4, 5), "float32"),
        make_variable("head/bias", (5,), "float32"),
    ]


@pytest.mark.parametrize(
    "optimizer_class",
    [
        keras.optimizers.SGD,
        keras.optimizers.Adam,
        keras.optimizers.Adafactor,
        keras.optimizers.Nadam,
        keras.optimizers.Muon,
    ],
)
def test_each_variable_of_a_part_has_the_shape_of_its_place_in_the_whole(optimizer_class):
    variables, shards = make_variables(), [[0, 2], [1, 3]]
    optimizer = optimizer_class(0.1)
    config = optimizer.get_config()
    optimizer.build(variables)
    slot_indices = find_slot_indices(optimizer_class, config, variables, shards)
    for shard, part in zip(shards, slot_indices, strict=True):
        of_part = optimizer_class.from_config(config)
        of_part.build([variables[index] for index in shard])
        specs = [(variable.shape, variable.dtype) for variable in of_part.variables]
        assert specs == [
            (optimizer.variables[index].shape, optimizer.variables[index].dtype) for index in part
        ]
    assert set().union(*slot_indices) == set(range(len(optimizer.variables)))


def test_an_optimizer_with_other_variables_for_a_part_is_refused():
    class Counting(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            for _ in variables:
                self.add_variable(shape=(), name="common")

    with pytest.raises(InvalidInputError, match="Counting can't be split"):
        find_slot_indices(Counting, Counting(0.1).get_config(), make_variables(), [[0, 1], [2, 3]])


def test_a_variable_has_its_path():
    variable = make_variable("body/part/kernel", (2, 3), "float32")
    assert (variable.path, variable.name, variable.shape) == ("body/part/kernel", "kernel", (2, 3))
    assert variable.trainable
