"""Which devices PyTorch sees."""

from contextlib import AbstractContextManager

import keras
import torch


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""
    if kind == "gpu":
        return int(torch.cuda.device_count())
    return 1 if kind == "cpu" else 0


def on_device(device: str) -> AbstractContextManager[object]:
    """Returns a context in which Keras creates variables and computes on a device as `"gpu:0"`."""
    # To PyTorch the one CPU is not the same device as its first, and each operation would copy.
    context: AbstractContextManager[object] = keras.device("cpu" if device == "cpu:0" else device)
    return context


def read_device_memory() -> dict[str, int] | None:
    """Returns the bytes that the accelerator's allocator holds; `None` where none counts."""
    if not torch.cuda.is_available():
        return None
    return {
        "in_use": int(torch.cuda.memory_allocated()),
        "peak": int(torch.cuda.max_memory_allocated()),
        "limit": int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory),
    }


def read_device_name() -> str | None:
    """Returns the name that the maker gave the accelerator; `None` on a CPU."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
