import errno
import io

import pytest

from keras_deepseek.artifacts.appending import append_whole


class Full(io.FileIO):
    """A disk that takes a few bytes at a time, and no more than so many."""

    room = 10

    def write(self, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(3, self.room, len(data))
        self.room -= taken
        return super().write(data[:taken])


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
