"""Rows of a table in a file that grows line by line: JSON lines, or CSV.

What was appended outlives the process. A last line that was cut short, as by a power cut, goes
where the file is opened again.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.appending import append_whole
from keras_deepseek.checks import check_file_path
from keras_deepseek.errors import InvalidInputError

Cells = Mapping[str, str | float | None]


def check_table_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a table, whose ending says what is written.

    Raises:
        InvalidInputError: It is none, or has another ending.
    """
    checked = Path(check_file_path("path", path))
    if checked.suffix not in (".jsonl", ".csv"):
        raise InvalidInputError(
            f"The ending says what is written, .jsonl or .csv; received {str(checked)!r}."
        )
    return checked


class TableFile:
    """A table whose columns may come later.

    `.jsonl` holds an object a line, with `null` for what is no finite number. `.csv` has a line of
    names first, and is written anew when a column comes that it did not have.

    Args:
        path: The file, `.jsonl` or `.csv`. It and its parents are made where they are missing.

    Raises:
        InvalidInputError: It has another ending, can't be written, or holds something else.

    Example:

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/log.csv"
    >>> with TableFile(path) as table:
    ...     table.append([{"step": 1, "loss": 0.5}])
    ...     table.append([{"step": 2, "loss": 0.25, "val_loss": 0.75}])
    >>> Path(path).read_text().splitlines()
    ['step,loss,val_loss', '1,0.5,', '2,0.25,0.75']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_table_path(path)
        self._is_csv = self.path.suffix == ".csv"
        self._columns: list[str] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._repair()
            # Unbuffered: what `append` has returned from outlives the process.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise InvalidInputError(
                f"{str(self.path)!r} can't be written: {error}. Name another file."
            ) from error

    def append(self, rows: Sequence[Cells]) -> None:
        """Appends rows, all at once.

        Args:
            rows: Texts and numbers by the names of their columns.
        """
        if self._is_csv:
            known = set(self._columns)
            new = list(dict.fromkeys(name for row in rows for name in row if name not in known))
            if new:
                self._write_anew([*self.read(), *rows], [*self._columns, *new])
                return
        append_whole(self._file, self._encode(rows))

    def read(self) -> list[dict[str, Any]]:
        """Returns the rows; of a `.csv`, all cells are texts."""
        text = self.path.read_text(encoding="utf-8")
        if self._is_csv:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        return [json.loads(line) for line in text.splitlines()]

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> None:
        """Drops rows; a process that dies over it leaves the file as it was.

        Args:
            is_kept: Function of a row as `read` returns it.
        """
        rows = self.read()
        kept = [row for row in rows if is_kept(row)]
        if len(kept) < len(rows):
            self._write_anew(kept, self._columns)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "TableFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _repair(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            text = whole.decode()
            if self._is_csv:
                rows = csv.reader(io.StringIO(text, newline=""))
                self._columns = next(rows, [])
                is_ours = all(len(row) == len(self._columns) for row in rows)
            else:
                is_ours = all(isinstance(json.loads(line), dict) for line in text.splitlines())
        except ValueError:
            is_ours = False
        if not is_ours or (data and not whole):
            raise InvalidInputError(
                f"{str(self.path)!r} does not hold rows of {self.path.suffix[1:]}. Name another "
                "file."
            )
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))

    def _write_anew(self, rows: Iterable[Cells], columns: list[str]) -> None:
        self._columns = columns
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        head = self._csv([columns]) if self._is_csv and columns else b""
        unfinished.write_bytes(head + self._encode(rows))
        self._file.close()
        unfinished.replace(self.path)
        self._file = self.path.open("ab", buffering=0)

    def _encode(self, rows: Iterable[Cells]) -> bytes:
        if self._is_csv:
            return self._csv([row.get(name) for name in self._columns] for row in rows)
        lines = (json.dumps({name: _finite(cell) for name, cell in row.items()}) for row in rows)
        return "".join(f"{line}\n" for line in lines).encode()

    @staticmethod
    def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _finite(cell: str | float | None) -> str | float | None:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
