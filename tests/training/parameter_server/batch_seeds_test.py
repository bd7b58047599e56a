import keras
import numpy as np

from keras_deepseek.training.parameter_server.gradient_step import BatchSeeds


def build():
    return keras.Sequential([keras.Input((4,)), *(keras.layers.Dropout(0.5) for _ in range(2))])


def test_each_batch_has_numbers_of_its_own_and_the_same_each_time():
    model = build()
    seeds = BatchSeeds(model)
    assert len(seeds.variables) == 2
    first = seeds.of(0)
    for variable, value in zip(seeds.variables, first, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    starts = {tuple(int(word) for word in seeds.of(number)[0]) for number in range(500)}
    assert len(starts) == 500
    for variable in seeds.variables:  # What a batch draws changes nothing.
        variable.assign(variable.value + 1)
    for first_draw, second_draw in zip(seeds.of(7), seeds.of(7), strict=True):
        np.testing.assert_array_equal(first_draw, second_draw)
        assert first_draw.dtype == first[0].dtype
