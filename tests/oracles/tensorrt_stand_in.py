"""Stands for plain TensorRT and for `cuda-python` where there is no GPU.

They keep to the documented API, as strictly as the code of C++ does: a parser does not keep its
network alive, a shape beyond the profile is refused, and nothing is computed before
`execute_async_v3` nor from an address that was not reserved. A stream does what it was given, in
order, when it is waited for and not before. What is "parsed" is the `.npz` file of one Dense
layer's weights (`WeightsFormat` of tests/deploy/conftest.py), so no package is needed.
"""

import ctypes
import enum
import io
import itertools
import json
import types
import weakref
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    ERROR, WARNING = Severity.ERROR, Severity.WARNING
    is_initialized = False

    def __init__(self):
        self.is_initialized = True


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class ErrorCode(enum.IntEnum):
    INVALID_NODE = 6
    UNSUPPORTED_NODE = 8


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    FP8 = 6


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class Network:
    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.weights = None


class ParserError:
    def __init__(self, index, name, operator, code, reason):
        self._told = (index, name, operator, code, reason)

    def node(self):
        return self._told[0]

    def node_name(self):
        return self._told[1]

    def node_operator(self):
        return self._told[2]

    def code(self):
        return self._told[3]

    def desc(self):
        return self._told[4]


class OptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, smallest, usual, largest):
        if not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
            raise ValueError(name)
        self.shapes[name] = [list(smallest), list(usual), list(largest)]


class BuilderConfig:
    """It has no compute capabilities: those are TensorRT-RTX's alone."""

    __slots__ = ("profiles",)

    def __init__(self):
        self.profiles = []

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class PlainTensorRT(types.ModuleType):
    """The module `tensorrt`.

    `blocked` are the errors that a parser has, `words` what is logged, and `failing` the names of
    the steps that fail: `"parse"`, `"build"`, `"load"`, `"execute"`. `spoils` is added to outputs.
    """

    __version__ = "10.16.0"
    ILogger, Severity = ILogger, Severity
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    DataType, TensorIOMode, ErrorCode = DataType, TensorIOMode, ErrorCode

    def __init__(self, cuda):
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)
        self.cuda = cuda
        self.blocked, self.failing, self.spoils = [], set(), 0.0
        self.words = "Error Code 4: no luck"
        self.input_dtype, self.output_size_is_known = DataType.FLOAT, True

    def Builder(self, logger):  # noqa: N802
        assert logger.is_initialized
        return Builder(self, logger)

    def OnnxParser(self, network, logger):  # noqa: N802
        assert logger.is_initialized
        return OnnxParser(self, network)

    def Runtime(self, logger):  # noqa: N802
        assert logger.is_initialized
        return Runtime(self, logger)


class Builder:
    def __init__(self, module, logger):
        self._module, self._logger = module, logger

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return BuilderConfig()

    def create_optimization_profile(self):
        return OptimizationProfile()

    def build_serialized_network(self, network, config):
        self._logger.log(Severity.WARNING, "Only a warning")
        if "build" in self._module.failing:
            self._logger.log(Severity.ERROR, self._module.words)
            return None
        return memoryview(json.dumps(config.profiles).encode() + b"\n" + network.weights)


class OnnxParser:
    def __init__(self, module, network):
        self._module, self._network = module, weakref.ref(network)
        self._errors = []

    def supports_model_v2(self, model, path=None):
        assert self._network() is not None, "TensorRT would have crashed"
        assert Path(path).read_bytes() == model
        self._errors = [ParserError(*fields) for fields in self._module.blocked]
        return not self._errors

    def parse_from_file(self, path):
        self._network().weights = Path(path).read_bytes()
        if "parse" in self._module.failing:
            self._errors = [ParserError(-1, "", "", ErrorCode.INVALID_NODE, "torn")]
        return "parse" not in self._module.failing

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]


class Runtime:
    def __init__(self, module, logger):
        self._module, self._logger = module, logger

    def deserialize_cuda_engine(self, engine):
        if "load" in self._module.failing:
            self._logger.log(Severity.ERROR, self._module.words)
            return None
        profiles, weights = engine.split(b"\n", 1)
        with np.load(io.BytesIO(weights)) as file:
            return Engine(self._module, json.loads(profiles), file["kernel"], file["bias"])


