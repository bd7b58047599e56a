"""The batches that recorded functions get, and the results that are compared."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from keras_deepseek.backend.keras_private.masks import read_mask
from keras_deepseek.backend.keras_private.variables import keras_torch_device
from keras_deepseek.backend.torch.generators import read_generators
from keras_deepseek.backend.torch.recording import Recording
from keras_deepseek.backend.torch.tape import leaves_of, map_leaves

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers of so many bytes."""


class Batch:
    """A batch as the key of a recording and its inputs.

    Args:
        structure: The batch: a structure of tensors and `None`.
        has_state: boolean. Its first element is a state that a function may write to. Integers
            among the others are then tensors for a recording.
    """

    def __init__(self, structure: Any, *, has_state: bool = False) -> None:
        self.structure = structure
        self.tensors: list[torch.Tensor] = []
        self._indices: dict[int, int] = {}
        self._has_state = has_state
        self.key = self._describe(structure)
        """`None` if there can be no recording."""

    def copy(self) -> "Batch":
        """Returns a copy if it has a state, else the batch itself."""
        if not self._has_state:
            return self
        return Batch(self._with(_copy_memory(self.tensors)), has_state=True)

    def as_recorded(self) -> Any:
        """Returns the batch with tensors in place of integers."""
        return self._with(self.tensors) if self._has_state else self.structure

    def _with(self, tensors: Sequence[torch.Tensor]) -> Any:
        iterator, kinds = iter(tensors), (torch.Tensor, int)
        return map_leaves(lambda x: next(iterator) if type(x) in kinds else x, self.structure)

    def readable(self) -> list[torch.Tensor]:
        """Returns the tensors that a caller may still read: a state is given away."""
        state = leaves_of(self.structure[0] if self._has_state else self.structure)
        return self.tensors[sum(isinstance(leaf, torch.Tensor) for leaf in state) :]

    def _describe(self, structure: Any) -> Any:
        if type(structure) is torch.Tensor:
            return self._describe_tensor(structure)
        if structure is None:
            return "none"
        if self._has_state and type(structure) is int:
            number = torch.tensor(structure, dtype=torch.int32, device=keras_torch_device())
            self.tensors.append(number)
            return "integer"
        if isinstance(structure, dict):
            keys, elements = [*structure], [*structure.values()]
        elif isinstance(structure, list | tuple):
            keys, elements = [type(structure)], [*structure]
        else:
            return None
        parts = [self._describe(element) for element in elements]
        return None if None in parts else (*keys, *parts)

    def _describe_tensor(self, tensor: torch.Tensor) -> Any:
        is_plain = tensor.layout is torch.strided and not tensor.requires_grad
        if (
            not is_plain
            or read_mask(tensor) is not None
            or (tensor.is_inference() and not torch.is_inference_mode_enabled())
        ):
            return None
        # The same tensor may come twice, as `x` and `y`. A write to it also changes its views.
        identity = tensor.untyped_storage()._cdata if self._has_state else id(tensor)  # noqa: SLF001
        index = self._indices.setdefault(identity, len(self.tensors))
        offset = 0
        if index < len(self.tensors):
            offset = tensor.storage_offset() - self.tensors[index].storage_offset()
        self.tensors.append(tensor)
        return index, offset, *_layout_of(tensor)


def _copy_memory(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns copies of tensors with the same layouts, and those share memory that do so now."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        address = storage._cdata  # noqa: SLF001
        if address not in storages:
            storages[address] = storage.clone()
        copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        layout = tensor.storage_offset(), tensor.shape, tensor.stride()
        copies.append(copy.set_(storages[address], *layout))
    return copies


class Outcome:
    """The results of a run, with what it has written and drawn."""

    def __init__(self, recording: Recording, result: Any) -> None:
        memory = {tensor.untyped_storage()._cdata for tensor in recording.written}  # noqa: SLF001
        self.leaves = list(leaves_of(result))
        for index, leaf in enumerate(self.leaves):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata in memory:  # noqa: SLF001
                self.leaves[index] = leaf.detach().clone()
        self.written = list(map(digest, recording.written))
        self.generators = read_generators()

    def difference(self, other: "Outcome") -> float:
        """Returns the largest difference, as a part of the largest number of a tensor."""
        if len(self.leaves) != len(other.leaves):
            return math.inf
        return max(map(_difference, self.leaves, other.leaves), default=0.0)


def _difference(leaf: Any, other: Any) -> float:
    """Returns the difference of two tensors: infinity if it can't come from rounding."""
    if not isinstance(leaf, torch.Tensor) or not isinstance(other, torch.Tensor):
        is_number = isinstance(leaf, bool | int | float | str)
        return 0.0 if leaf is other or (is_number and leaf == other) else math.inf
    if _layout_of(leaf) != _layout_of(other):
        return math.inf
    leaf, other = leaf.detach(), other.detach()
    if leaf.is_complex():
        leaf, other = torch.view_as_real(leaf), torch.view_as_real(other)
    bits = _INTEGERS[leaf.itemsize]
    if torch.equal(leaf.view(bits), other.view(bits)):
        return 0.0
    if not leaf.is_floating_point():
        return math.inf
    difference = float((leaf.double() - other.double()).abs().max() / other.abs().max())
    is_rounding = difference <= math.sqrt(torch.finfo(leaf.dtype).eps)
    return difference if is_rounding else math.inf


def _layout_of(tensor: torch.Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def digest(tensor: torch.Tensor) -> str:
    """Returns a text that is equal for two tensors if their layout and bits are."""
    memory = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return f"{_layout_of(tensor)} {hashlib.blake2b(memory).hexdigest()}"
