import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory as Memory
from pathlib import Path

import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.inference import ServerOptions, ServingEngine
from keras_deepseek.inference.errors import NotPermittedError
from keras_deepseek.inference.protocols import open_inference, open_inference_grpc
from keras_deepseek.inference.protocols.grpc_messages import new_message
from keras_deepseek.inference.protocols.shared_memory import FOLDER, MAX_REGIONS, SharedMemory
from keras_deepseek.inference.protocols.tensor_bytes import dtype_of, to_bytes
from tests.inference.conftest import GrpcClient, service_of
from tests.oracles.protocols import import_client
from tests.oracles.rest_client import RestClient

ROWS = np.array([[1, 2], [3, 4]], "float32")
SIZE = ROWS.nbytes


@pytest.fixture
def key():
    """The key of shared memory with the rows twice, the second time doubled."""
    pytest.importorskip("_posixshmem", reason="only POSIX has shared memory")
    memory = Memory(create=True, size=4 * SIZE)
    resource_tracker.unregister(memory._name, "shared_memory")
    memory.buf[: 2 * SIZE] = ROWS.tobytes() + (2 * ROWS).tobytes()
    memory.close()
    path = Path(FOLDER, memory.name)
    yield f"/{memory.name}"
    path.unlink(missing_ok=True)


def content_of(key, offset=0, size=SIZE):
    return np.frombuffer(Path(FOLDER + key).read_bytes()[offset : offset + size], "float32")


@pytest.fixture
def memory(key):
    memory = SharedMemory()
    memory.register("r", key, 8, 2 * SIZE)
    return memory


def parameters(offset=0, byte_size=SIZE, region="r"):
    return {
        "shared_memory_region": region,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": byte_size,
    }


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"name": ""}, "expected the region's name"),
        ({"name": "r"}, "'r' is registered already"),
        ({"key": "/../etc/passwd"}, "received key '/../etc/passwd'; expected the name of POSIX"),
        ({"key": "/.."}, "received key '/..'"),
        ({"key": "a/b"}, "no other slash"),
        ({"key": 3}, "received key 3"),
        ({"key": "/a\ud800"}, "its name is not UTF-8"),
        ({"key": "/keras-deepseek-nobody-made"}, "No such file or directory. Create it before"),
        ({"offset": -1}, "received offset -1; expected a number of bytes"),
        ({"byte_size": None}, "received byte_size None"),
        ({"byte_size": True}, "received byte_size True"),
        ({"byte_size": 2**63}, "received byte_size 9223372036854775808"),
        ({"offset": 8, "byte_size": 4 * SIZE}, "offset 8 and byte_size 64; .* has 64 bytes"),
    ],
)
def test_a_region_that_is_not_there_is_not_registered(memory, key, region, message):
    region = {"name": "other", "key": key, "offset": 0, "byte_size": SIZE, **region}
    with pytest.raises(InvalidInputError, match=message):
        memory.register(**region)
    assert [known["name"] for known in memory.status()] == ["r"]


def test_links_and_pipes_are_not_opened_and_regions_are_limited(memory, key):
    path = Path(f"{FOLDER}{key}-other")
    for make in (lambda: path.symlink_to("/etc/passwd"), lambda: os.mkfifo(path)):
        make()
        try:
            with pytest.raises(InvalidInputError, match="can't open the shared memory"):
                memory.register("other", f"{key}-other", 0, 0)
        finally:
            path.unlink()
    for number in range(MAX_REGIONS - 1):
        memory.register(f"r{number}", key, 0, SIZE)
    with pytest.raises(InvalidInputError, match="256 regions are registered"):
        memory.register("other", key, 0, SIZE)
    memory.unregister()
    assert memory.status() == []


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"region": "s"}, "Input 'x': Unknown shared memory region 's'. Known: r"),
        ({"region": 3}, "Input 'x': "),
        ({"offset": 17}, "shared_memory_offset 17 and shared_memory_byte_size 16; .* 32 bytes"),
        ({"byte_size": None}, "received shared_memory_byte_size None"),
        ({"offset": 2**64}, "received shared_memory_offset 18446744073709551616"),
    ],
)
def test_a_tensor_lies_inside_of_its_region(memory, sent, message):
    with pytest.raises(InvalidInputError, match=message):
        memory.find(parameters(**sent), "Input 'x'")


