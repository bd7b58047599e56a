import keras
import numpy as np
import pytest

from keras_deepseek.backend.processes.processes import OneProcess
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.rank_consistency import (
    check_consistent_across_ranks,
    data_shapes,
    plain_attributes,
)


class Others(OneProcess):
    """The processes of a training, of which this one gathers what all of them say."""

    def __init__(self, other_ranks=()):
        self.world_size = 1 + len(other_ranks)
        self.other_ranks = other_ranks

    def gather(self, array):
        return [array, *(other.gathered for other in self.other_ranks)]


class Said:
    """What another process says."""

    world_size = 2

    def __init__(self, **arguments):
        check_consistent_across_ranks(self, arguments)

    def gather(self, array):
        self.gathered = array
        return [array]


def test_equal_arguments_pass():
    check_consistent_across_ranks(Others(), {"gradient_clip": None})
    other_ranks = [Said(gradient_clip=("norm", 1.0), micro_batches=2)] * 2
    check_consistent_across_ranks(
        Others(other_ranks), {"gradient_clip": ("norm", 1.0), "micro_batches": 2}
    )


def test_the_one_that_differs_is_named_with_its_ranks():
    other_ranks = [Said(micro_batches=2), Said(micro_batches=4)]
    expected = "differ in micro_batches: rank 0 has 2, rank 2 has 4"
    with pytest.raises(InvalidInputError, match=expected):
        check_consistent_across_ranks(Others(other_ranks), {"micro_batches": 2})


def test_an_optimizer_is_known_by_its_class_and_its_numbers():
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):  # It has no config.
            return 0.1

    attributes = plain_attributes(
        keras.optimizers.AdamW(Schedule(), weight_decay=0.1, clipnorm=2.0)
    )
    assert attributes["class"] == "AdamW"
    assert (attributes["weight_decay"], attributes["clipnorm"], attributes["beta_1"]) == (
        0.1,
        2.0,
        0.9,
    )
    other_ranks = [Said(optimizer=attributes)]
    check_consistent_across_ranks(Others(other_ranks), {"optimizer": dict(attributes)})
    with pytest.raises(InvalidInputError, match="differ in optimizer"):
        check_consistent_across_ranks(
            Others(other_ranks), {"optimizer": {**attributes, "beta_1": 0.8}}
        )


def test_data_are_known_by_their_shapes_and_kinds():
    x = {"a": np.ones((3, 2)), "b": (np.ones(3), None)}
    assert data_shapes(x, np.ones((3, 1))) == [(3, 2), (3,), None, (3, 1)]
    assert data_shapes(iter([1]), [1.0] * 3) == ["list_iterator", [1.0] * 3]


def test_of_long_ones_it_shows_where_they_differ():
    shapes = [(size, 7) for size in range(300)]
    with pytest.raises(InvalidInputError) as raised:
        check_consistent_across_ranks(
            Others([Said(weights=[*shapes[:-1], (1, 8)])]), {"weights": shapes}
        )
    message = str(raised.value)
    assert "[299, 7]]" in message
    assert "[1, 8]]" in message
    assert len(message) < 700
    assert "[5, 7]" not in message
