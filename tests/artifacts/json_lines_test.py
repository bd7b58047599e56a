import errno
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts.json_lines import JsonLines, append_whole
from keras_deepseek.errors import InvalidInputError


def test_an_object_a_line(tmp_path):
    with JsonLines(tmp_path / "runs" / "log.jsonl") as file:
        file.append([{"step": 1, "loss": 0.5}, {"step": 2, "kind": "größte"}])
        file.append([{"step": 3, "loss": math.nan, "other": -math.inf}])
    assert file.read() == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "kind": "größte"},
        {"step": 3, "loss": None, "other": None},
    ]


def test_a_file_that_is_opened_again_goes_on(tmp_path):
    for step in (1, 2):
        with JsonLines(tmp_path / "log.jsonl") as file:
            file.append([{"step": step, "loss": 0.5}])
    assert [row["step"] for row in file.read()] == [1, 2]


@given(cut=st.integers(1, 200))
def test_a_last_line_that_was_cut_short_is_dropped(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("run") / "log.jsonl"
    with JsonLines(path) as file:
        file.append([{"step": step, "kind": "step", "loss": 1 / 3} for step in range(20)])
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    whole = content[:-cut].rfind(b"\n") + 1
    with JsonLines(path) as file:
        assert path.read_bytes() == content[:whole]
        file.append([{"step": 20, "kind": "step", "loss": 0.25}])
    steps = [row["step"] for row in file.read()]
    assert steps == [*range(len(steps) - 1), 20]


def test_rows_are_dropped(tmp_path):
    with JsonLines(tmp_path / "log.jsonl") as file:
        file.append([{"step": step} for step in range(5)])
        file.keep(lambda row: row["step"] < 3)
        file.append([{"step": 9}])
        assert [row["step"] for row in file.read()] == [0, 1, 2, 9]
        file.keep(lambda row: False)
        assert file.read() == []
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("text", ["notes\n", "[1]\n", "notes"])
def test_something_else_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(InvalidInputError, match="does not hold JSON lines"):
        JsonLines(tmp_path / "log.jsonl")
    assert (tmp_path / "log.jsonl").read_text() == text


def test_another_ending_and_a_place_where_no_file_can_be(tmp_path):
    with pytest.raises(InvalidInputError, match=r"ends in \.jsonl .*received '.*log\.csv'"):
        JsonLines(tmp_path / "log.csv")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="can't be written"):
        JsonLines(tmp_path / "file" / "log.jsonl")


class Full(io.FileIO):
    """A disk that takes a few bytes at a time, and no more than so many."""

    room = 10

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_bytes = min(3, self.room, len(data))
        self.room -= num_bytes
        return super().write(data[:num_bytes])


def test_what_is_taken_in_parts_is_written_wholly(tmp_path):
    with Full(tmp_path / "file", "ab") as file:
        append_whole(file, b"1234567890")
        append_whole(file, b"")
    assert (tmp_path / "file").read_bytes() == b"1234567890"


def test_a_full_disk_leaves_the_file_as_it_was_and_is_named(tmp_path):
    with Full(tmp_path / "file", "ab") as file:
        append_whole(file, b"1234")
        with pytest.raises(OSError, match=r"No space left on device, so that the logs end.*file'"):
            append_whole(file, b"567890abc")
    assert (tmp_path / "file").read_bytes() == b"1234"