def test_a_region_that_its_client_makes_smaller_is_refused(memory, key):
    tensor = memory.find(parameters(offset=SIZE), "Input 'x'")
    assert bytes(tensor.read("x")) == (ROWS.tobytes() + (2 * ROWS).tobytes())[8 + SIZE :] + bytes(8)
    os.truncate(FOLDER + key, 30)
    message = "registered with 32 bytes, of which 22 are left; the tensor ends at byte 32"
    with pytest.raises(InvalidInputError, match=message):
        tensor.read("x")
    with pytest.raises(InvalidInputError, match=message):
        tensor.write(ROWS, "y")
    assert Path(FOLDER + key).stat().st_size == 30


def test_an_unregistered_region_is_closed_when_no_request_uses_it(key):
    memory = SharedMemory()
    gc.collect()
    count = len(os.listdir("/proc/self/fd"))
    memory.register("r", key, 0, SIZE)
    tensor = memory.find(parameters(), "Input 'x'")
    memory.unregister("r")
    memory.unregister("r")
    Path(FOLDER + key).unlink()
    np.testing.assert_array_equal(np.frombuffer(tensor.read("x"), "float32"), ROWS.ravel())
    assert len(os.listdir("/proc/self/fd")) == count + 1
    del tensor
    assert len(os.listdir("/proc/self/fd")) == count


def test_an_output_is_written_as_it_would_be_sent(memory, key):
    place = memory.find(parameters(offset=4, byte_size=20), "y")
    for array in (
        np.array([b"a", "\u00e9"], object),
        ROWS.T.astype("float16"),
        np.array([1.5], dtype_of("bfloat16").numpy),
        np.array(7, "int64"),
        np.zeros((0, 2), "float32"),
    ):
        assert place.write(array, "y") == {
            "shared_memory_region": "r",
            "shared_memory_offset": 4,
            "shared_memory_byte_size": len(to_bytes(array)),
        }
        written = Path(FOLDER + key).read_bytes()[12:]
        assert written.startswith(to_bytes(array))
    with pytest.raises(InvalidInputError, match="byte_size 20; the output has 24 bytes"):
        place.write(np.zeros(6, "float32"), "y")


def test_strings_and_numbers_are_read_beside_those_in_the_request(key):
    strings = np.array([b"a", "\u00e9".encode()], object)
    Path(FOLDER + key).write_bytes(to_bytes(strings))
    memory = SharedMemory()
    memory.register("r", key, 0, len(to_bytes(strings)))
    sent = parameters(byte_size=len(to_bytes(strings)))
    x = {"name": "x", "datatype": "BYTES", "shape": [2], "parameters": sent}
    y = {"name": "y", "datatype": "INT32", "shape": [1], "data": [7]}
    call = open_inference.parse_infer(json.dumps({"inputs": [x, y]}).encode(), None, lambda: memory)
    inputs = call.read_shared(100).inputs
    assert (inputs["x"].tolist(), inputs["y"].tolist()) == (strings.tolist(), [7])
    with pytest.raises(InvalidInputError, match="in shared memory have 11 bytes"):
        call.read_shared(10)
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    request = new_message("inference.ModelInferRequest", raw_input_contents=[b"\7\0\0\0"])
    x = request.inputs.add(name="x", datatype="BYTES", shape=[2])
    for name, value in sent.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(x.parameters[name], kind, value)
    request.inputs.add(name="y", datatype="INT32", shape=[1])
    call = open_inference_grpc.parse_infer(request.SerializeToString(), lambda: memory)
    read = {
        name: open_inference_grpc.read_tensor(tensor).tolist()
        for name, tensor in call.read_shared(100).inputs.items()
    }
    assert read == {"x": strings.tolist(), "y": [7]}


@pytest.fixture
def engine(doubler):
    pytest.importorskip("uvicorn")
    with ServingEngine(doubler, name="double", warm_up=False) as engine:
        yield engine


def request_in(region_in="in", region_out="out", **changes):
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", **changes}
    tensor.setdefault("parameters", parameters(region=region_in))
    outputs = [{"name": "y", "parameters": parameters(2 * SIZE, region=region_out)}]
    return {"inputs": [tensor], "outputs": outputs}


INFER = "/v2/models/double/infer"
MEMORY = "/v2/systemsharedmemory"


def register(client, key, name, **headers):
    region = {"key": key, "byte_size": 4 * SIZE}
    return client.ask("POST", f"{MEMORY}/region/{name}/register", region, headers)


