"""The weights in a folder, by the headers of its files: one file, or shards and their index."""

import fnmatch
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_deepseek.artifacts.errors import CheckpointError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.safetensors_file import DTYPES, StoredTensor, read_header
from keras_deepseek.models.checkpoints.scaled_blocks import count_blocks

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SCALE_SUFFIX = "_scale_inv"
_MOST_NAMES = 10  # Of each kind, in an error.


class WeightsFolder:
    """What the headers of the safetensors files in a folder say; no tensor is read.

    Args:
        path: `pathlib.Path` of the folder.

    Raises:
        CheckpointError: There are no such files, or the index is no index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        """The tensors by name, but those in `torn` files."""
        self.torn: list[str] = []
        """What is wrong with files, in words."""
        self._unread: set[str] = set()  # Tensors that the index has in torn files.
        self._is_complete = True  # Whether the names of all tensors are known.
        if (path / INDEX_NAME).exists():
            self._read_shards(_read_index(path / INDEX_NAME))
        elif (path / WEIGHTS_NAME).exists():
            self._is_complete = self._read_file(path / WEIGHTS_NAME)
        else:
            raise CheckpointError(_no_weights_message(path))

    def _read_file(self, path: Path, names: set[str] | None = None) -> bool:
        """Adds the tensors of a file, or those of the names; returns whether it could be read."""
        try:
            found = read_header(path)
        except CheckpointError as error:
            self.torn.append(str(error))
            return False
        chosen = found if names is None else {n: t for n, t in found.items() if n in names}
        self.tensors |= chosen
        return True

    def _read_shards(self, weight_map: dict[str, str]) -> None:
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(shard, set()).add(name)
        for shard, names in sorted(shards.items()):
            if not (self.path / shard).exists():
                self.torn.append(f"The shard {shard!r} of the index is missing.")
            elif self._read_file(self.path / shard, names):
                continue
            self._unread |= names

    @property
    def names(self) -> set[str]:
        """The names of all tensors that are known of, those in torn files too."""
        return {*self.tensors, *self._unread}

    def check(
        self,
        entries: Sequence[CheckpointEntry],
        ignored_tensors: Sequence[str] = (),
        block_shape: tuple[int, int] = (128, 128),
    ) -> None:
        """Compares names, shapes and kinds of numbers with what a model takes.

        Args:
            entries: `CheckpointEntry`s of the model.
            ignored_tensors: strings. Patterns, as in `"*.inv_freq"`, of names that may be there and
                are passed over.
            block_shape: tuple of two integers. The blocks that float8 tensors have scales of.
                Defaults to `(128, 128)`.

        Raises:
            CheckpointError: They differ. The message names all that is missing, too much, torn, or
                of another shape.
        """
        expected = {
            name: (shape, entry)
            for entry in entries
            for name, shape in zip(entry.tensors, entry.tensor_shapes(), strict=True)
        }
        present = self.names
        known = {*expected}
        known |= {name + SCALE_SUFFIX for name in expected if self.is_scaled(name)}
        # Of a tensor that can't be read, nobody knows whether it has scales.
        known |= present & {name + SCALE_SUFFIX for name in self._unread}
        extra = sorted(
            name
            for name in present - known
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored_tensors)
        )
        shapes = [
            problem
            for name, (shape, entry) in expected.items()
            if name in self.tensors
            for problem in self._compare(name, shape, entry, block_shape)
        ]
        problems = [
            *(self.torn[:_MOST_NAMES]),
            *_name_all("missing", sorted(known - present) if self._is_complete else []),
            *_name_all("not of the model", extra),
            *_name_all("of another shape or kind", shapes, quotes=False),
        ]
        if problems:
            raise CheckpointError(
                f"The checkpoint in {str(self.path)!r} does not fit the model, and nothing was "
                f"loaded: {' '.join(problems)}"
            )

    def is_scaled(self, name: str) -> bool:
        """Returns whether a tensor is in float8, and its scales in another.

        Args:
            name: string.
        """
        return name in self.tensors and self.tensors[name].dtype.startswith("F8_E4")

    def _compare(
        self,
        name: str,
        shape: tuple[int, ...],
        entry: CheckpointEntry,
        block_shape: tuple[int, int],
    ) -> Iterator[str]:
        tensor = self.tensors[name]
        if tensor.shape != shape:
            yield f"{name!r} is {tensor.shape}, expected {shape}"
        is_integer = DTYPES[tensor.dtype].kind in "iub"
        if is_integer != ("int" in entry.variables[0].dtype):
            yield f"{name!r} is of dtype {tensor.dtype}, expected {entry.variables[0].dtype}"
        scale = self.tensors.get(name + SCALE_SUFFIX)
        if scale is not None and self.is_scaled(name):
            blocks = count_blocks(shape, block_shape) if len(shape) == len(block_shape) else None
            if scale.shape != blocks:
                rows, columns = block_shape
                yield (
                    f"{name + SCALE_SUFFIX!r} is {scale.shape}, expected {blocks} for blocks of "
                    f"{rows} by {columns} (`weight_block_size` of config.json)"
                )


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {*weight_map, *weight_map.values()}
        is_valid = all(isinstance(name, str) for name in names)
        is_valid &= all(shard.endswith(".safetensors") for shard in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is no index of shards: {error!r}.") from error
    # A name with a path in it would lead out of the folder.
    if not is_valid or not all(Path(shard).name == shard for shard in weight_map.values()):
        raise CheckpointError(f"{str(path)!r} is no index of shards: a name in it is none.")
    return dict(weight_map)


def _no_weights_message(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".h5"))]
    there = f" There is {', '.join(others[:_MOST_NAMES])}." if others else ""
    return (
        f"{str(path)!r} has neither {WEIGHTS_NAME!r} nor {INDEX_NAME!r}.{there} Expected a folder "
        "of safetensors files as Hugging Face writes them."
    )


def _name_all(what: str, names: Sequence[str], *, quotes: bool = True) -> Iterator[str]:
    if names:
        shown = [repr(name) if quotes else name for name in names[:_MOST_NAMES]]
        rest = len(names) - len(shown)
        yield f"{what}: {', '.join(shown)}{f' and {rest} more' if rest else ''}."
