import numpy as np

from keras_deepseek.backend.processes.gradient_buckets import BUCKET_BYTES, cut_into_buckets


def cut(*arrays):
    return [len(bucket) for bucket in cut_into_buckets(arrays, lambda array: array.nbytes)]


def test_a_bucket_ends_with_what_makes_it_large_enough():
    half, small = np.zeros(BUCKET_BYTES // 2, "uint8"), np.zeros(3, "uint8")
    assert cut(half, half, small) == [2, 1]
    assert cut(small, half, half, small, half) == [3, 2]
    assert cut() == []


def test_a_bucket_has_one_dtype():
    assert cut(np.zeros(2, "float64"), np.zeros(2, "float32"), np.zeros(2, "float32")) == [1, 2]
