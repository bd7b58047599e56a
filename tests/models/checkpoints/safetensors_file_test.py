import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.safetensors_file import DTYPES, MappedFiles, read_header
from tests.oracles.preset_model import NAMES, encode_safetensors

TENSORS = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "é/b": np.arange(3).astype(ml_dtypes.bfloat16),
    "nothing": np.zeros((0, 4), "float16"),
    "one": np.array(7, "int64"),
    "odd": np.array([True]),
    "misaligned": np.arange(4, dtype="float64"),
    "quarter": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
}


def write(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def write_header(folder, header, num_bytes=0):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return write(folder, len(text).to_bytes(8, "little") + text + bytes(num_bytes))


def test_every_tensor_is_read_as_it_was_written(tmp_path):
    header = read_header(write(tmp_path, encode_safetensors(TENSORS, NAMES)))
    assert header.keys() == TENSORS.keys()
    with MappedFiles() as files:
        for name, expected in TENSORS.items():
            array = files.read(header[name])
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == expected.tobytes()
            assert header[name].num_bytes == expected.nbytes


def test_what_was_released_is_read_again(tmp_path):
    header = read_header(write(tmp_path, encode_safetensors(TENSORS, NAMES)))
    with MappedFiles() as files:
        files.release(header["a"])  # Not mapped yet.
        array = files.read(header["a"])
        assert array.sum() == 15
        files.release(header["a"])
        assert array.sum() == 15
    assert array.sum() == 15  # The map lives as long as what shows it.


def test_a_file_is_not_changed_by_what_is_done_with_its_arrays(tmp_path):
    path = write(tmp_path, encode_safetensors(TENSORS, NAMES))
    content = path.read_bytes()
    with MappedFiles() as files:
        files.read(read_header(path)["a"])[:] = -1.0
    assert path.read_bytes() == content


def test_every_dtype_has_the_size_that_its_name_tells():
    for name, dtype in DTYPES.items():
        digits = "".join(char for char in name.partition("_")[0] if char.isdigit())
        assert dtype.itemsize == int(digits or 8) // 8


@pytest.mark.parametrize("length", [0, 3, 8, 20, -1, -9])
def test_a_file_that_is_cut_short_is_torn(tmp_path, length):
    content = encode_safetensors(TENSORS, NAMES)
    with pytest.raises(CheckpointError, match=r"'model.safetensors' is damaged"):
        read_header(write(tmp_path, content[:length]))


def test_a_file_that_goes_on_is_torn(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has \d+ bytes of tensors, and its header describes"
    ):
        read_header(write(tmp_path, encode_safetensors(TENSORS, NAMES) + b"\0"))


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xff", "not JSON"),
        (b"[" * 9000, "not JSON"),
        ([], "not a JSON object"),
        ({"a": 3}, "has no valid entry for 'a'"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "has no valid entry"),
        (entry(data_offsets=[0]), "has no valid entry"),
        (entry(shape=[-2]), "no valid shape"),
        (entry(shape=[2.0]), "no valid shape"),
        (entry(shape=[True]), "no valid shape"),
        (entry(shape=[2**40, 2**40]), "does not match its shape"),
        (entry(data_offsets=[8, 0]), "does not match its shape"),
        (entry(data_offsets=[2**62, 2**62 + 8]), "leave a gap"),
        (entry(data_offsets=[4, 12]), "leave a gap"),
        (entry(shape=[2] + [1] * 199), "'a' has 200 axes"),
        (entry(shape=[0, 2**40, 2**40], data_offsets=[0, 0]), "or is too large"),
        (entry(dtype="F4"), r"dtype 'F4'\. Expected one of F64"),
        (entry(dtype=[]), r"dtype \[\]"),
        ({**entry(), "b": entry()["a"]}, "overlap"),
    ],
)
def test_what_is_wrong_with_a_header_is_told(tmp_path, header, words):
    with pytest.raises(CheckpointError, match=words):
        read_header(write_header(tmp_path, header, 8))


def test_a_file_that_is_not_there_can_not_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="can't be read: No such file"):
        read_header(tmp_path / "model.safetensors")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4"]) | _json,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | _json,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | _json,
    }
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=3), _entries | _json, max_size=3), st.integers(0, 40))
def test_of_any_header_either_all_tensors_can_be_read_or_an_error_tells_why(
    tmp_path_factory, header, num_bytes
):
    path = write_header(tmp_path_factory.getbasetemp(), header, num_bytes)
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    with MappedFiles() as files:
        assert sum(files.read(tensor).nbytes for tensor in tensors.values()) == num_bytes


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 300))
def test_bytes_that_were_changed_are_noticed_or_change_numbers_alone(
    tmp_path_factory, noise, begin
):
    content = bytearray(encode_safetensors(TENSORS, NAMES))
    content[begin : begin + len(noise)] = noise
    path = write(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    with MappedFiles() as files:
        for tensor in tensors.values():
            assert files.read(tensor).nbytes == tensor.num_bytes
