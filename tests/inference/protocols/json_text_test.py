import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.protocols import json_text


@pytest.fixture(params=["orjson", "json"])
def parser(request, monkeypatch):
    """Each parser that can be chosen."""
    module = pytest.importorskip("orjson") if request.param == "orjson" else None
    monkeypatch.setattr(json_text, "_orjson", lambda: module)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize("text", [b"", b"{", b"[1,]", b"\xff\xfe\xfa", b"[" * 100_000, b"nan"])
def test_what_is_no_json_is_refused(text):
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
def test_what_is_no_json_is_not_written():
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
def test_what_python_s_own_json_reads_is_read_and_what_is_written_is_read(value):
    text = json.dumps(value).encode()
    assert json_text.load_json(text) == value
    assert json.loads(json_text.to_json(value)) == value


@given(st.binary(max_size=60))
def test_random_bytes_are_json_or_a_bad_input(text):
    with contextlib.suppress(InvalidInputError):
        json_text.load_json(text)
