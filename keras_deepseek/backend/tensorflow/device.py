"""Which devices TensorFlow sees."""

from contextlib import AbstractContextManager

import keras
import tensorflow as tf


def count_devices(kind: str) -> int:
    """Returns how many devices of a kind (`"cpu"`, `"gpu"`, `"tpu"`) there are."""
    return len(tf.config.list_logical_devices(kind.upper()))


def on_device(device: str) -> AbstractContextManager[object]:
    """Returns a context in which Keras creates variables and computes on a device as `"gpu:0"`."""
    context: AbstractContextManager[object] = keras.device(device)
    return context


def read_device_memory() -> dict[str, int] | None:
    """Returns the bytes that the accelerator's allocator holds; `None` where none counts."""
    devices = tf.config.list_logical_devices("GPU")
    if not devices:
        return None
    found = tf.config.experimental.get_memory_info(devices[0].name.removeprefix("/device:"))
    return {"in_use": int(found["current"]), "peak": int(found["peak"])}


def read_device_name() -> str | None:
    """Returns the name that the maker gave the accelerator; `None` on a CPU."""
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    name = tf.config.experimental.get_device_details(devices[0]).get("device_name")
    return None if name is None else str(name)
