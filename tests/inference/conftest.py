"""What the tests of serving share: an executor that can be watched, and bundles of a tiny model."""

import asyncio
import shutil
import ssl
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_deepseek.artifacts import Bundle, Manifest, Signature, TensorSpec, Verification
from keras_deepseek.artifacts.bundle import publish_bundle
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.artifacts.staging_folder import staging_folder
from keras_deepseek.backend.runtimes.openvino_model import import_openvino
from keras_deepseek.inference import (
    GrpcServer,
    HttpLimits,
    HttpServer,
    ServerOptions,
    Service,
    ServingEngine,
)
from keras_deepseek.inference.protocols.grpc_messages import (
    message_pool,
    new_message,
    parse_message,
)

DOUBLE = Signature(
    inputs=(TensorSpec("x", (None, 2), "float32"),),
    outputs=(TensorSpec("y", (None, 2), "float32"),),
)


class Doubler:
    """Doubles its input, notes the sizes that it saw, and fails for a row that starts with -1.

    `hold` makes the next calls wait until `release`.
    """

    def __init__(self, signature: Signature = DOUBLE) -> None:
        self.signature = signature
        self.sizes: list[int] = []
        self.rows_seen: list[float] = []
        self.entered = threading.Event()
        self._gate = threading.Event()
        self._gate.set()

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.sizes.append(len(x))
        self.rows_seen.extend(x[:, 0].tolist())
        self.entered.set()
        assert self._gate.wait(60)
        if (x[:, 0] == -1).any():
            raise ArithmeticError("a row starts with -1\nand this is a second line")
        return {"y": 2 * x}

    def hold(self) -> None:
        self.entered.clear()
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


_UNVERIFIED = Verification("unverified", "a test")


@pytest.fixture
def bundle_of(tmp_path: Path) -> Callable[[str], Bundle]:
    """Writes a bundle of the doubling model in the format that is asked for."""

    def write(form: str, verification: Verification = _UNVERIFIED) -> Bundle:
        path = tmp_path / form
        with staging_folder(path) as folder:
            entry = _WRITERS.get(form, _write_nothing)(folder)
            manifest = Manifest(
                name="double",
                format=form,
                entry=entry,
                signature=DOUBLE,
                precision="float32",
                route="a test",
                versions={},
                created="2026-01-01T00:00:00Z",
                verification=verification,
            )
            return publish_bundle(folder, path, manifest)

    return write


def _write_onnx(folder: Path) -> str:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", kind, ["rows", 2])],
        [helper.make_tensor_value_info("y", kind, ["rows", 2])],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    return "model.onnx"


def _write_saved_model(folder: Path) -> str:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    spec = tf.TensorSpec((None, 2), tf.float32, name="x")
    module.double = tf.function(lambda x: {"y": 2 * x}, input_signature=[spec])
    signatures = {"serving_default": module.double.get_concrete_function()}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return "."


def _write_openvino(folder: Path) -> str:
    openvino = import_openvino("to test it")
    opset = openvino.opset13
    x = opset.parameter([-1, 2], np.float32, name="x")
    x.output(0).set_names({"x"})
    y = opset.add(x, x)
    y.output(0).set_names({"y"})
    openvino.save_model(openvino.Model([y], [x]), folder / "model.xml")
    return "model.xml"


def _write_litert(folder: Path) -> str:
    tf = pytest.importorskip("tensorflow")
    with staging_folder(folder / "work") as work:
        _write_saved_model(work)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(work))
        (folder / "model.tflite").write_bytes(converter.convert())
    return "model.tflite"


def _write_keras(folder: Path) -> str:
    import keras

    inputs = keras.Input((2,), name="x")
    layer = keras.layers.Rescaling(2.0, name="y")
    keras.Model(inputs, layer(inputs)).save(folder / "model.keras")
    return "model.keras"


def _write_nothing(folder: Path) -> str:
    (folder / "model.bin").write_bytes(b"nothing")
    return "model.bin"


_WRITERS = {
    "onnx": _write_onnx,
    "savedmodel": _write_saved_model,
    "openvino": _write_openvino,
    "litert": _write_litert,
    "keras": _write_keras,
}


def rows(*values: float) -> dict[str, Array]:
    """Returns an input with one row for each value."""
    return {"x": np.array([[value, value] for value in values], "float32").reshape(-1, 2)}


