"""Requests that ask for much more memory than their size are refused before it is taken."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.protocols import grpc_messages
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

PREDICT = "tensorflow.serving.PredictionService/Predict"
CLASSIFY = "tensorflow.serving.PredictionService/Classify"
INFER = "inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "inference.GRPCInferenceService/ModelStreamInfer"
MEGABYTE = 2**20


def predict(*shape, names=("x",), dtype=1, **values):
    message = new_message("tensorflow.serving.PredictRequest")
    message.model_spec.name = "model"
    for name in names:
        tensor = message.inputs[name]
        tensor.dtype = dtype
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        for field, listed in values.items():
            getattr(tensor, field).extend(listed)
    return message.SerializeToString()


def infer(shape, raw=None, **contents):
    message = new_message("inference.ModelInferRequest", model_name="model")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message.SerializeToString()


def classify(count, context=0):
    message = new_message("tensorflow.serving.ClassificationRequest")
    message.model_spec.name = "model"
    listed = message.input.example_list_with_context
    listed.context.features.feature["x"].float_list.value.extend([0.0] * context)
    for _ in range(count):
        listed.examples.add()
    return message.SerializeToString()


MANY = tuple(f"input_{number}" for number in range(12))
ATTACKS = {
    "unknown inputs": (PREDICT, predict(2**24, names=MANY, float_val=[1]), "unknown"),
    "a shape that is not the model's": (PREDICT, predict(2**24, float_val=[1]), "received shape"),
    "many rows": (PREDICT, predict(2**23 + 1, 2, float_val=[1]), "At most 67108864 bytes"),
    "text for numbers": (PREDICT, predict(2**20, 2, dtype=7, string_val=[b""]), "received text"),
    "raw bytes that are missing": (INFER, infer([2**40, 2], raw=bytes(8)), "received 8 bytes"),
    "values that are missing": (INFER, infer([2**40, 2], fp32_contents=[1]), "received 1 values"),
    "a shape of many axes": (INFER, infer([1] * 200, raw=bytes(4)), "received shape"),
    "a context for many examples": (CLASSIFY, classify(1000, 10_000), "10000000 values"),
    "many examples": (CLASSIFY, classify(2**16 + 1), "65537 examples"),
}
LARGE = {  # Of each byte of these, protobuf or Python would make up to 70.
    "4 MiB of map entries": (PREDICT, b"\x12\x00" * 2**21, "262144 fields"),
    "4 MiB of tensors": (INFER, b"\x2a\x00" * 2**21, "262144 fields"),
    "4 MiB of strings": (INFER, infer([2**22], bytes_contents=[b""] * 2**21), "262144 fields"),
    "4 MiB of examples": (CLASSIFY, classify(2**21), "262144 fields"),
    "16 MiB of integers": (INFER, infer([2**24], int64_contents=[0] * 2**24), "262144 fields"),
    "36 MiB of floats": (CLASSIFY, classify(1, 9 * 2**20), "9437184 values"),
}


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        yield serve_grpc(engine)


@pytest.mark.parametrize(("path", "data", "text"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_is_refused_without_much_memory(client, status_of, path, data, text):
    tracemalloc.start()
    try:
        start, _ = tracemalloc.get_traced_memory()
        status, message = status_of(client.send(path, data).result)
        peak = tracemalloc.get_traced_memory()[1] - start
    finally:
        tracemalloc.stop()
    assert (status, text in message) == ("INVALID_ARGUMENT", True), message
    assert peak < len(data) + 16 * MEGABYTE


@pytest.mark.parametrize(
    "call", [PREDICT, INFER, "inference.GRPCInferenceService/ModelStreamInfer"]
)
def test_fields_are_counted_before_a_message_is_parsed(client, status_of, monkeypatch, call):
    monkeypatch.setattr(grpc_messages, "MAX_FIELDS", 100)
    data = b"\x12\x00" * 101
    if call == STREAM_INFER:
        answer = next(client.channel.stream_stream(f"/{call}")(iter([data])))
        message = parse_message("inference.ModelStreamInferResponse", answer).error_message
    else:
        _, message = status_of(client.send(call, data).result)
    assert "more than 100 fields" in message


SERVES = """
import sys
from keras_deepseek.inference import GrpcServer, ServingEngine
from tests.inference.conftest import Doubler, service_of

server = GrpcServer(service_of(ServingEngine(Doubler())))
server.service.engine.start()
server.start()
print(server.target, flush=True)
sys.stdin.read()
"""


def peak_megabytes(pid):
    """Returns the most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_the_process_itself_takes_no_memory_for_them():
    call = [sys.executable, "-c", SERVES]
    folder = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen(call, cwd=folder, stdin=pipe, stdout=pipe, text=True) as child:
        target = child.stdout.readline().strip()
        with grpc.insecure_channel(target) as channel:
            good = predict(1, 2, float_val=[1, 2])
            channel.unary_unary(f"/{PREDICT}")(good, timeout=60)
            idle_peak = peak_megabytes(child.pid)
            for name, (path, data, text) in {**ATTACKS, **LARGE}.items():
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(f"/{path}")(data, timeout=60)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert text in caught.value.details()
                peak = peak_megabytes(child.pid)
                print(f"{name}: {len(data)} bytes, peak {idle_peak:.0f} to {peak:.0f} MB")
                assert (
                    peak < idle_peak + 40 + 4 * len(data) / MEGABYTE
                )  # gRPC itself takes three times it.
        child.stdin.close()
