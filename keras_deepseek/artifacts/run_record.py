"""The run record, which training writes and Studio reads.

It is a SQLite file with one row for each logged value. SQLite keeps it intact if the writer
crashes, and lets a reader read while training writes.
"""

import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError

FORM = 2
"""The version of the tables that this release writes. A higher version is refused."""

_TABLES = """
CREATE TABLE IF NOT EXISTS properties (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scalars (
    step INTEGER NOT NULL, name TEXT NOT NULL, value REAL, time REAL NOT NULL,
    PRIMARY KEY (name, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vectors (
    name TEXT NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, "values" BLOB NOT NULL,
    PRIMARY KEY (name, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, time REAL NOT NULL, json TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS commands (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, asked REAL NOT NULL, answered REAL, answer TEXT
);
"""

# Jumps from one name to the next in the primary key. `DISTINCT` would read every row.
_NAMES = """
WITH RECURSIVE names(name) AS (
    SELECT min(name) FROM {table}
    UNION ALL
    SELECT (SELECT min(name) FROM {table} WHERE name > names.name)
    FROM names WHERE names.name IS NOT NULL
)
SELECT name FROM names WHERE name IS NOT NULL
"""


def _reading_uri(path: str | os.PathLike[str]) -> str:
    """Returns the URI by which SQLite reads a record, also in a folder that is read-only.

    In such a folder SQLite can't make the files of the write-ahead log, and needs the option
    `immutable`. With this option it ignores an existing log, which holds the last steps of a writer
    that was killed. So the option is set only if there is no log.
    """
    file = Path(path).absolute()
    uri = f"{file.as_uri()}?mode=ro"
    if os.access(file.parent, os.W_OK):
        return uri
    log, index = Path(f"{file}-wal"), Path(f"{file}-shm")
    if index.exists() or (log.exists() and log.stat().st_size):
        return uri
    return f"{uri}&immutable=1"


class Command(NamedTuple):
    """A command to a training, such as `"stop"`, and the training's answer.

    Args:
        id: integer. The number that `RunRecord.ask` returned.
        name: string. The command.
        asked: float. Its time, in seconds since 1970.
        answered: float. The time of the answer; `None` before it.
        answer: string. What the training has done; `None` before the answer.
    """

    id: int
    name: str
    asked: float
    answered: float | None
    answer: str | None


class Extent(NamedTuple):
    """The last step and the extremes of the values of one name; `None` in place of NaN.

    Args:
        step: integer. The last step.
        last: float. Its value.
        least: float. The smallest value.
        most: float. The largest value.
        begin: float. The time of the first step, in seconds since 1970.
        end: float. The time of the last step.
    """

    step: int
    last: float | None
    least: float | None
    most: float | None
    begin: float
    end: float