@pytest.fixture(name="rows")
def rows_fixture() -> Callable[..., dict[str, Array]]:
    return rows


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority and the keys of a server and of a client that it vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("client", "keyUsage=digitalSignature"),
    ):
        openssl(
            "req", "-x509", *key, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key",
            "-out", f"{name}.pem", "-subj", f"/O=house/CN={name}", "-addext", extension,
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
    return folder


MANAGED = {"model_control": "explicit", "management_tokens": ["manage"]}
"""The arguments of a server that lets clients load and unload models."""

MANAGER = (("authorization", "Bearer manage"),)
"""The metadata of a call with the token for that."""


def service_of(engine: ServingEngine, **options: Any) -> Service:
    """Returns a service for a server at a free port. Options of `HttpLimits` are taken, too."""
    names = {limit.name for limit in fields(HttpLimits)} & options.keys()
    limits = HttpLimits(**{name: options.pop(name) for name in names})
    ports = {"http_port": 0, "grpc_port": 0}
    return Service(engine, ServerOptions(**{**ports, "limits": limits, **options}))


class GrpcClient:
    """Asks a server over one channel; requests and answers are messages of this package."""

    def __init__(self, server: Any) -> None:
        grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
        self.server = server
        self.engine = server.service.engine
        self.metadata: tuple[tuple[str, str], ...] = ()
        self.channel = grpc.insecure_channel(server.target)

    def send(self, path: str, data: bytes, timeout: float | None = 60) -> Any:
        """Returns the call that sends bytes to a method, as in `"grpc.health.v1.Health/Check"`."""
        read = partial(parse_message, _method_of(path).output_type.full_name)
        call = self.channel.unary_unary(f"/{path}", None, read)
        return call.future(data, timeout=timeout, metadata=self.metadata)

    def ask(self, path: str, /, **fields: Any) -> Any:
        """Returns the answer to a request of these fields."""
        request = new_message(_method_of(path).input_type.full_name, **fields)
        return self.send(path, request.SerializeToString()).result()

    def close(self) -> None:
        self.channel.close()


def _method_of(path: str) -> Any:
    service, _, name = path.partition("/")
    return message_pool().FindServiceByName(service).methods_by_name[name]


@pytest.fixture
def serve_grpc() -> Iterator[Callable[..., GrpcClient]]:
    """Starts gRPC servers, and returns a client of each."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    with ExitStack() as stack:

        def serve(engine: ServingEngine, **arguments: Any) -> GrpcClient:
            server = GrpcServer(service_of(engine, **{"settle_seconds": 0.01, **arguments}))
            server.start()
            stack.callback(server.stop)
            client = GrpcClient(server)
            stack.callback(client.close)
            return client

        yield serve


@pytest.fixture
def quiet() -> Iterator[None]:
    """Ignores the warnings of the real clients, which are their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def status_of() -> Callable[..., tuple[str, str]]:
    """Returns the status and the text of a call that is refused."""
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

    def status_of(call: Callable[..., Any], *arguments: Any, **fields: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            call(*arguments, **fields)
        return caught.value.code().name, caught.value.details()

    return status_of


@pytest.fixture
def serve_http(doubler: Doubler) -> Iterator[Callable[..., HttpServer]]:
    """Starts HTTP servers with limits of their own."""
    pytest.importorskip("uvicorn")
    with ServingEngine(doubler) as engine:
        servers: list[HttpServer] = []

        def serve(
            ssl_context: ssl.SSLContext | None = None, max_body_bytes: int = 10_000, **limits: Any
        ) -> HttpServer:
            options = {"max_body_bytes": max_body_bytes, "ssl_context": ssl_context, **limits}
            server = HttpServer(service_of(engine, **options))
            server.start()
            servers.append(server)
            return server

        yield serve
        for server in servers:
            server.stop()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture
def wire(loop: asyncio.AbstractEventLoop) -> Any:
    from tests.oracles.http_wire import Wire

    return Wire(loop)


@pytest.fixture
def server_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    return context


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a tiny language model with a tokenizer."""
    from tests.oracles.language_model_preset import write_language_model  # It needs Keras.

    folder: Path = tmp_path_factory.mktemp("presets") / "deepseek"
    write_language_model(folder)
    return folder
