"""The run record, which training writes and Studio reads.

It is a SQLite file with one row for each logged value. SQLite keeps it intact if the writer
crashes, and lets a reader read while training writes.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError

FORM = 1
"""The version of the tables that this release writes. A higher version is refused."""

_TABLES = """
CREATE TABLE IF NOT EXISTS properties (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS scalars (
    step INTEGER NOT NULL, name TEXT NOT NULL, value REAL, time REAL NOT NULL,
    PRIMARY KEY (name, step)
) WITHOUT ROWID;
"""


class RunRecord:
    """The numbers of one training run, by name and step.

    A value that is logged again for the same step replaces the first one: a resumed run overwrites
    its steps.

    Args:
        path: The SQLite file. It and its parents are made if they are missing.
        clock: Function that returns the time in seconds. Defaults to `time.time`.

    Raises:
        InvalidInputError: The file is not a run record, or is of a newer version.

    Example:

    >>> import tempfile
    >>> with RunRecord(tempfile.mkdtemp() + "/run.sqlite") as record:
    ...     record.log(1, {"loss": 0.5})
    ...     record.log(2, {"loss": 0.25})
    ...     record.scalars("loss")
    [(1, 0.5), (2, 0.25)]
    """

    def __init__(
        self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Keras may call from several threads; the callback serializes the calls.
            self._connection = sqlite3.connect(self.path, timeout=30.0, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise InvalidInputError(
                f"No run record can be opened at {str(self.path)!r}: {error}. Name another file."
            ) from error
        try:
            self._open()
        except sqlite3.OperationalError as error:  # For example, the disk is full.
            self._connection.close()
            raise InvalidInputError(
                f"No run record can be written at {str(self.path)!r}: {error}. Name another file."
            ) from error
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise InvalidInputError(
                f"{str(self.path)!r} is not a run record: {error}. Name another file."
            ) from error
        except InvalidInputError:
            self._connection.close()
            raise

    def _open(self) -> None:
        tables = {
            name
            for (name,) in self._connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        }
        if tables and not {"properties", "scalars"} <= tables:
            raise InvalidInputError(
                f"{str(self.path)!r} is another program's database, with the tables "
                f"{sorted(tables)}. Name another file."
            )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(_TABLES)
        form = self.properties().setdefault("form", FORM)
        if form > FORM:
            raise InvalidInputError(
                f"{str(self.path)!r} has version {form}; this release reads versions up to {FORM}. "
                "Upgrade keras_deepseek."
            )
        self.describe({"form": form})

    def describe(self, properties: Mapping[str, Any]) -> None:
        """Stores properties of the run as a whole, by name.

        Args:
            properties: Values that JSON can hold.
        """
        rows = [(name, json.dumps(value)) for name, value in properties.items()]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO properties VALUES (?, ?)", rows)

    def properties(self) -> dict[str, Any]:
        """Returns the properties that `describe` stored."""
        rows = self._connection.execute("SELECT name, value FROM properties")
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
        rows = [
            (step, name, float(value), now)
            for step, values in steps
            for name, value in values.items()
        ]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO scalars VALUES (?, ?, ?, ?)", rows)

    def discard_after(self, step: int) -> None:
        """Removes the values of later steps, which a run that resumes at `step` logs again.

        Args:
            step: integer. The last step that stays.
        """
        with self._connection:
            self._connection.execute("DELETE FROM scalars WHERE step > ?", (step,))

    def last_step(self) -> int | None:
        """Returns the last logged step, or `None` before the first."""
        ((step,),) = self._connection.execute("SELECT max(step) FROM scalars")
        return None if step is None else int(step)

    def names(self) -> list[str]:
        """Returns the logged names, sorted."""
        with closing(
            self._connection.execute("SELECT DISTINCT name FROM scalars ORDER BY name")
        ) as rows:
            return [name for (name,) in rows]

    def scalars(self, name: str) -> list[tuple[int, float | None]]:
        """Returns the `(step, value)` pairs of one name by ascending step; `None` is a NaN."""
        query = "SELECT step, value FROM scalars WHERE name = ? ORDER BY step"
        return list(self._connection.execute(query, (name,)))

    def close(self) -> None:
        """Closes the file. All logged values are on disk."""
        self._connection.close()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
