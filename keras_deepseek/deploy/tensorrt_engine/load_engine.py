"""Runs an engine on a GPU, by the calls that plain TensorRT and TensorRT-RTX share."""

from typing import Any

import numpy as np

from keras_deepseek.artifacts.errors import ExportError, NotSupportedError
from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.deploy.tensorrt_engine.device_memory import DeviceMemory, empty_array
from keras_deepseek.deploy.tensorrt_engine.error_log import make_error_log

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
"""NumPy's names for the dtypes of inputs and outputs, by TensorRT's."""


def load_engine(tensorrt: Any, engine_bytes: bytes) -> InferenceFunction:
    """Returns an engine as a function of a batch's arrays, from and to dicts by name.

    The function raises `NotSupportedError` where the engine takes no such batch, and `ExportError`
    where the GPU failed to run it.

    Args:
        tensorrt: The module of the flavor that built it.
        engine_bytes: The engine.

    Raises:
        NotSupportedError: The engine is for another GPU or release.
    """
    log = make_error_log(tensorrt)
    engine = tensorrt.Runtime(log).deserialize_cuda_engine(engine_bytes)
    context = engine and engine.create_execution_context()
    if not context:
        reasons = "; ".join(log.errors) or "it gives no reason"
        raise NotSupportedError(f"TensorRT can't load the engine on this GPU: {reasons}")

    def infer(sample: dict[str, Array]) -> dict[str, Array]:
        with DeviceMemory() as memory:
            return _run_batch(engine, context, memory, sample)

    return infer


def _run_batch(
    engine: Any, context: Any, memory: DeviceMemory, sample: dict[str, Array]
) -> dict[str, Array]:
    """Runs one batch on one stream: TensorRT does nothing before `execute_async_v3`."""
    inputs, output_names = _bind_by_name(engine, sample)
    profile = _find_profile(engine, inputs)
    if not context.set_optimization_profile_async(profile, memory.stream):
        raise ExportError(f"TensorRT refused optimisation profile {profile}.")
    memory.synchronize()
    for name, array in inputs.items():
        if not context.set_input_shape(name, array.shape):
            raise ExportError(f"TensorRT refused shape {array.shape} of input {name!r}.")
        context.set_tensor_address(name, memory.put(array))
    places = {}
    for name in output_names:
        shape = tuple(context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise NotSupportedError(f"the size of output {name!r} depends on the data: {shape}")
        array = empty_array(shape, _dtype(engine, name))
        places[name] = (memory.reserve(array.nbytes), array)
        context.set_tensor_address(name, places[name][0])
    if not context.execute_async_v3(memory.stream):
        raise ExportError("TensorRT failed to run the engine.")
    for pointer, array in places.values():
        memory.fetch(pointer, array)
    return {name: array for name, (_, array) in places.items()}


def _bind_by_name(engine: Any, sample: dict[str, Array]) -> tuple[dict[str, Array], list[str]]:
    """Returns the arrays that the engine reads, and the names of what it writes."""
    inputs, output_names = {}, []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name).name == "OUTPUT":
            output_names.append(name)
            continue
        array = np.ascontiguousarray(sample[name])
        if str(array.dtype) != _dtype(engine, name):
            raise NotSupportedError(
                f"the engine takes {_dtype(engine, name)} for input {name!r}, "
                f"and the model {array.dtype}"
            )
        inputs[name] = array
    return inputs, output_names


def _find_profile(engine: Any, inputs: dict[str, Array]) -> int:
    """Returns the first profile that a batch is within."""
    for index in range(engine.num_optimization_profiles):
        ranges = {name: engine.get_tensor_profile_shape(name, index) for name in inputs}
        if all(
            lower <= size <= upper
            for name, (smallest, _, largest) in ranges.items()
            for lower, size, upper in zip(smallest, inputs[name].shape, largest, strict=True)
        ):
            return index
    shapes = {name: array.shape for name, array in inputs.items()}
    raise NotSupportedError(
        f"the engine has no profile for a batch of {shapes}: pass the profiles= of its export"
    )


def _dtype(engine: Any, name: str) -> str:
    dtype = engine.get_tensor_dtype(name).name
    if dtype not in DTYPES:
        raise NotSupportedError(f"tensor {name!r} is of {dtype}, which NumPy has not")
    return DTYPES[dtype]
