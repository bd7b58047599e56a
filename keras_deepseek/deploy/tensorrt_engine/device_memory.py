"""Memory of a GPU and the stream that fills it, by `cuda-python`."""

import importlib
from types import TracebackType
from typing import Any

import numpy as np

from keras_deepseek.artifacts.errors import ExportError, NotSupportedError
from keras_deepseek.artifacts.signature import Array


class DeviceMemory:
    """What an engine reads and writes on the current GPU, given back when the block ends.

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
        self._pointers: list[int] = []
        self.stream = int(self._call("cudaStreamCreate"))

    def __enter__(self) -> "DeviceMemory":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.free()
        self._cuda.cudaStreamDestroy(self.stream)

    def reserve(self, num_bytes: int) -> int:
        """Returns the address of new memory.

        Args:
            num_bytes: integer. Its size; an empty tensor has an address, too.
        """
        self._pointers.append(int(self._call("cudaMalloc", max(num_bytes, 1))))
        return self._pointers[-1]

    def put(self, array: Array) -> int:
        """Returns the address of a copy of an array.

        Args:
            array: NumPy array, contiguous.
        """
        pointer = self.reserve(array.nbytes)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", pointer, array.ctypes.data, array.nbytes, kind)
        return pointer

    def fetch(self, pointer: int, array: Array) -> None:
        """Copies memory into an array, once the stream has done what it was given.

        Args:
            pointer: integer. The memory's address.
            array: NumPy array, contiguous, which is filled.
        """
        self.synchronize()
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpy", array.ctypes.data, pointer, array.nbytes, kind)

    def synchronize(self) -> None:
        """Waits until the stream has done what it was given."""
        self._call("cudaStreamSynchronize", self.stream)

    def free(self) -> None:
        """Gives all memory back."""
        while self._pointers:
            self._cuda.cudaFree(self._pointers.pop())

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise ExportError(f"CUDA's {name} failed: {error}.")
        return values[0] if values else None


def empty_array(shape: tuple[int, ...], dtype: str) -> Array:
    """Returns an array to fetch into.

    Args:
        shape: tuple of integers.
        dtype: string. NumPy's name, or `"bfloat16"`.
    """
    if dtype == "bfloat16":
        dtype = importlib.import_module("ml_dtypes").bfloat16  # It comes with Keras.
    return np.empty(shape, dtype)