def test_http_reads_and_writes_the_regions_of_both_protocols(engine, key):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    client = RestClient(engine.serve(0, 0, shared_memory=True, max_body_bytes=4000))
    grpc = GrpcClient(engine.servers[1])
    service = "inference.GRPCInferenceService/"
    assert "system_shared_memory" in client.ask("GET", "/v2").content["extensions"]
    assert register(client, key, "in").status == 200
    grpc.ask(service + "SystemSharedMemoryRegister", name="out", key=key, byte_size=4 * SIZE)
    (region,) = client.ask("GET", f"{MEMORY}/region/out/status").content
    assert region == {"name": "out", "key": key, "offset": 0, "byte_size": 64}
    assert set(grpc.ask(service + "SystemSharedMemoryStatus").regions) == {"in", "out"}
    answer = client.ask("POST", INFER, request_in())
    assert answer.content["outputs"] == [
        {
            "name": "y",
            "datatype": "FP32",
            "shape": [2, 2],
            "parameters": parameters(2 * SIZE, region="out"),
        }
    ]
    np.testing.assert_array_equal(content_of(key, 2 * SIZE), 2 * ROWS.ravel())
    for changes, message in (
        ({"shape": [1, 2]}, "received 16 bytes; shape (1, 2) of float32 has 8"),
        ({"data": [1, 2]}, "received values beside the parameter 'shared_memory_region'"),
        ({"parameters": parameters(region="s")}, "'s'"),
        ({"datatype": "BYTES"}, "4 strings need 16|expected 4 strings"),
    ):
        refused = client.ask("POST", INFER, request_in(**changes))
        assert refused.status == 400
        assert any(part in refused.content["error"] for part in message.split("|"))
    os.truncate(FOLDER + key, 0)
    refused = client.ask("POST", INFER, request_in())
    assert (refused.status, "of which 0 are left" in refused.content["error"]) == (400, True)
    assert client.ask("POST", f"{MEMORY}/region/in/unregister").status == 200
    assert client.ask("POST", "/v2/cudasharedmemory/unregister").status == 200
    assert list(grpc.ask(service + "SystemSharedMemoryStatus").regions) == ["out"]
    os.truncate(FOLDER + key, 2**16)
    client.ask("POST", f"{MEMORY}/region/large/register", {"key": key, "byte_size": 2**16})
    large = request_in(parameters=parameters(byte_size=2**16, region="large"), shape=[2**13, 2])
    refused = client.ask("POST", INFER, large)
    assert "have 65536 bytes; a request may have 4000" in refused.content["error"]
    grpc.close()
    client.close()


@pytest.mark.parametrize(
    ("options", "headers", "message"),
    [
        ({}, {}, "Start it with --shared-memory"),
        ({"shared_memory": True}, {"Origin": "https://a.example"}, "Pages of other sites"),
        ({"shared_memory": True}, {"X-Forwarded-For": "127.0.0.1"}, "from 'behind a proxy'"),
    ],
)
def test_who_may_not_use_shared_memory_over_http(engine, key, options, headers, message):
    options = {**options, "cors_origins": ["https://a.example"]}
    client = RestClient(engine.serve(0, **options))
    answers = [
        register(client, key, "in", **headers),
        client.ask("GET", f"{MEMORY}/status", headers=headers),
        client.ask("POST", f"{MEMORY}/unregister", headers=headers),
        client.ask("POST", INFER, request_in(), headers),
    ]
    assert [answer.status for answer in answers] == [403] * 4
    assert all(message in answer.content["error"] for answer in answers)
    client.close()


def test_a_region_may_be_unregistered_while_a_request_uses_it(engine, doubler, key):
    client, other = (RestClient(engine.serve(0, shared_memory=True)) for _ in range(2))
    for name in ("in", "out"):
        register(client, key, name)
    doubler.hold()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(client.ask, "POST", INFER, request_in())
        assert doubler.entered.wait(60)
        assert other.ask("POST", f"{MEMORY}/unregister").status == 200
        doubler.release()
        assert waiting.result().status == 200
    np.testing.assert_array_equal(content_of(key, 2 * SIZE), 2 * ROWS.ravel())
    assert client.ask("POST", INFER, request_in()).status == 400
    client.close()
    other.close()


