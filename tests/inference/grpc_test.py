"""Small requests that ask for much memory are refused before it is taken."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.protocols.messages import new_message

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

PREDICT = "tensorflow.serving.PredictionService/Predict"
CLASSIFY = "tensorflow.serving.PredictionService/Classify"
INFER = "inference.GRPCInferenceService/ModelInfer"
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
    return message


def infer(shape, raw=None, **contents):
    message = new_message("inference.ModelInferRequest", model_name="model")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return message


def classify(count, context=0):
    message = new_message("tensorflow.serving.ClassificationRequest")
    message.model_spec.name = "model"
    listed = message.input.example_list_with_context
    listed.context.features.feature["x"].float_list.value.extend([0.0] * context)
    for _ in range(count):
        listed.examples.add()
    return message


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


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        yield serve_grpc(engine)


@pytest.mark.parametrize(("path", "message", "text"), ATTACKS.values(), ids=ATTACKS)
def test_a_small_request_is_refused_without_much_memory(client, status_of, path, message, text):
    data = message.SerializeToString()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        status, told = status_of(client.send(path, data).result)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert (status, text in told) == ("INVALID_ARGUMENT", True), told
    assert peak < len(data) + 16 * MEGABYTE


SERVES = """
import sys
from keras_deepseek.inference import GrpcServer, ServingEngine
from tests.inference.conftest import Doubler

server = GrpcServer(ServingEngine(Doubler()), port=0)
server.engine.start()
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
            good = predict(1, 2, float_val=[1, 2]).SerializeToString()
            channel.unary_unary(f"/{PREDICT}")(good, timeout=60)
            before = peak_megabytes(child.pid)
            for name, (path, message, _) in ATTACKS.items():
                data = message.SerializeToString()
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(f"/{path}")(data, timeout=60)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                peak = peak_megabytes(child.pid)
                print(f"{name}: {len(data)} bytes, peak {before:.0f} to {peak:.0f} MB")
                assert peak < before + 40
        child.stdin.close()
