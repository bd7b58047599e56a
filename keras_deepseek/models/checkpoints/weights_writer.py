"""Saving of model variables to safetensors files, one tensor at a time.

The `safetensors` package (0.8) is not used: it writes only files whose tensors are all in memory.
"""

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.data.array_pieces import as_contiguous, cut_pieces
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.checkpoints.load_display import LoadDisplay
from keras_deepseek.models.checkpoints.safetensors_file import DTYPES, LENGTH_BYTES
from keras_deepseek.models.checkpoints.weights_folder import INDEX_NAME, WEIGHTS_NAME

_NAMES = {dtype.name: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
ReadValue = Callable[[keras.Variable], Any]


@dataclass(frozen=True)
class PlannedTensor:
    """The name, dtype and shape of a tensor that will be written to a safetensors file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the tensor in the file, in bytes."""
        return int(np.prod(self.shape, dtype="int64")) * self.dtype.itemsize


def write_weights(
    folder: Path,
    entries: Sequence[CheckpointEntry],
    *,
    dtype: str | None = None,
    float32_tensors: Sequence[str] = (),
    max_shard_bytes: int,
    read_value: ReadValue,
    is_shown: bool = False,
) -> None:
    """Saves a model's variables as one safetensors file, or as shards and their index.

    Args:
        folder: An empty folder.
        entries: The checkpoint map of the model.
        dtype: The dtype of all floating-point tensors; `None` keeps the dtype of each variable.
        float32_tensors: Patterns of names of tensors that are written in float32 in any case.
        max_shard_bytes: The largest size of a file in bytes, unless a single tensor is larger.
        read_value: Function that returns the value of a variable.
        is_shown: True to show a progress bar.
    """
    plans = _order_plans(entries, dtype, float32_tensors)
    shards = _divide([planned for _, plan in plans for planned in plan], max_shard_bytes)
    names = [WEIGHTS_NAME]
    if len(shards) > 1:
        stem, suffix = Path(WEIGHTS_NAME).stem, Path(WEIGHTS_NAME).suffix
        numbers = range(1, len(shards) + 1)
        names = [f"{stem}-{number:05}-of-{len(shards):05}{suffix}" for number in numbers]
        _write_index(folder, names, shards)
    total = sum(planned.num_bytes for shard in shards for planned in shard)
    with LoadDisplay(f"Saving {folder.name}", total, is_shown=is_shown) as advance:
        arrays = _stream(plans, read_value)
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as file:
                file.write(_header(shard))
                for planned in shard:
                    _write_array(file, next(arrays), planned.dtype)
                    advance(planned.num_bytes)


def send_weights(
    entries: Sequence[CheckpointEntry],
    *,
    dtype: str | None = None,
    float32_tensors: Sequence[str] = (),
    read_value: ReadValue,
) -> None:
    """Sends this process's parts of sharded variables to the process that runs `write_weights`.

    Every process reads the variables in the same order, so give it the arguments of
    `write_weights`.
    """
    for entry, _ in _order_plans(entries, dtype, float32_tensors):
        _read_values(entry, read_value)


def write_tensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays that are in memory to a new safetensors file, by tensor name."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    planned = [PlannedTensor(name, array.dtype, array.shape) for name, array in ordered]
    with path.open("wb") as file:
        file.write(_header(planned))
        for _, array in ordered:
            _write_array(file, array, array.dtype)


def _order_plans(
    entries: Sequence[CheckpointEntry], dtype: str | None, float32_tensors: Sequence[str]
) -> list[tuple[CheckpointEntry, list[PlannedTensor]]]:
    """Returns the entries with the tensors to write for each, in the order of the file."""
    plans = [(entry, _plan(entry, dtype, float32_tensors)) for entry in entries]
    # The widest dtype comes first: all tensors are then aligned without gaps.
    return sorted(
        plans, key=lambda entry_plan: -max(planned.dtype.itemsize for planned in entry_plan[1])
    )


def _plan(
    entry: CheckpointEntry, dtype: str | None, float32_tensors: Sequence[str]
) -> list[PlannedTensor]:
    variable_dtype = np.dtype(DTYPES[_NAMES[entry.variables[0].dtype]])
    is_floating = variable_dtype.kind not in "iub"
    plan = []
    for name, shape in zip(entry.tensors, entry.tensor_shapes(), strict=True):
        chosen = DTYPES[_NAMES[dtype]] if dtype and is_floating else variable_dtype
        if is_floating and any(fnmatch.fnmatchcase(name, pattern) for pattern in float32_tensors):
            chosen = DTYPES["F32"]
        plan.append(PlannedTensor(name, chosen, shape))
    return plan


def _divide(planned: Sequence[PlannedTensor], max_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in planned:
        if shards[-1] and filled + tensor.num_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    return shards


def _write_index(
    folder: Path, names: Sequence[str], shards: Sequence[Sequence[PlannedTensor]]
) -> None:
    weight_map = {
        planned.name: name for name, shard in zip(names, shards, strict=True) for planned in shard
    }
    total = sum(planned.num_bytes for shard in shards for planned in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Sequence[PlannedTensor]) -> bytes:
    """Returns the beginning of a safetensors file, up to its first tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # `transformers` requires it.
    begin = 0
    for planned in shard:
        end = begin + planned.num_bytes
        header[planned.name] = {
            "dtype": _NAMES[planned.dtype.name],
            "shape": list(planned.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces at its end align the tensors that follow.
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _stream(
    plans: Sequence[tuple[CheckpointEntry, list[PlannedTensor]]], read_value: ReadValue
) -> Iterator[Array]:
    """Yields the tensors to write, one at a time, and frees the memory of each after it."""
    for entry, _ in plans:
        values = _read_values(entry, read_value)
        tensors = list(entry.to_tensors(values))
        del values
        while tensors:
            yield tensors.pop(0)


def _read_values(entry: CheckpointEntry, read_value: ReadValue) -> list[Array]:
    return [
        backend.current().distribution.read_whole(read_value(variable))
        for variable in entry.variables
    ]


def _write_array(file: Any, array: Array, dtype: np.dtype[Any]) -> None:
    for index in cut_pieces(array.shape, dtype.itemsize):
        piece = as_contiguous(np.asarray(array[index]), dtype)
        file.write(piece.reshape(-1).view("u1").data)
