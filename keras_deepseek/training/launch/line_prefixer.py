"""Prefixes each line of a process's output with its rank."""

from collections import deque
from collections.abc import Callable

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
