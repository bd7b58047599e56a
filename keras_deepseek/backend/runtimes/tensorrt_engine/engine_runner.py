"""Runs TensorRT and TensorRT-RTX engines, by the calls that both libraries share."""

import importlib
import math
import weakref
from types import TracebackType
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import make_error_log
from keras_deepseek.errors import ExportError, NotSupportedError

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""NumPy's names of the dtypes of inputs and outputs, by TensorRT's names."""

Shape = tuple[int, ...]


class EngineRunner:
    """A TensorRT engine on the current GPU, with its own context, stream and memory.

    It reserves memory for the largest batch of its profiles. One thread at a time may call it;
    several runners, each with its own thread, do not wait for each other. `tensorrt` is the module
    of the library that built the engine. Raises `NotSupportedError` for an engine of another GPU or
    release.
    """

    def __init__(self, tensorrt: Any, engine_bytes: bytes) -> None:
        self._log = make_error_log(tensorrt)
        self._runtime = tensorrt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine_bytes)
        self._context = self._engine and self._engine.create_execution_context()
        if not self._context:
            reasons = "; ".join(self._log.errors) or "it gives no reason"
            raise NotSupportedError(f"TensorRT can't load the engine on this GPU: {reasons}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_output = {name: self._engine.get_tensor_mode(name).name == "OUTPUT" for name in names}
        self.input_names = [name for name in names if not is_output[name]]
        self.output_names = [name for name in names if is_output[name]]
        self._dtypes = {name: self._dtype_of(name) for name in names}
        self._profiles = [
            {name: self._engine.get_tensor_profile_shape(name, index) for name in self.input_names}
            for index in range(self._engine.num_optimization_profiles)
        ]
        self._profile: int | None = None
        self._memory = DeviceMemory()
        try:
            self._reserve_largest()
        except ExportError:
            self._memory.free()  # The largest batch may never come.
        except BaseException:
            self.close()
            raise

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Runs the engine on a batch; returns arrays by output name.

        Raises `NotSupportedError` if the engine has no profile for the batch.
        """
        arrays = {name: self._check(name, inputs[name]) for name in self.input_names}
        self._choose_profile(self._find_profile(arrays))
        for name, array in arrays.items():
            self._set_shape(name, array.shape)
            self._context.set_tensor_address(name, self._memory.put(name, array))
        outputs = {}
        for name in self.output_names:
            outputs[name] = empty_array(self._shape_of(name), self._dtypes[name])
            address = self._memory.reserve(name, outputs[name].nbytes)
            self._context.set_tensor_address(name, address)
        # TensorRT starts no work before this call.
        if not self._context.execute_async_v3(self._memory.stream):
            raise ExportError(f"TensorRT failed to run the engine: {self._reasons()}.")
        for name, array in outputs.items():
            self._memory.fetch(name, array)
        self._memory.synchronize()
        return outputs

    def close(self) -> None:
        """Frees the engine's memory on the GPU."""
        self._memory.close()
        self._context = self._engine = self._runtime = None

    def _reserve_largest(self) -> None:
        """Reserves GPU memory for the largest batch of each optimization profile."""
        for index, profile in enumerate(self._profiles):
            self._choose_profile(index)
            for name, (_, _, largest) in profile.items():
                self._set_shape(name, tuple(largest))
                self._reserve(name, tuple(largest))
            for name in self.output_names:
                self._reserve(name, self._shape_of(name))

    def _reserve(self, name: str, shape: Shape) -> None:
        itemsize = empty_array((), self._dtypes[name]).itemsize
        self._memory.reserve(name, math.prod(shape) * itemsize)

    def _check(self, name: str, value: Array) -> Array:
        """Checks an input, and returns it as a contiguous array of the engine's dtype."""
        array = np.ascontiguousarray(value)
        if str(array.dtype) != self._dtypes[name]:
            raise NotSupportedError(
                f"the engine expects {self._dtypes[name]} for input {name!r}; the model has "
                f"{array.dtype}"
            )
        return array

    def _find_profile(self, arrays: dict[str, Array]) -> int:
        """Returns the index of the first optimization profile that a batch fits."""
        for index, ranges in enumerate(self._profiles):
            if all(
                lower <= size <= upper
                for name, (smallest, _, largest) in ranges.items()
                for lower, size, upper in zip(smallest, arrays[name].shape, largest, strict=True)
            ):
                return index
        shapes = {name: array.shape for name, array in arrays.items()}
        raise NotSupportedError(
            f"the engine has no profile for a batch of {shapes}: export it with such profiles=, or "
            f"stay within those that it has: {self._describe_profiles()}"
        )

    def _describe_profiles(self) -> str:
        return " and ".join(
            ", ".join(
                f"{name} from {tuple(smallest)} to {tuple(largest)}"
                for name, (smallest, _, largest) in profile.items()
            )
            for profile in self._profiles
        )

    def _choose_profile(self, index: int) -> None:
        if index == self._profile:
            return
        self._profile = None
        if not self._context.set_optimization_profile_async(index, self._memory.stream):
            raise ExportError(f"TensorRT refused optimisation profile {index}: {self._reasons()}.")
        self._memory.synchronize()
        self._profile = index

    def _set_shape(self, name: str, shape: Shape) -> None:
        if not self._context.set_input_shape(name, shape):
            raise ExportError(
                f"TensorRT refused shape {shape} of input {name!r}: {self._reasons()}."
            )

    def _shape_of(self, name: str) -> Shape:
        """Returns the shape of an engine's tensor for the input shapes that were set."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise NotSupportedError(f"the size of output {name!r} depends on the data: {shape}")
        return shape

    def _dtype_of(self, name: str) -> str:
        dtype = self._engine.get_tensor_dtype(name).name
        if dtype not in DTYPES:
            raise NotSupportedError(f"tensor {name!r} has dtype {dtype}, which NumPy lacks")
        return DTYPES[dtype]

    def _reasons(self) -> str:
        """Returns, as one text, the TensorRT errors that were logged since the last call."""
        errors, self._log.errors[:] = list(self._log.errors), []
        return "; ".join(errors) or "it gives no reason"


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

        The contents of a smaller buffer of that name are lost. An empty tensor has an address, too.
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
