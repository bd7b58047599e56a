"""GPU buffers and the CUDA stream that copies to and from them, by `cuda-python`."""

import importlib
import weakref
from types import TracebackType
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import ExportError, NotSupportedError


class DeviceMemory:
    """A CUDA stream on the current GPU, with buffers by name that are reused in each batch.

    A buffer grows on demand and never shrinks. `close`, the end of the block, or garbage collection
    frees all. Raises `ExportError` if a CUDA call fails.
    """

    def __init__(self) -> None:
        try:
            self._cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise NotSupportedError(
                "An engine needs `cuda-python`, which is not installed: pip install cuda-python"
            ) from error
        self._buffers: dict[str, tuple[int, int]] = {}
        # A blocking stream would wait for other threads' work on the default stream.
        flag = self._cuda.cudaStreamNonBlocking
        self.stream = int(self._call("cudaStreamCreateWithFlags", flag))
        self._release = weakref.finalize(self, _release, self._cuda, self._buffers, self.stream)

    def __enter__(self) -> "DeviceMemory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the CUDA stream, and frees it and all buffers."""
        self._release()

    def reserve(self, name: str, num_bytes: int) -> int:
        """Returns the address of a GPU buffer of a given size, allocated or enlarged if needed.

        The contents of a smaller one of that name are lost.

        An empty tensor has an address, too.
        """
        address, size = self._buffers.get(name, (0, 0))
        if size >= max(num_bytes, 1):
            return address
        if self._buffers.pop(name, None) is not None:
            self._call("cudaFree", address)
        address = int(self._call("cudaMalloc", max(num_bytes, 1)))
        self._buffers[name] = (address, max(num_bytes, 1))
        return address

    def free(self) -> None:
        """Frees all GPU buffers, and keeps the CUDA stream."""
        while self._buffers:
            _, (address, _) = self._buffers.popitem()
            self._call("cudaFree", address)

    def put(self, name: str, array: Array) -> int:
        """Starts copying a contiguous array to a GPU buffer, and returns the buffer's address."""
        address = self.reserve(name, array.nbytes)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)
        return address

    def fetch(self, name: str, array: Array) -> None:
        """Starts copying a GPU buffer to an array, which is filled after `synchronize`."""
        address, _ = self._buffers[name]
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)

    def synchronize(self) -> None:
        """Waits until the CUDA stream has finished its work."""
        self._call("cudaStreamSynchronize", self.stream)

    def _copy(self, target: int, source: int, num_bytes: int, kind: Any) -> None:
        if num_bytes:
            self._call("cudaMemcpyAsync", target, source, num_bytes, kind, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise ExportError(f"CUDA's {name} failed: {error.name}.")
        return values[0] if values else None


def _release(cuda: Any, buffers: dict[str, tuple[int, int]], stream: int) -> None:
    cuda.cudaStreamSynchronize(stream)
    while buffers:
        _, (address, _) = buffers.popitem()
        cuda.cudaFree(address)
    cuda.cudaStreamDestroy(stream)


def empty_array(shape: tuple[int, ...], dtype: str) -> Array:
    """Returns an empty array of a NumPy dtype or `"bfloat16"`, as the target of a copy."""
    if dtype == "bfloat16":
        dtype = importlib.import_module("ml_dtypes").bfloat16  # Keras depends on it.
    return np.empty(shape, dtype)
