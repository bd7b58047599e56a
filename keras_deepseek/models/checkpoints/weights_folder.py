"""The safetensors weights in a folder: a single file, or shards with an index."""

import fnmatch
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.safetensors_file import DTYPES, StoredTensor, read_header
from keras_deepseek.models.checkpoints.scaled_tensor import (
    DEFAULT_BLOCK_SHAPE,
    ScaledTensor,
    list_scale_names,
    takes_scales,
)

WEIGHTS_NAME = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX_NAME = f"model{INDEX_SUFFIX}"
_MOST_NAMES = 10  # The names of each kind in an error.


class WeightsFolder:
    """The tensors in a folder's safetensors files, known from the headers alone.

    A folder may hold both a single file and an index, if sharded weights were later saved as one
    file. The single file is then read, as in transformers, which leaves the old index there.
    `chosen` names another file or index.
    """

    def __init__(self, path: Path, chosen: str | None = None) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        """The tensors by name, without those in damaged files."""
        self.damages: list[str] = []
        """Descriptions of damaged files."""
        self._unread: set[str] = set()  # Tensors of damaged files, from the index.
        self._is_complete = True  # True if the names of all tensors are known.
        names = (WEIGHTS_NAME, INDEX_NAME) if chosen is None else (chosen,)
        file_name = next((name for name in names if (path / name).is_file()), None)
        if file_name is None:
            raise CheckpointError(_no_weights_message(path, names))
        if file_name.endswith(INDEX_SUFFIX):
            self._read_shards(_read_index(path / file_name))
        else:
            self._is_complete = self._read_file(path / file_name)

    def _read_file(self, path: Path, names: set[str] | None = None) -> bool:
        """Adds the tensors in one file's header; returns false if that file is damaged."""
        try:
            header = read_header(path)
        except CheckpointError as error:
            self.damages.append(str(error))
            return False
        chosen = header if names is None else {n: t for n, t in header.items() if n in names}
        self.tensors |= chosen
        return True

    def _read_shards(self, weight_map: dict[str, str]) -> None:
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            shards.setdefault(shard, set()).add(name)
        for shard, names in sorted(shards.items()):
            if not (self.path / shard).exists():
                self.damages.append(f"The shard {shard!r} of the index is missing.")
            elif self._read_file(self.path / shard, names):
                continue
            self._unread |= names

    @property
    def names(self) -> set[str]:
        """The names of all tensors that the headers or the index list, damaged files included."""
        return {*self.tensors, *self._unread}

    def check(
        self,
        entries: Sequence[CheckpointEntry],
        ignored_tensors: Sequence[str] = (),
        block_shape: tuple[int, int] = DEFAULT_BLOCK_SHAPE,
    ) -> None:
        """Raises a `CheckpointError` if names, shapes or dtypes differ from what a model expects.

        `ignored_tensors` are patterns of names that may be in the files, as in `"*.inv_freq"`.
        `block_shape` is that of the blocks of a float8 tensor that share a scale.
        """
        present = self.names
        expected = dict(_expected_tensors(entries, present))  # Shape and entry by tensor name.
        expected_names = {*expected}
        # A quantized tensor has a second one with its scales.
        expected_names |= {
            self.scale_name(name)
            for name, (_, entry) in expected.items()
            if name in self.tensors and takes_scales(self.tensors[name].dtype, _dtype_of(entry))
        }
        # A tensor that can't be read may have scales or not.
        expected_names |= present & {
            scales for name in self._unread for scales in list_scale_names(name)
        }
        extra = sorted(
            name
            for name in present - expected_names
            if not self._is_empty(name)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored_tensors)
        )
        mismatches = [
            problem
            for name, (shape, entry) in expected.items()
            if name in self.tensors
            for problem in self._compare(name, shape, entry, block_shape)
        ]
        missing = sorted(expected_names - present) if self._is_complete else []
        problems = [
            *(self.damages[:_MOST_NAMES]),
            *_name_all("missing", missing),
            *_name_all("unexpected", extra),
            *_name_all("wrong shape or dtype", mismatches, quotes=False),
        ]
        if problems:
            raise CheckpointError(
                f"The checkpoint in {str(self.path)!r} does not fit the model, and nothing was "
                f"loaded: {' '.join(problems)}"
            )

    def scale_name(self, name: str) -> str:
        """Returns the name of the tensor that holds a tensor's scales, or should hold them."""
        names = list_scale_names(name)
        present = [
            candidate
            for candidate in names
            if candidate in self.tensors or candidate in self._unread
        ]
        # A missing one is reported by the naming scheme of the other tensors.
        return present[0] if present else names[-1 if self._has_dotted_scales else 0]

    def find_scaled(
        self, name: str, dtype: str, block_shape: tuple[int, int]
    ) -> ScaledTensor | None:
        """Returns a float8 or float4 tensor with its scales; `None` for tensors of other dtypes.

        `dtype` is that of the variable.
        """
        tensor = self.tensors[name]
        if not takes_scales(tensor.dtype, dtype):
            return None
        scale_name = self.scale_name(name)
        return ScaledTensor(tensor, scale_name, self.tensors.get(scale_name), block_shape)

    def _is_empty(self, name: str) -> bool:
        """Returns true for a tensor with no elements, as transformers writes for 0 units."""
        return name in self.tensors and not self.tensors[name].num_bytes

    @cached_property
    def _has_dotted_scales(self) -> bool:
        names, suffix = self.names, ".scale"
        return any(
            name.endswith(suffix) and f"{name.removesuffix(suffix)}.weight" in names
            for name in names
        )

    def _compare(
        self,
        name: str,
        shape: tuple[int, ...],
        entry: CheckpointEntry,
        block_shape: tuple[int, int],
    ) -> Iterator[str]:
        """Yields what differs between a tensor and a checkpoint entry, as texts for an error."""
        tensor, dtype = self.tensors[name], _dtype_of(entry)
        scaled = self.find_scaled(name, dtype, block_shape)
        if scaled is not None:
            yield from scaled.compare(name, shape)
            return
        if tensor.shape != shape:
            yield f"{name!r} has shape {tensor.shape}, expected {shape}"
        if (DTYPES[tensor.dtype].kind in "iub") != ("int" in dtype):
            yield f"{name!r} has dtype {tensor.dtype}, expected {dtype}"


