"""Open Inference's unary gRPC calls. `open_inference_stream` has the streaming call."""

import asyncio
from functools import partial

import keras_deepseek
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import RequestOptions
from keras_deepseek.inference.grpc.answers import Inputs, dispatch, note_model, outputs_of
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import PLATFORM, repository_states, version_number
from keras_deepseek.inference.monitoring.request_trace import current_trace
from keras_deepseek.inference.protocols import open_inference_grpc, open_inference_models
from keras_deepseek.inference.protocols.grpc_messages import parse_message, write_message
from keras_deepseek.inference.protocols.open_inference import InferCall
from keras_deepseek.inference.protocols.open_inference_parameters import read_timeout_and_priority
from keras_deepseek.inference.protocols.shared_memory import THREAD_BYTES, SharedMemory
from keras_deepseek.inference.server.service import Service


async def server_live(_service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers that the server is alive."""
    parse_message("inference.ServerLiveRequest", data)
    return write_message("inference.ServerLiveResponse", live=True)


async def server_ready(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers whether the server accepts requests."""
    parse_message("inference.ServerReadyRequest", data)
    return write_message("inference.ServerReadyResponse", ready=service.ready)


async def model_ready(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers whether a model accepts requests."""
    message = parse_message("inference.ModelReadyRequest", data)
    version = service.engine.find(
        message.name, _find_number(service, message.name, message.version)
    )
    is_ready = service.ready and version.state == "AVAILABLE"
    return write_message("inference.ModelReadyResponse", ready=is_ready)


async def server_metadata(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers with the server's name, version and extensions."""
    parse_message("inference.ServerMetadataRequest", data)
    content = open_inference_models.server_metadata(
        "keras_deepseek",
        keras_deepseek.__version__,
        has_shared_memory=service.options.shared_memory,
    )
    return write_message("inference.ServerMetadataResponse", **content)


async def model_metadata(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers with a model's inputs and outputs."""
    message = parse_message("inference.ModelMetadataRequest", data)
    version = service.engine.find(
        message.name, _find_number(service, message.name, message.version)
    )
    numbers = [str(number) for number in service.engine.models[version.name].versions]
    content = open_inference_models.model_metadata(
        version.name, version.signature, numbers, PLATFORM
    )
    return write_message("inference.ModelMetadataResponse", **content)


async def infer(service: Service, data: bytes, timeout: float | None) -> bytes:
    """Runs a model and answers with its outputs, as lists or as raw bytes, like the inputs."""
    call = await parse_infer(service, data)
    future, version = start_infer(service, call, timeout)
    outputs = await outputs_of(call.model_name, future, current_trace.get())
    return await format_infer(call, outputs, version)


async def parse_infer(service: Service, data: bytes) -> InferCall:
    """Parses a request, and reads its inputs in shared memory, many on a thread."""
    call = open_inference_grpc.parse_infer(data, partial(_open_memory, service))
    max_bytes = service.options.max_body_bytes
    if call.shared_input_bytes > THREAD_BYTES:
        return await asyncio.to_thread(call.read_shared, max_bytes)
    return call.read_shared(max_bytes)


async def format_infer(
    call: InferCall, outputs: Inputs, version: ModelVersion, *, in_stream: bool = False
) -> bytes:
    """Returns the response to a request, whose outputs in shared memory it writes."""
    format_outputs = partial(
        open_inference_grpc.format_infer,
        call,
        outputs,
        call.model_name,
        str(version.number),
        in_stream=in_stream,
    )
    if call.shared_output_bytes > THREAD_BYTES:
        return await asyncio.to_thread(format_outputs)
    return format_outputs()


def _open_memory(service: Service) -> SharedMemory:
    """Returns the regions for the client of the current request, if it is on this machine."""
    trace = current_trace.get()
    return service.open_shared_memory(trace.client if trace else "")


def start_infer(
    service: Service, call: InferCall, timeout: float | None
) -> tuple["asyncio.Future[Inputs]", ModelVersion]:
    """Puts a request into a model's queue, to be answered within `timeout` seconds.

    Returns a future for `outputs_of`, and the version that answers.
    """
    number = read_version(service, call)

    def bind(signature: Signature) -> Inputs:
        call.check_outputs(spec.name for spec in signature.outputs)
        return open_inference_grpc.bind_tensors(call.inputs, signature)

    limits = read_timeout_and_priority(call.parameters).within(timeout)
    options: RequestOptions = {
        "version": number,
        "timeout": limits.timeout,
        "priority": limits.priority,
    }
    return dispatch(service, call.model_name, bind, **options)


def read_version(service: Service, call: InferCall) -> int | None:
    """Returns the version that a request names, or `None` for the newest."""
    return _find_number(service, call.model_name, call.model_version)


async def repository_index(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers with the state of every version of every model."""
    only_ready = parse_message("inference.RepositoryIndexRequest", data).ready
    states = repository_states(service.engine.models)
    index = open_inference_models.repository_index(states, only_ready)
    return write_message("inference.RepositoryIndexResponse", models=index)


async def repository_load(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Loads the newest versions in a model's folder; answers when they are served."""
    name = open_inference_grpc.parse_repository_model(data, "RepositoryModelLoad")
    await asyncio.to_thread(service.engine.repository.load_folder, name)
    return write_message("inference.RepositoryModelLoadResponse", model_name=name, isLoaded=True)


async def repository_unload(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Unloads a model; answers when its accepted requests are answered."""
    call = "RepositoryModelUnload"
    name = open_inference_grpc.parse_repository_model(data, call)
    await asyncio.to_thread(service.engine.repository.unload, name)
    return write_message(f"inference.{call}Response", model_name=name, isUnloaded=True)


async def memory_status(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Answers with the registered regions of shared memory, or with the one that is named."""
    name = parse_message("inference.SystemSharedMemoryStatusRequest", data).name
    regions = {region["name"]: region for region in _open_memory(service).status(name)}
    return write_message("inference.SystemSharedMemoryStatusResponse", regions=regions)


async def memory_register(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Registers a region of shared memory, which the client has created."""
    region = parse_message("inference.SystemSharedMemoryRegisterRequest", data)
    _open_memory(service).register(region.name, region.key, region.offset, region.byte_size)
    return write_message("inference.SystemSharedMemoryRegisterResponse")


async def memory_unregister(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Forgets a region of shared memory, or all regions."""
    name = parse_message("inference.SystemSharedMemoryUnregisterRequest", data).name
    _open_memory(service).unregister(name)
    return write_message("inference.SystemSharedMemoryUnregisterResponse")


async def cuda_memory_unregister(service: Service, data: bytes, _timeout: float | None) -> bytes:
    """Does nothing: no CUDA memory can be registered. Triton's examples begin with this call."""
    parse_message("inference.CudaSharedMemoryUnregisterRequest", data)
    _open_memory(service)
    return write_message("inference.CudaSharedMemoryUnregisterResponse")


UNARY_CALLS = {
    "ServerLive": server_live,
    "ServerReady": server_ready,
    "ModelReady": model_ready,
    "ServerMetadata": server_metadata,
    "ModelMetadata": model_metadata,
    "ModelInfer": infer,
    "RepositoryIndex": repository_index,
    "RepositoryModelLoad": repository_load,
    "RepositoryModelUnload": repository_unload,
    "SystemSharedMemoryStatus": memory_status,
    "SystemSharedMemoryRegister": memory_register,
    "SystemSharedMemoryUnregister": memory_unregister,
    "CudaSharedMemoryUnregister": cuda_memory_unregister,
}


def _find_number(service: Service, name: str, version: str) -> int | None:
    if not name:
        raise InvalidInputError("The request names no model. Send the model's name.")
    note_model(service, name)
    if not version:
        return None
    number = version_number(version)
    if number is None:
        raise InvalidInputError(f"Received version {version!r:.50}. Expected a whole number.")
    return number
