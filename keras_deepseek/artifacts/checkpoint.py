"""A checkpoint: the whole state of a training in one file, or in one of each process.

`training` defines the state; this module defines the file: a zip of `.npy` arrays and a
`state.json`, each with a checksum. It is written under another name, flushed to the disk, and then
renamed. So a file is either complete or is detected as damaged.

Where no process has the whole state, rank 0 writes it with its own pieces of the divided arrays,
and each other rank a file with its pieces, in the same order.
"""

import contextlib
import functools
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np

from keras_deepseek.artifacts.divided_array import ArrayPieces, StoredArray
from keras_deepseek.artifacts.packed_state import pack_state, unpack_state
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.artifacts.staging_folder import flush_to_disk
from keras_deepseek.errors import CheckpointError, InvalidInputError, NotSupportedError

FORM = 2
"""The version of the files that this release writes. A higher version is refused."""

PARTIAL = ".partial"
"""The ending of a file's name until it is complete."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a step.

    Args:
        step: integer. The number of steps made before.
        state: dict. Nested values, see `pack_state`. A rank above 0 gives its `ArrayPieces` alone,
            in the order in which they are in the state of rank 0.
        score: float. The score by which the best checkpoints are kept. Defaults to `None`, not
            measured.
        rank: integer. The process whose file this is. Defaults to `0`.
        num_ranks: integer. The number of files of the checkpoint. Defaults to `1`.
        save_id: string. The same in these files, and in no others. Defaults to `""`.
        best_is: `"min"` or `"max"`. Whether a lower or a higher score is better. Defaults to
            `None`, not known.

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
    rank: int = 0
    num_ranks: int = 1
    save_id: str = ""
    best_is: Literal["min", "max"] | None = None

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
        members: dict[str, Array] = {}
        divided = []
        for index, array in enumerate(arrays):
            if not isinstance(array, ArrayPieces):
                members[_array_name(index)] = array
                continue
            boxes = {f"{index}.{number}.npy": box for number, (box, _) in enumerate(array.pieces)}
            members |= zip(boxes, (piece for _, piece in array.pieces), strict=True)
            divided.append({"index": index, "shape": array.shape, "boxes": boxes})
        content = {
            "form": FORM,
            **{name: getattr(self, name) for name in _OF_ALL_FILES},
            "rank": self.rank,
            "score": self.score,
            "best_is": self.best_is,
            # NumPy's file format has no dtypes from outside of NumPy, such as bfloat16.
            "dtypes": [str(array.dtype) for array in arrays],
            "divided": divided,
            "state": packed,
        }
        with ZipFile(file, "w") as archive:
            for name, array in members.items():
                with archive.open(name, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _plain(array), allow_pickle=False)
            archive.writestr("state.json", json.dumps(content))

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Reads a file that `write` wrote.

        Divided arrays are not read yet: each is a `StoredArray`, which reads what is asked of it.

        Args:
            path: The file, of rank 0. Those of the other ranks are beside it.

        Returns:
            A `Checkpoint`.

        Raises:
            CheckpointError: The file, or that of another rank, is damaged.
            InvalidInputError: That of another rank is missing, or is of another checkpoint.
            NotSupportedError: The file is of a newer version.
        """
        with _opened(path) as (archive, content):
            divided = {entry["index"] for entry in content.get("divided", ())}
            arrays: list[Any] = [
                None if index in divided else _read_member(archive, _array_name(index), dtype)
                for index, dtype in enumerate(content["dtypes"])
            ]
            packed, scored = content["state"], _scored(content)
        if divided:
            for index, array in _divided_arrays(path, content):
                arrays[index] = array
        return cls(state=unpack_state(packed, arrays), **scored)

    @classmethod
    def read_score(cls, path: Path) -> "Checkpoint":
        """Reads the step and the score, without the arrays.

        Args:
            path: The file.

        Returns:
            A `Checkpoint` without a state.

        Raises:
            CheckpointError: The file is damaged.
            NotSupportedError: The file is of a newer version.
        """
        with _opened(path) as (_, content):
            return cls(state={}, **_scored(content))


