"""One rank's own sums; those of several are tried in `gradient_sums_test.py`."""

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="The others' sums are operations of a program."
)
VALUES = np.random.default_rng(0).normal(size=101).astype("float32")


@pytest.fixture
def group():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def add_up(bucket_sum):
    bucket_sum.share()
    bucket_sum.finish()


def test_an_exact_sum_is_that_of_all(group):
    import torch

    from keras_deepseek.backend.torch.bucket_sums import ExactSum

    total = torch.empty(101)
    bucket_sum = ExactSum([torch.tensor(VALUES[:40]), torch.tensor(VALUES[40:])], total)
    assert not bucket_sum.is_received()
    add_up(bucket_sum)
    np.testing.assert_array_equal(total.numpy(), VALUES)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_rounded_off_is_left(group, dtype):
    import torch

    from keras_deepseek.backend.torch.bucket_sums import RoundedSum

    lost, total = torch.tensor(1e6 * VALUES), torch.empty(101)  # Too large for float16 by itself.
    add_up(RoundedSum(lost, total, dtype, group))
    assert np.any(lost.numpy())
    assert np.all(np.abs(lost.numpy()) <= 2**-8 * 1e6 * np.abs(VALUES))
    np.testing.assert_allclose((total + lost).numpy(), 1e6 * VALUES, rtol=1e-6)


def test_a_matrix_is_sent_as_two_thin_ones_and_the_rest_is_left(group):
    import torch

    from keras_deepseek.backend.torch.bucket_sums import LowRankSum, SumOfMatrix

    gradient = VALUES[:96].reshape(8, 12)
    lost, total = torch.tensor(gradient), torch.empty(8, 12)
    factor, next_factor = torch.eye(2, 12), torch.empty(2, 12)
    vector, summed = torch.tensor(VALUES[96:]), torch.empty(5)
    matrix = SumOfMatrix(lost, total, factor, next_factor)
    add_up(LowRankSum([matrix], [(vector, summed)], group))
    assert np.linalg.matrix_rank(total.numpy(), tol=1e-4) == 2
    np.testing.assert_allclose((total + lost).numpy(), gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((next_factor @ next_factor.T).numpy(), np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(summed.numpy(), VALUES[96:])
    assert not np.any(vector.numpy())
