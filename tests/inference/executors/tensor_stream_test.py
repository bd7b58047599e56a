import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from keras_deepseek.inference.executors.isolated_model import receive_message, send_message


@pytest.fixture
def ends():
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


DTYPES = st.sampled_from(["float32", "float16", "int64", "uint8", "bool"])
SHAPES = hypothesis_numpy.array_shapes(min_dims=0, min_side=0, max_side=4)


@given(hypothesis_numpy.arrays(DTYPES, SHAPES), hypothesis_numpy.arrays(DTYPES, SHAPES))
def test_arrays_come_as_they_went(first, second):
    sender, receiver = socket.socketpair()
    with sender, receiver:
        send_message(sender, {"number": 3}, {"a": first, "b": second.T})
        content, arrays = receive_message(receiver)
    assert content == {"number": 3}
    for sent, received in ((first, arrays["a"]), (second.T, arrays["b"])):
        assert received.dtype == sent.dtype
        np.testing.assert_array_equal(received, sent)


def test_strings_come_as_bytes(ends):
    sender, receiver = ends
    sent = np.array([["a", b"\xff"], ["", "é"]], object)
    send_message(sender, {}, {"text": sent, "none": np.zeros((0, 2), object), "x": np.ones(2)})
    _, arrays = receive_message(receiver)
    assert arrays["text"].tolist() == [[b"a", b"\xff"], [b"", "é".encode()]]
    assert (arrays["none"].shape, arrays["none"].dtype) == ((0, 2), object)
    assert arrays["x"].tolist() == [1, 1]


def test_an_end_that_is_closed_is_told(ends):
    sender, receiver = ends
    sender.sendall(b"\0\0")
    sender.close()
    with pytest.raises(EOFError):
        receive_message(receiver)


def test_silence_is_an_error_after_the_timeout(ends):
    right = ends[1]
    right.settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive_message(right)