_OF_ALL_FILES = ("step", "num_ranks", "save_id")
"""The fields that are the same in all files of a checkpoint."""

_SCORE = ("score", "best_is")


def _scored(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a `Checkpoint` other than its state, as far as a file has them."""
    return {name: content[name] for name in (*_OF_ALL_FILES, *_SCORE) if name in content}


def part_name(step: int, save_id: str, rank: int) -> str:
    """Returns the name of the file of a rank, until the checkpoint has the files of all ranks."""
    return f"step_{step:010d}.{save_id}.rank_{rank}"


def _divided_arrays(path: Path, content: dict[str, Any]) -> Iterator[tuple[int, StoredArray]]:
    """Yields the divided arrays of a checkpoint, by index, from the files of all ranks."""
    archives = OpenArchives()
    files = [(path, content["divided"])]
    for rank in range(1, content["num_ranks"]):
        part_path = path.with_name(part_name(content["step"], content["save_id"], rank))
        files.append((part_path, _read_part(part_path, rank, content, path.name)))
    for number, entry in enumerate(content["divided"]):
        index, pieces = entry["index"], []
        dtype, shape = content["dtypes"][index], entry["shape"]
        for file, divided in files:
            shape = divided[number]["shape"] if divided[number]["boxes"] else shape
            for name, box in divided[number]["boxes"].items():
                read = functools.partial(archives.read, file, name, dtype)
                pieces.append((tuple(map(tuple, box)), read))
        name = f"The checkpoint {str(path)!r}"
        yield index, StoredArray(tuple(shape), _find_dtype(dtype), pieces, name)


def _read_part(path: Path, rank: int, content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Returns what the file of another rank says of the divided arrays."""
    expected_file = f"the file of rank {rank} of {content['num_ranks']} of {name!r}"
    advice = f"Copy it back, or remove {name!r} to use the checkpoint before it."
    if not path.exists():
        raise InvalidInputError(f"{str(path)!r}, {expected_file}, is missing. {advice}")
    with _opened(path) as (_, part):
        divided: list[dict[str, Any]] = part["divided"]
        is_of = all(part[field] == content[field] for field in _OF_ALL_FILES)
        is_of = is_of and part["rank"] == rank and len(divided) == len(content["divided"])
        name = "rank {rank} of {num_ranks}, step {step} and id {save_id!r}".format_map(part)
    if not is_of:
        raise InvalidInputError(
            f"{str(path)!r} should be {expected_file}, and is that of {name}. {advice}"
        )
    return divided


class OpenArchives:
    """The files of a checkpoint, which are opened when an array is read from them."""

    def __init__(self) -> None:
        self._archives: dict[Path, ZipFile] = {}

    def __reduce__(self) -> Any:
        return OpenArchives, ()  # Another process opens them itself.

    def read(self, path: Path, name: str, dtype: str) -> Array:
        """Reads an array; its checksum is compared."""
        with _damage_errors(path, " Remove the checkpoint to use the one before it."):
            if path not in self._archives:
                self._archives[path] = ZipFile(path)
            return _read_member(self._archives[path], name, dtype)


def _read_member(archive: ZipFile, name: str, dtype: str) -> Array:
    with archive.open(name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        member.read()  # The checksum is compared at the end of the member.
    return array.view(_find_dtype(dtype))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[ZipFile, dict[str, Any]]]:
    """Context manager that opens a checkpoint; turns errors into a `CheckpointError`."""
    with _damage_errors(path), ZipFile(path) as archive:
        content = json.loads(archive.read("state.json"))
        _check_form(path, content["form"])
        yield archive, content


@contextlib.contextmanager
def _damage_errors(path: Path, advice: str = "") -> Iterator[None]:
    """Context manager that turns errors of a damaged file into a `CheckpointError`."""
    try:
        yield
    except NotSupportedError:
        raise
    except (
        *(BadZipFile, EOFError, LookupError, NotImplementedError, OSError, RuntimeError),
        *(OverflowError, TypeError, ValueError, zlib.error),
    ) as error:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is damaged: {error}.{advice}"
        ) from error


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