def _expected_tensors(
    entries: Sequence[CheckpointEntry], present: set[str]
) -> Iterator[tuple[str, tuple[tuple[int, ...], CheckpointEntry]]]:
    """Yields the name, shape and entry of each tensor to read, tied copies in the file included."""
    for entry in entries:
        shapes = entry.tensor_shapes()
        for name, shape in zip(entry.tensors, shapes, strict=True):
            yield name, (shape, entry)
        for name in entry.copies:
            if name in present:
                yield name, (shapes[0], entry)


def _dtype_of(entry: CheckpointEntry) -> str:
    return str(entry.variables[0].dtype)


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {*weight_map, *weight_map.values()}
        is_valid = all(isinstance(name, str) for name in names)
        is_valid &= all(shard.endswith(".safetensors") for shard in weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is not an index of shards: {error!r}.") from error
    # A path in the name could point outside of the folder.
    if not is_valid or not all(Path(shard).name == shard for shard in weight_map.values()):
        raise CheckpointError(f"{str(path)!r} is not an index of shards: it has an invalid name.")
    return dict(weight_map)


def _no_weights_message(path: Path, expected: Sequence[str]) -> str:
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    weight_files = [
        name for name in names if name.endswith((".safetensors", ".bin", ".pth", ".h5"))
    ]
    there = f" It has {', '.join(weight_files[:_MOST_NAMES])}." if weight_files else ""
    if len(expected) == 1:
        return (
            f"{str(path)!r} has no {expected[0]!r}, which its config.json names as "
            f"`transformers_weights`.{there} Add the file, or remove the key."
        )
    return (
        f"{str(path)!r} has neither {WEIGHTS_NAME!r} nor {INDEX_NAME!r}.{there} Expected a folder "
        "of safetensors files as Hugging Face writes them."
    )


def _name_all(what: str, names: Sequence[str], *, quotes: bool = True) -> Iterator[str]:
    if names:
        listed = [repr(name) if quotes else name for name in names[:_MOST_NAMES]]
        num_unlisted = len(names) - len(listed)
        yield f"{what}: {', '.join(listed)}{f' and {num_unlisted} more' if num_unlisted else ''}."
