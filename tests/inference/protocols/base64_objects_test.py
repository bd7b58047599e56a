import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import json_text
from tests.oracles.protocols import arrays, same


@given(st.binary(max_size=20))
def test_base64_is_read_with_and_without_its_padding(data):
    text = base64.b64encode(data).decode()
    for written in (text, text.rstrip("=")):
        assert json_text.decode_string({"b64": written}, "x") == data


def test_a_string_is_its_utf_8():
    assert json_text.decode_string("ü", "x") == b"\xc3\xbc"


@pytest.mark.parametrize(
    "value",
    [
        {"b64": "!!"},
        {"b64": "A"},
        {"b64": "ü"},
        {"b64": 1},
        {"b64": "AA==", "other": 1},
        {},
        1,
        None,
        True,
        1.5,
    ],
)
def test_anything_else_is_refused(value):
    with pytest.raises(InvalidInputError, match="x: "):
        json_text.decode_string(value, "x")


@pytest.mark.parametrize(
    "value", [["a", ["b"]], [["a"], ["b", "c"]], [["a"], "b"], [[], ["a"]], [1], [["a", None]]]
)
def test_rows_of_unequal_length_or_of_something_else_are_refused(value):
    with pytest.raises(InvalidInputError, match="x: "):
        json_text.decode_strings(value, "x")


def test_lists_in_lists_in_lists_are_refused_before_the_stack_ends():
    value = "a"
    for _ in range(5000):
        value = [value]
    with pytest.raises(InvalidInputError, match="more than 32 nested lists"):
        json_text.decode_strings(value, "x")


@given(arrays(["object"]), st.sampled_from(["image", "image_bytes"]))
def test_what_is_written_is_read(array, name):
    text = json.dumps(json_text.encode_strings(name, array))
    read = json_text.decode_strings(json.loads(text), "x")
    if array.size:
        assert same(read, array)
    assert read.size == array.size


def test_an_output_whose_name_ends_in_bytes_is_base64_as_in_tf_serving():
    array = np.array([b"cat", b"\xff"], object)
    assert json_text.encode_strings("label", array) == ["cat", {"b64": "/w=="}]
    assert json_text.encode_strings("a_bytes", array) == [{"b64": "Y2F0"}, {"b64": "/w=="}]
    assert json_text.encode_strings("label", np.array(["cat"])) == ["cat"]
