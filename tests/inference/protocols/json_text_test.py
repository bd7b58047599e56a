import base64
import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import json_text
from keras_deepseek.inference.protocols.json_text import (
    inputs_from_rows,
    load_object,
    rows_from_outputs,
    to_json,
)
from tests.oracles.protocols import arrays, same


@pytest.fixture(params=["orjson", "json"])
def parser(request, monkeypatch):
    """Each parser that can be chosen."""
    module = pytest.importorskip("orjson") if request.param == "orjson" else None
    monkeypatch.setattr(json_text, "_orjson", lambda: module)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", [b"", b"{", b"[1,]", b"\xff\xfe\xfa", b"[" * 100_000, b"nan"])
def test_a_text_that_is_no_json_is_refused(text):
    with pytest.raises(InvalidInputError, match="not JSON"):
        json_text.load_json(text)


@pytest.mark.usefixtures("parser")
def test_numbers_that_json_lacks_are_read_and_written():
    numbers = json_text.load_json(b'{"x": [NaN, Infinity, -Infinity, 1.5]}')["x"]
    assert math.isnan(numbers[0])
    assert numbers[1:] == [math.inf, -math.inf, 1.5]
    for values in (numbers, np.array(numbers), [np.float32(value) for value in numbers]):
        assert json_text.to_json({"y": values}) == b'{"y":[NaN,Infinity,-Infinity,1.5]}'
    assert json_text.to_json({"y": [1, [[math.nan, "a"]], None]}) == b'{"y":[1,[[NaN,"a"]],null]}'


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("start", [0, 2**16 - 3, 2**16, 100_000])
def test_numbers_that_json_lacks_are_read_anywhere_in_a_large_text(start):
    text = b"[" + b" " * start + b"Infinity" + b" " * 2**17 + b"]"
    assert json_text.load_json(text) == [math.inf]


def test_a_large_text_that_is_no_json_is_not_read_twice(monkeypatch):
    pytest.importorskip("orjson")
    monkeypatch.setattr(json_text.json, "loads", None)
    with pytest.raises(InvalidInputError, match="not JSON"):
        json_text.load_json(b"[" * 100_000)


@pytest.mark.usefixtures("parser")
def test_a_view_of_bytes_is_read():
    assert json_text.load_json(memoryview(b"  [1, 2]xyz")[:8]) == [1, 2]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "uint64", "bool"])
def test_arrays_are_written_so_that_the_same_ones_are_read(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    array = np.array([[0.1, 3.0], [0.2, 1.0]]).astype(dtype)
    for written in (array, array[:, ::-1][:, ::-1], np.asfortranarray(array)):
        read = json_text.load_json(json_text.to_json({"x": written}))["x"]
        assert (np.array(read).astype(dtype) == array).all()


def test_a_float32_has_its_shortest_text_with_orjson():
    pytest.importorskip("orjson")
    assert json_text.to_json([np.array([0.1, 0.2], "float32")]) == b"[[0.1,0.2]]"


@pytest.mark.usefixtures("parser")
def test_a_value_without_a_json_form_is_not_written():
    with pytest.raises(TypeError, match="bytes"):
        json_text.to_json({"x": b"abc"})


@pytest.mark.usefixtures("parser")
def test_integers_and_texts_beyond_what_orjson_takes_are_written():
    for content in ([2**70], ["\ud800"], {"a": [2**70, 1.5]}):
        assert json.loads(json_text.to_json(content)) == content


values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_python_s_json_and_ours_read_each_other(value):
    text = json.dumps(value).encode()
    assert json_text.load_json(text) == value
    assert json.loads(json_text.to_json(value)) == value


@given(st.binary(max_size=60))
def test_random_bytes_are_json_or_a_bad_input(text):
    with contextlib.suppress(InvalidInputError):
        json_text.load_json(text)


TEXT = Signature((TensorSpec("s", (None,), "object"),), ())
TWO = Signature((TensorSpec("a", (None,), "int32"), TensorSpec("b", (None, 2), "float32")), ())


def test_rows_become_inputs_by_name():
    rows = [{"a": 1, "b": [2, 3]}, {"a": 4, "b": [5, 6]}]
    assert inputs_from_rows(rows, TWO, "rows") == {"a": [1, 4], "b": [[2, 3], [5, 6]]}
    assert inputs_from_rows(["x", {"b64": "/w=="}], TEXT, "rows")["s"].tolist() == [b"x", b"\xff"]
    assert inputs_from_rows([], TWO, "rows")["b"].shape == (0, 2)


@pytest.mark.parametrize("rows", [3, [1], [{"a": 1}, 2], [{"a": 1}, {"b": [1, 2]}]])
def test_an_error_names_the_field_of_the_request(rows):
    with pytest.raises(InvalidInputError, match="'lines'"):
        inputs_from_rows(rows, TWO, "lines")


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        ({"y": np.array([[1, 2], [3, 4]])}, [[1, 2], [3, 4]]),
        ({"y": np.array([1]), "s": np.array(["a"], object)}, [{"y": 1, "s": "a"}]),
        ({"s": np.array([b"\xff"], object)}, [{"b64": "/w=="}]),
    ],
)
def test_outputs_become_rows(outputs, rows):
    assert json.loads(to_json(rows_from_outputs(outputs))) == rows


def test_a_body_that_is_no_object_is_refused_in_the_words_of_the_protocol():
    assert load_object(b'{"rows": []}', "with 'rows'") == {"rows": []}
    with pytest.raises(InvalidInputError, match="Expected a JSON object with 'rows'; received "):
        load_object(b"[]", "with 'rows'")


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
def test_decoded_strings_equal_the_encoded_ones(array, name):
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
