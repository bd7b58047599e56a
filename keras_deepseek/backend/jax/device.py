"""Which devices JAX sees."""

from contextlib import AbstractContextManager

import jax
import keras


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""
    try:
        return len(jax.local_devices(backend=kind))
    except RuntimeError:  # JAX's word for a platform that it has no client for.
        return 0


def on_device(device: str) -> AbstractContextManager[object]:
    """Returns a context in which Keras creates variables and computes on a device as `"gpu:0"`."""
    context: AbstractContextManager[object] = keras.device(device)
    return context


def read_device_memory() -> dict[str, int] | None:
    """Returns the bytes that the accelerator's allocator holds; `None` where none counts."""
    found = jax.local_devices()[0].memory_stats()  # JAX has none for a CPU.
    if not found:
        return None
    names = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use", "limit": "bytes_limit"}
    return {name: int(found[key]) for name, key in names.items() if key in found}


def read_device_name() -> str | None:
    """Returns the name that the maker gave the accelerator; `None` on a CPU."""
    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else str(device.device_kind)
