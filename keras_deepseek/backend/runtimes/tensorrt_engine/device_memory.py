"""Memory of a GPU and the stream that fills it, by `cuda-python`."""

import importlib
import weakref
from types import TracebackType
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import ExportError, NotSupportedError


class DeviceMemory:
    """A stream on the current GPU, and a buffer for each name, kept from batch to batch.

    A buffer grows where a larger one is asked for, and is never made smaller. All is given back by
    `close`, when the block ends, or when nobody holds this any more.

    Raises:
        NotSupportedError: `cuda-python` is not installed.
        ExportError: CUDA refuses a call.
    """

    def __init__(self) -> None:
        try:
            self._cuda = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise NotSupportedError(
                "`cuda-python`, which an engine is run with, is not installed: "
                "pip install cuda-python"
            ) from error
        self._buffers: dict[str, tuple[int, int]] = {}
        # One that waits for what other threads do on the default stream would hold up replicas.
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
        """Gives the memory and the stream back, once it has done what it was given."""
        self._release()

    def reserve(self, name: str, num_bytes: int) -> int:
        """Returns the address of a buffer; what stood in a smaller one of the name is lost.

        Args:
            name: string. What it is for.
            num_bytes: integer. What it has to hold; an empty tensor has an address, too.
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
        """Gives all buffers back, and keeps the stream."""
        while self._buffers:
            _, (address, _) = self._buffers.popitem()
            self._call("cudaFree", address)

    def put(self, name: str, array: Array) -> int:
        """Returns the address of a buffer that the stream copies an array to.

        Args:
            name: string. What the buffer is for.
            array: NumPy array, contiguous.
        """
        address = self.reserve(name, array.nbytes)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)
        return address

    def fetch(self, name: str, array: Array) -> None:
        """Copies a buffer to an array, which is filled when `synchronize` returns.

        Args:
            name: string. What the buffer is for.
            array: NumPy array, contiguous.
        """
        address, _ = self._buffers[name]
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)

    def synchronize(self) -> None:
        """Waits until the stream has done what it was given."""
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
    """Returns an array to fetch into.

    Args:
        shape: tuple of integers.
        dtype: string. NumPy's name, or `"bfloat16"`.
    """
    if dtype == "bfloat16":
        dtype = importlib.import_module("ml_dtypes").bfloat16  # It comes with Keras.
    return np.empty(shape, dtype)
