"""A checkpoint: the whole state of a training in one file.

`training` defines the state; this module defines the file: a zip of `.npy` arrays and a
`state.json`, each with a checksum. It is written under another name, flushed to the disk, and then
renamed. So a file is either complete or is detected as damaged.
"""

import base64
import contextlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.artifacts.staging_folder import flush_to_disk
from keras_deepseek.errors import CheckpointError, InvalidInputError, NotSupportedError

FORM = 1
"""The version of the files that this release writes. A higher version is refused."""

PARTIAL = ".partial"
"""The ending of a file's name until it is complete."""

_KIND = "$kind"
"""The key that marks values which JSON has no type for. A dict that holds this key itself is
stored as a list of pairs."""

_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "dict": dict}

_MAX_DEPTH = 64

_MAX_WORD = 2**53
"""Larger integers are written in hexadecimal, since some readers of JSON round them."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a step.

    Args:
        step: integer. The number of steps made before.
        state: dict. Nested values, see `pack_state`.
        score: float. The score by which the best checkpoints are kept. Defaults to `None`, not
            measured.

    Example:

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "first"
    >>> Checkpoint(step=3, state={"weights": np.ones(2)}).write(path)
    >>> Checkpoint.read(path).state
    {'weights': array([1., 1.])}
    """

    step: int
    state: dict[str, Any]
    score: float | None = None

    def write(self, path: Path) -> None:
        """Writes the file; if that fails or is interrupted, an older file of that name stays.

        Args:
            path: The file.

        Raises:
            CheckpointError: The disk is full, or the file can't be written for another reason.
        """
        partial = path.with_name(path.name + PARTIAL)
        try:
            with partial.open("wb") as file:
                self._write_to(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            flush_to_disk(path.parent)
        except (OSError, ValueError) as error:  # A ValueError: the zip could not be closed.
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"The checkpoint of step {self.step} can't be written to {str(path)!r}: {error}. "
                "Free some space. Earlier checkpoints, if there are any, are not damaged: continue "
                "from the last one with fit(..., resume=True)."
            ) from error

    def _write_to(self, file: IO[bytes]) -> None:
        packed, arrays = pack_state(self.state)
        content = {
            "form": FORM,
            "step": self.step,
            "score": self.score,
            # NumPy's file format has no dtypes from outside of NumPy, such as bfloat16.
            "dtypes": [str(array.dtype) for array in arrays],
            "state": packed,
        }
        with ZipFile(file, "w") as archive:
            for index, array in enumerate(arrays):
                with archive.open(_array_name(index), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _plain(array), allow_pickle=False)
            archive.writestr("state.json", json.dumps(content))

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Reads a file that `write` wrote.

        Args:
            path: The file.

        Returns:
            A `Checkpoint`.

        Raises:
            CheckpointError: The file is damaged.
            NotSupportedError: The file is of a newer version.
        """
        with _opened(path) as (archive, content):
            arrays = []
            for index, dtype in enumerate(content["dtypes"]):
                with archive.open(_array_name(index)) as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
                    member.read()  # The checksum is compared at the end of the member.
                arrays.append(array.view(_find_dtype(dtype)))
            return cls(content["step"], unpack_state(content["state"], arrays), content["score"])

    @classmethod
    def read_score(cls, path: Path) -> float | None:
        """Reads only the score, without the arrays.

        Args:
            path: The file.

        Returns:
            A float, or `None` if there is no score.

        Raises:
            CheckpointError: The file is damaged.
            NotSupportedError: The file is of a newer version.
        """
        with _opened(path) as (_, content):
            score: float | None = content["score"]
            return score


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[ZipFile, dict[str, Any]]]:
    """Context manager that opens a checkpoint; turns errors into a `CheckpointError`."""
    try:
        with ZipFile(path) as archive:
            content = json.loads(archive.read("state.json"))
            _check_form(path, content["form"])
            yield archive, content
    except NotSupportedError:
        raise
    except (
        *(BadZipFile, EOFError, LookupError, NotImplementedError, OSError, RuntimeError),
        *(OverflowError, TypeError, ValueError, zlib.error),
    ) as error:
        raise CheckpointError(f"The checkpoint {str(path)!r} is damaged: {error}.") from error


def _check_form(path: Path, form: int) -> None:
    if form > FORM:
        raise NotSupportedError(
            f"{str(path)!r} has version {form}; this release reads versions up to {FORM}. Upgrade "
            "keras_deepseek."
        )


def _array_name(index: int) -> str:
    return f"{index}.npy"


def _find_dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise NotSupportedError(
            f"NumPy does not know the dtype {name!r}. Run `import ml_dtypes` before reading it."
        ) from error


def _plain(array: Array) -> Array:
    """Returns a view of an array in a dtype that `.npy` files can store, with the same bytes."""
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(f"u{array.dtype.itemsize}")


def pack_state(state: Any) -> tuple[Any, list[Array]]:
    """Converts nested values into JSON values and a list of arrays.

    In JSON, the index in the list stands for an array. The values may be `None`, booleans, numbers,
    strings, bytes, NumPy arrays and scalars, and dicts, lists, tuples and sets of them.
    """
    arrays: list[Array] = []
    return _pack(state, arrays, 0), arrays


def unpack_state(packed: Any, arrays: Sequence[Array]) -> Any:
    """Restores the nested values from the two results of `pack_state`."""
    if isinstance(packed, list):
        return [unpack_state(value, arrays) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if _KIND not in packed:
        return {name: unpack_state(value, arrays) for name, value in packed.items()}
    kind, value = packed[_KIND], packed["value"]
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](unpack_state(value, arrays))
    readers: dict[str, Callable[[Any], Any]] = {
        "array": lambda index: arrays[index],
        "scalar": lambda index: arrays[index][()],
        "float": float,
        "integer": lambda text: int(text, 16),
        "bytes": base64.b64decode,
    }
    return readers[kind](value)


def _pack(value: Any, arrays: list[Array], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise InvalidInputError(f"The state is nested more than {_MAX_DEPTH} levels deep.")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) <= _MAX_WORD else _mark("integer", hex(value))
    if type(value) is float:
        return value if math.isfinite(value) else _mark("float", repr(value))
    if type(value) is bytes:
        return _mark("bytes", base64.b64encode(value).decode("ascii"))
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        arrays.append(np.asarray(value))
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return _mark(kind, len(arrays) - 1)
    return _pack_items(value, arrays, depth)


def _pack_items(value: Any, arrays: list[Array], depth: int) -> Any:
    if isinstance(value, Mapping):
        if all(type(name) is str for name in value) and _KIND not in value:
            return {name: _pack(item, arrays, depth + 1) for name, item in value.items()}
        pairs = [tuple(pair) for pair in value.items()]
        return _mark("dict", _pack(pairs, arrays, depth + 1))
    if type(value) in (list, tuple, set):
        items = [_pack(item, arrays, depth + 1) for item in value]
        return items if type(value) is list else _mark(type(value).__name__, items)
    raise InvalidInputError(
        f"A {type(value).__name__} can't be saved: {value!r:.80}. Expected numbers, strings, NumPy "
        "arrays, and dicts, lists, tuples and sets of them."
    )


def _mark(kind: str, value: Any) -> dict[str, Any]:
    return {_KIND: kind, "value": value}
