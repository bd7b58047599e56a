from dataclasses import replace

import numpy as np
from keras import ops

from keras_deepseek.training.weighted_sums import WeightedSums


def part(weight, loss, log, gradient):
    scalars = [ops.convert_to_tensor(each, "float32") for each in (weight, loss, log)]
    sums = WeightedSums.of(scalars[1], scalars[0], {"log": scalars[2]})
    assert sums.gradients == []
    return replace(sums, gradients=[None, gradient])


def add(one, other):
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return one.with_tensors([first + second for first, second in pairs])


def test_means_of_parts_make_the_mean_of_the_whole():
    parts = [part(1.0, 4.0, 8.0, ops.ones(2)), part(3.0, 8.0, 0.0, ops.zeros(2))]
    loss, logs, gradients = add(*parts).means(is_sum=False)
    assert (float(loss), float(logs["log"])) == (7.0, 2.0)
    assert gradients[0] is None
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [0.25, 0.25])


def test_sums_stay_sums():
    parts = [part(1.0, 4.0, 8.0, ops.ones(2)), part(1.0, 8.0, 0.0, ops.ones(2))]
    loss, _, gradients = add(*parts).means(is_sum=True)
    assert float(loss) == 12.0
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [2.0, 2.0])


def test_parts_without_weight_make_zeros():
    loss, _, gradients = part(0.0, 4.0, 8.0, ops.zeros(2)).means(is_sum=False)
    assert float(loss) == 0.0
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [0.0, 0.0])


def test_a_mean_over_nothing_counts_for_nothing():
    nothing, rest = (
        part(0.0, np.nan, np.nan, ops.zeros(2)),
        part(1.0, 4.0, 2.0, ops.ones(2)),
    )
    loss, logs, gradients = add(nothing, rest).means(is_sum=False)
    assert (float(loss), float(logs["log"])) == (4.0, 2.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(gradients[1]), [1.0, 1.0])