class RunRecord:
    """The numbers of one training run by name and step, its properties, and its documents.

    A value that is logged again for the same step replaces the first one: a resumed run overwrites
    its steps.

    Args:
        path: The SQLite file. Unless it is only read, it and its parents are made if they are
            missing.
        clock: Function that returns the time in seconds. Defaults to `time.time`.
        read_only: boolean. Reads a record, also while a training writes it, and never changes it.
            Defaults to `False`.

    Raises:
        InvalidInputError: The file is not a run record, is damaged, or is of a newer version. Also
            raised by every method if the file can't be read or written, for example on a full disk.

    Example:

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/run.sqlite"
    >>> with RunRecord(path) as record:
    ...     record.log(1, {"loss": 0.5})
    ...     record.log(2, {"loss": 0.25})
    >>> with RunRecord(path, read_only=True) as record:
    ...     record.scalars("loss")
    [(1, 0.5), (2, 0.25)]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        clock: Callable[[], float] = time.time,
        *,
        read_only: bool = False,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._is_read_only = read_only
        try:
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            uri = _reading_uri(path) if read_only else f"{self.path.absolute().as_uri()}?mode=rwc"
            timeout = 5.0 if read_only else 30.0
            # Keras may call from several threads; the callback serializes the calls.
            self._connection = sqlite3.connect(uri, timeout, uri=True, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise InvalidInputError(
                f"No run record can be opened at {str(self.path)!r}: {error}. Name another file."
            ) from error
        try:
            self._open(read_only=read_only)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise self._explain(error) from error
        except InvalidInputError:
            self._connection.close()
            raise

    def _open(self, *, read_only: bool) -> None:
        # The list of tables is read only if needed: Studio opens a thousand records at once.
        rows = self._read("SELECT value FROM properties WHERE name = 'form'")
        if not rows:
            self._check_tables()
        form = json.loads(rows[0][0]) if rows else FORM
        if form > FORM:
            raise InvalidInputError(
                f"{str(self.path)!r} has version {form}; this release reads versions up to {FORM}. "
                "Upgrade keras_deepseek."
            )
        if not read_only:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(_TABLES)
            self.describe({"form": FORM})

    def _check_tables(self) -> None:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        tables = [name for (name,) in self._read(query)]
        if tables and not {"properties", "scalars"} <= set(tables):
            raise InvalidInputError(
                f"{str(self.path)!r} is another program's database, with the tables {tables}. Name "
                "another file."
            )

    def describe(self, properties: Mapping[str, Any]) -> None:
        """Stores properties of the run as a whole, by name.

        Args:
            properties: Values that JSON can hold.
        """
        self._write(
            "INSERT OR REPLACE INTO properties VALUES (?, ?)",
            [(name, json.dumps(value)) for name, value in properties.items()],
        )

    def properties(self) -> dict[str, Any]:
        """Returns the properties that `describe` stored."""
        rows = self._read("SELECT name, value FROM properties")
        return {name: json.loads(value) for name, value in rows}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Stores the values of one step.

        Args:
            step: integer. Counted from the start of the run.
            values: Numbers by name. NaN is stored as missing.
        """
        self.log_steps([(step, values)])

    def log_steps(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Stores the values of many steps at once, in a tenth of the time of many calls of `log`.

        Args:
            steps: `(step, values)` pairs as `log` takes them; a step may come more than once.
        """
        now = self._clock()
        self._write(
            "INSERT OR REPLACE INTO scalars VALUES (?, ?, ?, ?)",
            [
                (step, name, float(value), now)
                for step, values in steps
                for name, value in values.items()
            ],
        )

    def log_vectors(self, steps: Iterable[tuple[int, Mapping[str, Array]]]) -> None:
        """Stores a vector of numbers for each step, such as the gradient norm of each layer.

        The document `vector:NAME` says what the entries are, as `{"labels": [...]}`.

        Args:
            steps: `(step, vectors)` pairs: NumPy arrays by name, stored in float32.
        """
        now = self._clock()
        self._write(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)",
            [
                (name, step, now, np.asarray(vector, "<f4").tobytes())
                for step, vectors in steps
                for name, vector in vectors.items()
            ],
        )

    def discard_after(self, step: int) -> None:
        """Removes the values of later steps, which a run that resumes at `step` logs again.

        The property `generation` grows by one, so that readers forget these values, too.

        Args:
            step: integer. The last step that stays.
        """
        generation = self.properties().get("generation", 0) + 1
        series = [(table, name) for table in ("scalars", "vectors") for name in self._names(table)]
        with self._explain_errors(), self._connection:
            for table, name in series:
                self._connection.execute(
                    f"DELETE FROM {table} WHERE name = ? AND step > ?", (name, step)
                )
            self._connection.execute(
                "INSERT OR REPLACE INTO properties VALUES ('generation', ?)", (generation,)
            )

    def last_step(self) -> int | None:
        """Returns the last logged step, or `None` before the first."""
        query = "SELECT max(step) FROM scalars WHERE name = ?"  # Of each name: no row is scanned.
        return max((self._read(query, name)[0][0] for name in self.names()), default=None)

    def names(self) -> list[str]:
        """Returns the names of the logged values, sorted."""
        return self._names("scalars")

    def vector_names(self) -> list[str]:
        """Returns the names of the logged vectors, sorted."""
        return self._names("vectors")

    def scalars(self, name: str) -> list[tuple[int, float | None]]:
        """Returns the `(step, value)` pairs of one name by ascending step; `None` is a NaN."""
        return self._read("SELECT step, value FROM scalars WHERE name = ? ORDER BY step", name)

    def extent(self, name: str, first: int = -1) -> Extent | None:
        """Returns the last step and the extremes of one name, or `None` without a step.

        Args:
            name: string. The name of a logged value.
            first: integer. Leaves out the steps before this one. Defaults to `-1`.
        """
        of_name = "FROM scalars WHERE name = ?1 AND step >= ?2"
        query = f"""SELECT (SELECT min(step) {of_name}), (SELECT max(step) {of_name}),
                           min(value), max(value) {of_name}"""
        ((first_step, last_step, least, most),) = self._read(query, name, first)
        if last_step is None:
            return None
        query = "SELECT value, time FROM scalars WHERE name = ? AND step = ?"
        ((_, begin),) = self._read(query, name, first_step)
        ((last, end),) = self._read(query, name, last_step)
        return Extent(last_step, last, least, most, begin, end)

    def points(self, name: str, first: int = -1) -> tuple[Array, Array]:
        """Returns the steps and the values of one name as two arrays, by ascending step.

        Args:
            name: string. The name of a logged value.
            first: integer. Leaves out the steps before this one. Defaults to `-1`.
        """
        of_name = "FROM scalars WHERE name = ?1 AND step >= ?2"
        arguments = (name, first)
        # Values alone take two thirds of the time of pairs, and mostly each step has one.
        with self.snapshot():
            values = self._read_numbers(f"SELECT value {of_name} ORDER BY step", arguments, float)
            query = f"SELECT (SELECT min(step) {of_name}), (SELECT max(step) {of_name})"
            ((begin, end),) = self._read(query, *arguments)
            if begin is not None and end - begin + 1 == len(values):
                return np.arange(begin, end + 1), values
            query = f"SELECT step {of_name} ORDER BY step"
            return self._read_numbers(query, arguments, np.int64), values

    def times(self, name: str, first: int, last: int) -> tuple[Array, Array]:
        """Returns the logged steps of one name from `first` to `last`, and their times.

        Args:
            name: string. The name of a logged value.
            first: integer. The first step.
            last: integer. The last step.

        Returns:
            Two arrays: the steps, and the seconds since 1970.
        """
        steps_between = "WHERE name = ? AND step BETWEEN ? AND ? ORDER BY step"
        query = f"SELECT step, time FROM scalars {steps_between}"
        steps, times = self._read_numbers(query, (name, first, last), float).reshape(-1, 2).T
        return steps, times

    def vectors(self, name: str) -> list[tuple[int, Array]]:
        """Returns the `(step, vector)` pairs of one name by ascending step, in float32."""
        return list(self.iterate_vectors(name))

    def iterate_vectors(self, name: str, after: int = -1) -> Iterator[tuple[int, Array]]:
        """Yields the pairs of `vectors` one at a time.

        Args:
            name: string. The name of a logged vector.
            after: integer. Leaves out the steps up to this one. Defaults to `-1`.
        """
        query = 'SELECT step, "values" FROM vectors WHERE name = ? AND step > ? ORDER BY step'
        with self._explain_errors():
            for step, values in self._connection.execute(query, (name, after)):
                yield step, np.frombuffer(values, "<f4")

    def write_document(self, name: str, content: Any) -> None:
        """Stores a document, such as `"model_graph"`, and raises its version.

        Args:
            name: string. A document of this name is replaced.
            content: A value that JSON can hold. Numbers that are not finite become `None`.
        """
        self._write(
            "INSERT INTO documents VALUES (?, 1, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "version = version + 1, time = excluded.time, json = excluded.json",
            [(name, self._clock(), json.dumps(_without_nan(content)))],
        )

    def document(self, name: str) -> Any:
        """Returns the content of a document, or `None` if there is none of this name."""
        rows = self._read("SELECT json FROM documents WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def documents(self) -> dict[str, int]:
        """Returns the version of each document by its name. Each write raises it."""
        return dict(self._read("SELECT name, version FROM documents ORDER BY name"))

    def ask(self, name: str) -> int:
        """Stores a command, which the training that writes this record answers within a second.

        Args:
            name: string. `"stop"` ends the training after a step. `"checkpoint"` takes a
                checkpoint, if the `Trainer` has a `checkpoint_dir`. `"profile"` has a `Trainer`
                profile the next five steps, and is answered after them.

        Returns:
            The command's id.
        """
        with self._explain_errors(), self._connection:
            row = "INSERT INTO commands (name, asked) VALUES (?, ?)"
            return int(self._connection.execute(row, (name, self._clock())).lastrowid or 0)

    def answer(self, command: int, text: str) -> None:
        """Answers a command.

        Args:
            command: integer. The command's id.
            text: string. What was done, or why nothing was.
        """
        self._write(
            "UPDATE commands SET answered = ?, answer = ? WHERE id = ?",
            [(self._clock(), text, command)],
        )

    def commands(self, *, unanswered: bool = False) -> list[Command]:
        """Returns the commands in the order in which they were asked.

        Args:
            unanswered: boolean. Leaves out those that have an answer. Defaults to `False`.
        """
        where = "WHERE answered IS NULL " if unanswered else ""
        return [Command(*row) for row in self._read(f"SELECT * FROM commands {where}ORDER BY id")]

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Context manager in which all reads see the file as it is at the first of them."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.rollback()

    def close(self) -> None:
        """Closes the file. All logged values are on disk, and no other file stays beside it."""
        if not self._is_read_only:
            # Readers can't remove the log of a database that nobody writes to.
            with suppress(sqlite3.Error):  # Somebody else has it open.
                self._connection.execute("PRAGMA busy_timeout=100")
                self._connection.execute("PRAGMA journal_mode=DELETE")
        self._connection.close()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _names(self, table: str) -> list[str]:
        return [name for (name,) in self._read(_NAMES.format(table=table))]

    def _read(self, query: str, *arguments: Any) -> list[Any]:
        try:
            return self._connection.execute(query, arguments).fetchall()
        except sqlite3.DatabaseError as error:
            if str(error).startswith("no such "):  # Form 1, or nothing was written yet.
                return []
            raise self._explain(error) from error

    def _read_numbers(self, query: str, arguments: tuple[Any, ...], dtype: type) -> Array:
        """Returns all numbers of all rows as one array, in half the time of a list of rows."""
        with self._explain_errors():
            rows = self._connection.execute(query, arguments)
            return np.fromiter(chain.from_iterable(rows), dtype)

    def _write(self, query: str, rows: list[Any]) -> None:
        with self._explain_errors(), self._connection:
            self._connection.executemany(query, rows)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._explain(error) from error

    def _explain(self, error: sqlite3.DatabaseError) -> InvalidInputError:
        path = str(self.path)
        if isinstance(error, sqlite3.OperationalError):  # For example, the disk is full.
            return InvalidInputError(
                f"The run record {path!r} can't be read or written: {error}. Free its disk, or "
                "name another file."
            )
        if "malformed" in str(error):
            return InvalidInputError(
                f"The run record {path!r} is damaged: {error}. Remove it, or recover it with "
                "`sqlite3 FILE .recover`."
            )
        return InvalidInputError(f"{path!r} is not a run record: {error}. Name another file.")


def _without_nan(content: Any) -> Any:
    """Returns content for JSON, which has no NaN and no infinity."""
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