class Engine:
    num_io_tensors = 2

    def __init__(self, module, profiles, kernel, bias):
        self.module, self.profiles = module, profiles
        self.kernel, self.bias = kernel, bias
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index):
        return ("input_0", "output_0")[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "input_0" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.module.input_dtype if name == "input_0" else DataType.FLOAT

    def get_tensor_profile_shape(self, name, index):
        return self.profiles[index][name]

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self._engine, self._cuda = engine, engine.module.cuda
        self._profile, self._shape, self._addresses = None, None, {}

    def set_optimization_profile_async(self, index, stream):
        assert stream in self._cuda.streams
        self._profile, self._shape, self._addresses = index, None, {}
        return "profile" not in self._engine.module.failing

    def set_input_shape(self, name, shape):
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shape = shape
        fits = all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        return fits and "shape" not in self._engine.module.failing

    def get_tensor_shape(self, name):
        is_size_known = self._engine.module.output_size_is_known
        return (self._shape[0] if is_size_known else -1, len(self._engine.bias))

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream in self._cuda.streams
        if "execute" in self._engine.module.failing:
            return False
        self._cuda.streams[stream].append(partial(self._compute, self._shape, {**self._addresses}))
        return True

    def _compute(self, shape, addresses):
        batch = np.empty(shape, "float32")
        self._cuda.read(addresses["input_0"], batch)
        outputs = batch @ self._engine.kernel + self._engine.bias + self._engine.module.spoils
        self._cuda.write(addresses["output_0"], outputs.astype("float32"))


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815


class CopyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class CudaRuntime(types.ModuleType):
    """The module `cuda.bindings.runtime`: each call gives a tuple whose first part is an error.

    `failing` are the names of the calls that fail, and `capacity` the bytes that it has. `memory`
    and `streams` are what has not been given back; `num_reserved` counts what was ever reserved.
    """

    cudaError_t, cudaMemcpyKind = Error, CopyKind  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self):
        super().__init__("cuda.bindings.runtime")
        self.memory, self.streams, self.failing = {}, {}, set()
        self.capacity, self.num_reserved = 10**9, 0
        self._numbers = itertools.count(7)

    def cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        number = next(self._numbers)
        self.streams[number] = []
        return Error.cudaSuccess, number

    def cudaStreamDestroy(self, stream):  # noqa: N802
        assert self.streams.pop(stream) == []
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        work, self.streams[stream] = self.streams[stream], []
        if "cudaStreamSynchronize" in self.failing:
            return (Error.cudaErrorMemoryAllocation,)
        for operation in work:
            operation()
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size):  # noqa: N802
        used = sum(map(len, list(self.memory.values())))
        if "cudaMalloc" in self.failing or used + size > self.capacity:
            return Error.cudaErrorMemoryAllocation, None
        reserved = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(reserved)] = reserved
        self.num_reserved += 1
        return Error.cudaSuccess, ctypes.addressof(reserved)

    def cudaFree(self, address):  # noqa: N802
        del self.memory[address]
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):  # noqa: N802
        if "cudaMemcpyAsync" in self.failing:
            return (Error.cudaErrorMemoryAllocation,)
        if kind == CopyKind.cudaMemcpyHostToDevice:
            # Of memory that is not pinned, a copy is made before the call returns.
            staged = ctypes.create_string_buffer(ctypes.string_at(source, size), size)
            self.streams[stream].append(partial(self._copy, target, target, staged, size))
        else:
            self.streams[stream].append(partial(self._copy, source, target, source, size))
        return (Error.cudaSuccess,)

    def _copy(self, on_device, target, source, size):
        assert size <= len(self.memory[on_device])
        ctypes.memmove(target, source, size)

    def read(self, address, array):
        self._copy(address, array.ctypes.data, address, array.nbytes)

    def write(self, address, array):
        self._copy(address, address, array.ctypes.data, array.nbytes)
