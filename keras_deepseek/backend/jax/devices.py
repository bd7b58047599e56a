"""The devices of JAX."""

import os

import jax

from keras_deepseek.backend.protocols.devices import Devices


class JaxDevices(Devices):
    """The JAX implementation of `Devices`."""

    def count_devices(self, kind: str) -> int:
        try:
            return len(jax.local_devices(backend=kind))
        except RuntimeError:  # JAX raises it for a platform without a client.
            return 0

    def read_device_memory(self) -> dict[str, int] | None:
        stats = jax.local_devices()[0].memory_stats()  # JAX returns `None` for a CPU.
        if not stats:
            return None
        names = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use", "limit": "bytes_limit"}
        return {name: int(stats[key]) for name, key in names.items() if key in stats}

    def read_device_name(self) -> str | None:
        device = jax.local_devices()[0]
        return None if device.platform == "cpu" else str(device.device_kind)

    def limit_threads(self, threads: int) -> None:
        os.environ["NPROC"] = str(threads)  # XLA reads it when its first client is made.

    def is_out_of_memory(self, error: BaseException) -> bool:
        # A step that was already dispatched raises INTERNAL, with the cause in words.
        text = str(error)
        return isinstance(error, MemoryError) or (
            isinstance(error, jax.errors.JaxRuntimeError)
            and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
        )
