import errno
import json
import math
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from keras_deepseek.artifacts.checkpoint import FORM, Checkpoint
from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.errors import CheckpointError, InvalidInputError, NotSupportedError

STATE = {
    "weights": [np.arange(3.0), np.ones((2, 2), "bfloat16"), np.array(7), np.zeros((0, 4), bool)],
    "position": {"epoch": 2, "pair": (1, None)},
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "step"
    Checkpoint(7, STATE, score=0.25).write(path)
    return path


def assert_whole(checkpoint):
    assert (checkpoint.step, checkpoint.score) == (7, 0.25)
    assert checkpoint.state["position"] == STATE["position"]
    for received, expected in zip(checkpoint.state["weights"], STATE["weights"], strict=True):
        assert received.dtype == expected.dtype
        np.testing.assert_array_equal(received, expected)


def test_read_returns_the_state_that_was_written(path):
    assert_whole(Checkpoint.read(path))
    assert Checkpoint.read_score(path).score == 0.25
    assert [file.name for file in path.parent.iterdir()] == ["step"]


def test_a_file_that_is_cut_short_at_any_byte_is_torn(path):
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoint.read(path)


def test_a_byte_that_is_altered_anywhere_never_alters_what_is_read(path):
    content = path.read_bytes()
    torn = 0
    for index in range(0, len(content), 3):
        altered = bytearray(content)
        altered[index] ^= 0x40
        path.write_bytes(altered)
        try:
            assert_whole(Checkpoint.read(path))  # A date, or what else the zip says of a file.
        except CheckpointError:
            torn += 1
    assert torn > len(content) / 6


def test_a_file_that_is_missing_is_said_to_be(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        Checkpoint.read(tmp_path / "missing")


def test_a_newer_form_is_not_taken_for_a_torn_file(path):
    with zipfile.ZipFile(path) as archive:
        text = archive.read("state.json").decode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("state.json", text.replace(f'"form": {FORM}', f'"form": {FORM + 1}'))
    with pytest.raises(NotSupportedError, match=rf"has version {FORM + 1}.*Upgrade"):
        Checkpoint.read(path)


def test_a_file_of_the_first_form_is_read(path):
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read("state.json"))
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in ("rank", "num_ranks", "save_id", "divided"):
        del content[name]
    members["state.json"] = json.dumps({**content, "form": 1}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    assert_whole(Checkpoint.read(path))


def test_a_dtype_that_numpy_does_not_know_is_not_taken_for_a_torn_file(path):
    with zipfile.ZipFile(path) as archive:
        text = archive.read("state.json").decode()
        members = {name: archive.read(name) for name in archive.namelist()}
    members["state.json"] = text.replace("bfloat16", "float13").encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(NotSupportedError, match="dtype 'float13'"):
        Checkpoint.read(path)
    assert np.dtype("bfloat16") == ml_dtypes.bfloat16


class FullDisk:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file, room):
        self._file = file
        self._room = room

    def write(self, content):
        if self._file.tell() + len(content) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 40, 150, 400, 700])
def test_on_a_full_disk_what_was_there_stays(path, monkeypatch, room):
    whole = type(path).open
    monkeypatch.setattr(
        type(path),
        "open",
        lambda self, mode="r", *a, **b: (
            FullDisk(whole(self, mode), room) if mode == "wb" else whole(self, mode, *a, **b)
        ),
    )
    with pytest.raises(CheckpointError, match=r"step 8 can't be written.*No space left.*resume="):
        Checkpoint(8, STATE).write(path)
    assert_whole(Checkpoint.read(path))
    assert [file.name for file in path.parent.iterdir()] == ["step"]


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Checkpoint(8, {"weights": np.zeros(100_000)}).write(Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""


def test_the_limit_of_a_file_s_size_is_met_as_a_full_disk_is(path):
    pytest.importorskip("resource", reason="The system has no such limit.")
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout, done.stderr
    assert_whole(Checkpoint.read(path))
    assert [file.name for file in path.parent.iterdir()] == ["step"]


def through_json(state):
    packed, arrays = pack_state(state)
    return unpack_state(json.loads(json.dumps(packed, allow_nan=False)), arrays)


@pytest.mark.parametrize(
    "state",
    [
        None,
        True,
        -3,
        2**70,
        0.1,
        math.inf,
        -math.inf,
        "naïve",
        b"\x00\xff",
        [1, [2.5, "three"]],
        (1, ("two", None)),
        {1, 2},
        {"name": {"inner": []}},
        {1: "one", ("a", 2): "pair"},
        {"$kind": "array", "value": 0},
        {"$kind": {"$kind": 1}},
    ],
)
def test_unpack_restores_the_packed_state(state):
    received = through_json(state)
    assert received == state
    assert type(received) is type(state)


def test_not_a_number_stays_one():
    assert math.isnan(through_json(math.nan))


def test_an_exact_float_keeps_each_bit():
    value = float(np.nextafter(0.1, 1))
    assert through_json([value]) == [value]


def test_arrays_stand_beside_the_json_and_are_not_copied():
    array = np.arange(6).reshape(2, 3)
    packed, arrays = pack_state({"weights": (array, np.float32(0.5))})
    assert arrays[0] is array
    json.dumps(packed)
    received = unpack_state(packed, arrays)["weights"]
    assert received[0] is array
    assert type(received[1]) is np.float32
    assert received[1] == np.float32(0.5)


@pytest.mark.parametrize("value", [object(), lambda: 0, np.array([None]), {"inner": [object()]}])
def test_a_value_that_can_t_be_saved_is_named(value):
    with pytest.raises(InvalidInputError, match=r"A \w+ can't be saved"):
        pack_state(value)


def test_a_list_that_holds_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(InvalidInputError, match="levels deep"):
        pack_state(endless)