def test_another_machine_has_no_shared_memory_over_grpc(engine, monkeypatch, key):
    pytest.importorskip("grpc", reason="grpcio is not installed")
    from keras_deepseek.inference.grpc import answers, open_inference_stream

    engine.serve(0, 0, shared_memory=True)
    client = GrpcClient(engine.servers[1])
    service = "inference.GRPCInferenceService/"
    region = {"name": "r", "key": key, "byte_size": 4 * SIZE}
    x = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    x["parameters"] = {
        "shared_memory_region": {"string_param": "r"},
        "shared_memory_byte_size": {"int64_param": SIZE},
    }
    request = {"model_name": "double", "inputs": [x]}
    client.ask(service + "SystemSharedMemoryRegister", **region)
    (raw,) = client.ask(service + "ModelInfer", **request).raw_output_contents
    assert raw == (2 * ROWS).tobytes()
    for module in (answers, open_inference_stream):
        monkeypatch.setattr(module, "address_of", lambda peer: "10.0.0.7")
    for call, fields in (
        ("SystemSharedMemoryRegister", region),
        ("SystemSharedMemoryStatus", {}),
        ("SystemSharedMemoryUnregister", {}),
        ("CudaSharedMemoryUnregister", {}),
        ("ModelInfer", request),
    ):
        with pytest.raises(Exception, match=r"a request from '10\.0\.0\.7'") as caught:
            client.ask(service + call, **fields)
        assert caught.value.code().name == "PERMISSION_DENIED"
    message = new_message("inference.ModelInferRequest", **request).SerializeToString()
    stream = client.channel.stream_stream(f"/{service}ModelStreamInfer")
    (answer,) = stream(iter([message]), timeout=60)
    assert b"received a request from '10.0.0.7'" in answer
    client.close()


@pytest.mark.parametrize("client", ["10.0.0.7", "::ffff:10.0.0.7", "", "/run/socket", "localhost."])
def test_another_machine_and_a_unix_socket_have_no_shared_memory(engine, client):
    service = service_of(engine, shared_memory=True)
    assert service.open_shared_memory("::1") is service.open_shared_memory("127.0.0.1")
    with pytest.raises(NotPermittedError, match="for clients that call this server directly"):
        service.open_shared_memory(client)


def test_a_system_without_it_says_so(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    with pytest.raises(NotSupportedError, match="needs POSIX shared memory at /dev/shm"):
        ServerOptions(shared_memory=True)


@pytest.mark.parametrize("protocol", ["http", "grpc", "stream"])
def test_tritonclient_s_shared_memory(engine, quiet, protocol):
    """The steps of Triton's simple_http_shm_client.py and simple_grpc_shm_client.py."""
    name = "http" if protocol == "http" else "grpc"
    module = import_client(f"tritonclient.{name}")
    shm = import_client("tritonclient.utils.shared_memory")
    engine.serve(0, 0, shared_memory=True)
    server = engine.servers[name == "grpc"]
    key = f"/keras-deepseek-{os.getpid()}-{protocol}"
    with module.InferenceServerClient(f"{server.host}:{server.port}") as triton:
        triton.unregister_system_shared_memory()
        triton.unregister_cuda_shared_memory()
        inputs = shm.create_shared_memory_region("input_data", f"{key}-in", 2 * SIZE)
        outputs = shm.create_shared_memory_region("output_data", f"{key}-out", 2 * SIZE)
        shm.set_shared_memory_region(inputs, [ROWS, ROWS + 1])
        triton.register_system_shared_memory("input_data", f"{key}-in", 2 * SIZE)
        triton.register_system_shared_memory("output_data", f"{key}-out", 2 * SIZE)
        for offset in (0, SIZE):
            x = module.InferInput("x", ROWS.shape, "FP32")
            x.set_shared_memory("input_data", SIZE, offset=offset)
            y = module.InferRequestedOutput("y")
            y.set_shared_memory("output_data", SIZE, offset=offset)
            if protocol == "stream":
                results = []
                triton.start_stream(lambda result, error, to=results: to.append((result, error)))
                triton.async_stream_infer("double", [x], outputs=[y])
                triton.stop_stream()
                ((result, error),) = results
                assert error is None
            else:
                result = triton.infer("double", [x], outputs=[y])
            output = result.get_output("y")
            shape = output["shape"] if name == "http" else output.shape
            answer = shm.get_contents_as_numpy(outputs, np.float32, shape, offset=offset)
            np.testing.assert_array_equal(answer, 2 * (ROWS + bool(offset)))
        status = triton.get_system_shared_memory_status()
        assert len(status if name == "http" else status.regions) == 2
        triton.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(inputs)
        shm.destroy_shared_memory_region(outputs)
