"""The launcher's own standard output and standard error."""

import os
import sys
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

PROGRAM = "keras-deepseek launch"


class Output:
    """Writes lines of the processes and of the launcher to stdout and stderr.

    If a log can't be written, because its reader has ended or the disk is full, the training goes
    on and the output is dropped.
    """

    def write_out(self, data: bytes) -> None:
        """Writes bytes to stdout."""
        self._write(sys.stdout.buffer, data)

    def write_error(self, data: bytes) -> None:
        """Writes bytes to stderr."""
        self._write(sys.stderr.buffer, data)

    def say(self, message: str) -> None:
        """Writes a line of the launcher itself to stderr."""
        self.write_error(f"{PROGRAM}: {message}\n".encode(errors="replace"))

    def _write(self, stream: BinaryIO, data: bytes) -> None:
        try:
            unwritten = memoryview(data)
            # Without a buffer, as under PYTHONUNBUFFERED, only a part may be written.
            while unwritten:
                unwritten = unwritten[stream.write(unwritten) :]
            stream.flush()
        except OSError:
            # Bytes that are still in the buffer would fail again, also when Python ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


_LONGEST_LINE = 65536
"""Bytes. Longer lines are cut: a process that writes no newline must not fill the memory."""

_NUM_LAST_LINES = 20
_LONGEST_LAST_LINE = 1000


class LinePrefixer:
    """A splitter of bytes, of any encoding, into lines that are written with a prefix."""

    def __init__(self, prefix: bytes, write: Callable[[bytes], None]) -> None:
        self._prefix = prefix
        self._write = write
        self._pending = b""
        self._last: deque[bytes] = deque(maxlen=_NUM_LAST_LINES)

    @property
    def last_lines(self) -> list[str]:
        """The newest lines, without the prefix."""
        return [line[:_LONGEST_LAST_LINE].decode(errors="replace") for line in self._last]

    def feed(self, data: bytes) -> None:
        """Takes output bytes of a process, and writes the lines that they complete."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        while len(self._pending) > _LONGEST_LINE:
            lines.append(self._pending[:_LONGEST_LINE])
            self._pending = self._pending[_LONGEST_LINE:]
        self._write_lines(lines)

    def close(self) -> None:
        """Writes the last line if it lacks a newline."""
        lines = [self._pending] if self._pending else []
        self._pending = b""
        self._write_lines(lines)

    def _write_lines(self, lines: list[bytes]) -> None:
        self._last.extend(lines)
        if lines:  # In one write, so that nothing comes between a line and its prefix.
            self._write(b"".join(self._prefix + line + b"\n" for line in lines))
