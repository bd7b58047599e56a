"""Memory on PyTorch: what a step keeps of it, and that it ran out."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of a device, or the machine's, ran out."""
    # On a CPU it is a plain RuntimeError, in other words on each system.
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error).lower() for each in words)
    )


def release_memory() -> None:
    """Gives back the memory that nothing uses and that the framework holds in reserve."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def count_kept_bytes(
    compute: Callable[[], tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
    batch: Any,
) -> int:
    """Returns the bytes that `differentiate` keeps from its forward for its backward pass."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> _Kept:
        kept.add(one := _Kept(tensor))
        return one

    there = [variable.value for variable in (*variables, *states)]
    there += [array for array in keras.tree.flatten(batch) if isinstance(array, torch.Tensor)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        result = compute()  # What it returns holds what is kept.
    storages = {one.tensor.untyped_storage() for one in kept}
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    for tensor in there:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(sizes.values())


class _Kept:
    """A tensor that is kept for the backward pass, for as long as it is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
