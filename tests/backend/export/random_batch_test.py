import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.random_batch import (
    count_free_lengths,
    name_axes,
    with_named_axes,
)

TOKENS = TensorSpec("tokens", (None, None), "int32")
MASK = TensorSpec("mask", (None, None), "bool")
IMAGE = TensorSpec("image", (None, 8, 8, 1), "float32")


def signature_of(*inputs):
    return Signature(inputs=inputs, outputs=())


def test_an_axis_is_its_inputs_own_or_shared():
    signature = signature_of(TOKENS, MASK, IMAGE)
    separate = name_axes(signature, are_shared=False)
    assert separate["tokens"] == ("batch", "tokens_axis_1")
    assert separate["mask"] == ("batch", "mask_axis_1")
    assert separate["image"] == ("batch", 8, 8, 1)
    shared = name_axes(signature, are_shared=True)
    assert shared["tokens"] == shared["mask"] == ("batch", "axis_1")


def test_lengths_are_counted():
    assert count_free_lengths(signature_of(TOKENS, MASK)) == 2
    assert count_free_lengths(signature_of(TOKENS, IMAGE)) == 1
    assert count_free_lengths(signature_of(IMAGE)) == 0
    assert count_free_lengths(signature_of(TensorSpec("x", (None, None, None, 3), "float32"))) == 2


def test_lengths_are_shared_where_own_ones_do_not_trace():
    mask_shapes = []

    def trace(shapes):
        mask_shapes.append(shapes["mask"])
        if shapes["mask"] != shapes["tokens"]:
            raise TypeError("not equal")

    with_named_axes(signature_of(TOKENS, MASK), trace)
    assert mask_shapes == [("batch", "mask_axis_1"), ("batch", "axis_1")]


@pytest.mark.parametrize("inputs", [(TOKENS,), (IMAGE,)])
def test_there_is_no_second_try_where_nothing_is_shared(inputs):
    calls = []

    def trace(shapes):
        calls.append(shapes)
        raise TypeError("unsupported")

    with pytest.raises(TypeError, match="unsupported"):
        with_named_axes(signature_of(*inputs), trace)
    assert len(calls) == 1
