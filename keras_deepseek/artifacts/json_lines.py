"""A file of JSON objects, one a line, that grows while a process runs."""

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.checks import check_file_path
from keras_deepseek.errors import InvalidInputError

Row = Mapping[str, str | float | None]


def check_json_lines_path(path: str | os.PathLike[str]) -> Path:
    """Checks that a path can name a file, and ends in `.jsonl`."""
    checked = Path(check_file_path("path", path))
    if checked.suffix != ".jsonl":
        raise InvalidInputError(
            f"Expected a path that ends in .jsonl (JSON lines); received {str(checked)!r}."
        )
    return checked


class JsonLines:
    """A file of JSON objects, one a line, with `null` for NaN and infinity.

    Appended rows outlive the process, even if it is killed. A last line that was cut short, as by a
    power cut, is removed when the file is opened again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_json_lines_path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._repair()
            # Unbuffered: rows outlive the process once `append` has returned.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise InvalidInputError(
                f"{str(self.path)!r} can't be written: {error}. Name another file."
            ) from error

    def append(self, rows: Sequence[Row]) -> None:
        """Appends rows to the file, all of them or none."""
        append_whole(self._file, _encode(rows))

    def read(self) -> list[dict[str, Any]]:
        """Returns all rows of the file as dicts."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrites the file with only the rows for which `is_kept` returns True.

        A process that is killed meanwhile leaves the old file.
        """
        rows = self.read()
        rows_to_keep = [row for row in rows if is_kept(row)]
        if len(rows_to_keep) == len(rows):
            return
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        unfinished.write_bytes(_encode(rows_to_keep))
        self._file.close()
        unfinished.replace(self.path)
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _repair(self) -> None:
        """Removes an incomplete last line; rejects a file that does not hold JSON lines."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            is_ours = all(
                isinstance(json.loads(line), dict) for line in whole.decode().splitlines()
            )
        except ValueError:
            is_ours = False
        if not is_ours or (data and not whole):
            raise InvalidInputError(
                f"{str(self.path)!r} does not hold JSON lines. Name another file."
            )
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Appends data to a file opened with `buffering=0`; restores its size if not all fits."""
    start = os.fstat(file.fileno()).st_size
    unwritten = memoryview(data)
    try:
        while unwritten:
            unwritten = unwritten[file.write(unwritten) or 0 :]
    except OSError as error:
        file.truncate(start)
        reason = (
            f"{error.strerror}, so that the logs end here. Free some space, or name another file"
        )
        raise OSError(error.errno, reason, os.fspath(file.name)) from error


def _encode(rows: Iterable[Row]) -> bytes:
    lines = (json.dumps({name: _finite(cell) for name, cell in row.items()}) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _finite(cell: str | float | None) -> str | float | None:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
