import asyncio
import gzip
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference import GrpcServer, ServingEngine
from keras_deepseek.inference.grpc import grpc_server
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.tensor_proto import from_tensor_proto, to_tensor_proto
from tests.inference.conftest import service_of

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

PREDICT = "tensorflow.serving.PredictionService/Predict"


def request(*rows, name="model"):
    message = new_message("tensorflow.serving.PredictRequest")
    message.model_spec.name = name
    message.inputs["x"].CopyFrom(to_tensor_proto(np.asarray(rows, "float32")))
    return message.SerializeToString()


def start(client, value, timeout=60):
    """Sends a row of two equal values."""
    return client.send(PREDICT, request([value, value]), timeout)


def value_of(answer):
    return from_tensor_proto(answer.outputs["y"], "y")[0, 0]


@pytest.fixture
def watch(doubler, monkeypatch):
    """An engine that tells, by semaphores, of each request that it accepts and takes out."""
    with ServingEngine(doubler, warm_up=False) as engine:
        batcher = engine.find()._batcher
        submit, cancel = batcher.submit, batcher.cancel
        engine_watch = types.SimpleNamespace(
            engine=engine, accepted=threading.Semaphore(0), cancelled=threading.Semaphore(0)
        )

        def submit_and_tell(queued_request):
            submit(queued_request)
            engine_watch.accepted.release()

        def cancel_and_tell(queued_request):
            is_cancelled = cancel(queued_request)
            engine_watch.cancelled.release()
            return is_cancelled

        monkeypatch.setattr(batcher, "submit", submit_and_tell)
        monkeypatch.setattr(batcher, "cancel", cancel_and_tell)
        yield engine_watch


def hold_one(watch, doubler, client):
    """Starts a request that the model does not end before it is told to."""
    doubler.hold()
    running = start(client, 1)
    assert doubler.entered.wait(60)
    assert watch.accepted.acquire(timeout=60)
    return running


def test_many_clients_get_their_own_answers_and_share_batches(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine)
        calls = [start(client, value) for value in range(320)]
        assert [value_of(call.result()) for call in calls] == [2 * value for value in range(320)]
        statistics = engine.statistics()
    assert statistics.rows == 320
    assert statistics.batches < 320


def test_a_client_that_cancels_takes_its_request_out_of_the_queue(watch, doubler, serve_grpc):
    client = serve_grpc(watch.engine)
    running = hold_one(watch, doubler, client)
    unwanted = start(client, 7)
    assert watch.accepted.acquire(timeout=60)
    unwanted.cancel()
    assert watch.cancelled.acquire(timeout=60)
    last = start(client, 2)
    assert watch.accepted.acquire(timeout=60)
    doubler.release()
    assert (value_of(running.result()), value_of(last.result())) == (2, 4)
    assert 7 not in doubler.rows_seen


def test_a_client_that_is_gone_takes_its_requests_out_of_the_queue(watch, doubler, serve_grpc):
    client = serve_grpc(watch.engine)
    running = hold_one(watch, doubler, client)
    code = "import sys, grpc; grpc.insecure_channel(sys.argv[1]).unary_unary(sys.argv[2])"
    code += "(bytes.fromhex(sys.argv[3]))"
    arguments = (client.server.target, f"/{PREDICT}", request([7, 7]).hex())
    with subprocess.Popen([sys.executable, "-c", code, *arguments]) as gone:
        assert watch.accepted.acquire(timeout=60)
        gone.kill()
    assert watch.cancelled.acquire(timeout=60)
    doubler.release()
    assert value_of(running.result()) == 2
    assert 7 not in doubler.rows_seen


def test_the_client_s_deadline_is_the_request_s(watch, doubler, serve_grpc, status_of):
    client = serve_grpc(watch.engine)
    running = hold_one(watch, doubler, client)
    timeouts, dispatch = [], watch.engine.dispatch_async

    def note(bind, trace, **options):
        timeouts.append(options["timeout"])
        return dispatch(bind, trace, **options)

    watch.engine.dispatch_async = note
    assert status_of(start(client, 7, timeout=0.2).result)[0] == "DEADLINE_EXCEEDED"
    unlimited = start(client, 3, timeout=None)
    assert watch.accepted.acquire(timeout=60)
    assert watch.accepted.acquire(timeout=60)
    doubler.release()
    assert (value_of(running.result()), value_of(unlimited.result())) == (2, 6)
    assert 0 < timeouts[0] < 0.3  # gRPC rounds it up.
    assert timeouts[1] is None
    assert 7 not in doubler.rows_seen


def stopping_is_told(server):
    waiting = asyncio.run_coroutine_threadsafe(server.stopping.wait(), server._loop)
    return waiting.result(60)


def test_stopping_answers_what_is_in_flight_and_frees_the_port(watch, doubler, serve_grpc):
    client = serve_grpc(watch.engine)
    calls = [hold_one(watch, doubler, client), *(start(client, value) for value in range(2, 41))]
    for _ in range(39):
        assert watch.accepted.acquire(timeout=60)
    stopping = threading.Thread(target=client.server.stop)
    stopping.start()
    assert stopping_is_told(client.server)
    assert not client.server.ready
    doubler.release()
    assert [value_of(call.result()) for call in calls] == [2 * value for value in range(1, 41)]
    stopping.join(60)
    assert not stopping.is_alive()
    assert watch.engine.ready  # The engine goes on for others.
    again = GrpcServer(service_of(watch.engine, grpc_port=client.server.port))
    again.start()
    again.stop()


def ask_until(is_over, targets, done, data):
    """Asks over one channel, one call after the other; returns the statuses by their number."""
    statuses = Counter()
    options = [("grpc.use_local_subchannel_pool", 1)]  # A connection of its own.
    with grpc.insecure_channel(f"ipv4:{','.join(targets)}", options) as channel:
        call = channel.unary_unary(f"/{PREDICT}")
        while not is_over.is_set():
            try:
                call(data, timeout=60)
                statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[error.code().name] += 1
            done.release()
    return statuses


def test_clients_that_ask_on_lose_no_call_when_a_server_stops(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        first, second = serve_grpc(engine), serve_grpc(engine)
        is_over, done, data = threading.Event(), threading.Semaphore(0), request([1, 1])
        targets = (first.server.target, second.server.target)
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask_until, is_over, targets, done, data) for _ in range(8)]
            for _ in range(80):
                assert done.acquire(timeout=60)
            first.server.stop()
            for _ in range(80):
                assert done.acquire(timeout=60)
            is_over.set()
            statuses = sum((future.result() for future in futures), Counter())
    assert set(statuses) == {"OK"}, statuses


def test_connections_that_are_renewed_lose_no_call(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine, connection_seconds=0.02)
        is_over, done, data = threading.Event(), threading.Semaphore(0), request([1, 1])
        with ThreadPoolExecutor(4) as pool:
            targets = (client.server.target,)
            futures = [pool.submit(ask_until, is_over, targets, done, data) for _ in range(4)]
            for _ in range(400):
                assert done.acquire(timeout=60)
            is_over.set()
            statuses = sum((future.result() for future in futures), Counter())
    assert set(statuses) == {"OK"}, statuses


def test_a_stopping_server_does_not_wait_for_ever(watch, doubler, serve_grpc, status_of):
    client = serve_grpc(watch.engine, grace_seconds=0.1)
    running = hold_one(watch, doubler, client)
    client.server.stop()
    assert status_of(running.result)[0] in ("CANCELLED", "UNAVAILABLE")
    doubler.release()


def test_a_server_without_a_ready_engine_is_unavailable(doubler, serve_grpc, status_of):
    engine = ServingEngine(doubler)
    client = serve_grpc(engine)
    status, text = status_of(start(client, 1).result)
    assert (status, "not ready" in text) == ("UNAVAILABLE", True)
    engine.start()
    assert value_of(start(client, 1).result()) == 2
    client.server.stop()
    engine.close()


def test_calls_and_connections_beyond_the_limit_are_refused(
    watch, doubler, serve_grpc, status_of, monkeypatch
):
    monkeypatch.setattr(grpc_server, "_MAX_CALLS", 1)
    client = serve_grpc(watch.engine, max_connections=1)
    running = hold_one(watch, doubler, client)
    assert status_of(start(client, 2).result)[0] == "RESOURCE_EXHAUSTED"
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(client.server.target, options) as other:
        call = other.unary_unary(f"/{PREDICT}")
        assert status_of(call, request([1, 1]), timeout=60)[0] == "UNAVAILABLE"
    doubler.release()
    assert value_of(running.result()) == 2


def test_a_connection_has_room_for_more_than_all_calls_but_not_for_any_number(doubler, serve_grpc):
    with ServingEngine(doubler) as engine:
        server = serve_grpc(engine).server
        with socket.create_connection((server.host, server.port), timeout=60) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4" + bytes(5))
            with connection.makefile("rb") as received:
                head = received.read(9)
                settings = received.read(int.from_bytes(head[:3], "big"))
    assert head[3] == 4  # SETTINGS of HTTP/2
    pairs = struct.iter_unpack(">HI", settings)
    assert grpc_server._MAX_CALLS < dict(pairs)[3] <= 2 * grpc_server._MAX_CALLS


def test_messages_beyond_the_limit_are_refused_compressed_or_not(doubler, serve_grpc, status_of):
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine, max_body_bytes=10_000)
        large = request(*[[0, 0]] * 100_000)
        assert len(gzip.compress(large)) < 10_000
        predict = client.channel.unary_unary(f"/{PREDICT}")
        for compression in (None, grpc.Compression.Gzip):
            status, text = status_of(predict, large, timeout=60, compression=compression)
            assert (status, "larger than max" in text) == ("RESOURCE_EXHAUSTED", True)
        answer = predict(request([1, 1]), timeout=60, compression=grpc.Compression.Gzip)
        assert value_of(parse_message("tensorflow.serving.PredictResponse", answer)) == 2


def test_a_text_that_repeats_what_was_sent_is_cut_to_fit_a_header(doubler, serve_grpc, status_of):
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine)
        call = client.send(PREDICT, request([1, 1], name="ü" * 100_000))
        status, text = status_of(call.result)
    assert (status, len(text)) == ("NOT_FOUND", 1003)


def test_a_method_that_there_is_not_is_told_so(doubler, serve_grpc, status_of):
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine)
        nothing = client.channel.unary_unary("/tensorflow.serving.PredictionService/Nothing")
        assert status_of(nothing, b"", timeout=60)[0] == "UNIMPLEMENTED"


def test_what_is_not_http_2_disturbs_nobody(doubler, serve_grpc):
    source = random.Random(3)
    with ServingEngine(doubler) as engine:
        client = serve_grpc(engine)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for number in range(200):
            address = (client.server.host, client.server.port)
            with socket.create_connection(address, timeout=60) as connection:
                connection.sendall((preface if number % 2 else b"") + source.randbytes(2000))
        assert value_of(start(client, 1).result()) == 2


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with the keys of a server and of a client, each of which vouches for itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out",
                f"{name}.pem", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_health(server, credentials):
    answer = "grpc.health.v1.HealthCheckResponse"
    with grpc.secure_channel(server.target, credentials) as channel:
        data = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=60)
    return parse_message(answer, data).status


def test_tls_is_spoken_and_clients_prove_who_they_are(doubler, serve_grpc, certificates, status_of):
    pair = (certificates["server.key"], certificates["server.pem"])
    credentials = grpc.ssl_server_credentials([pair], certificates["client.pem"], True)
    with ServingEngine(doubler) as engine:
        server = serve_grpc(engine, grpc_credentials=credentials).server
        assert server.url == f"grpcs://{server.target}"
        client_pair = (certificates["client.key"], certificates["client.pem"])
        client_credentials = grpc.ssl_channel_credentials(certificates["server.pem"], *client_pair)
        assert check_health(server, client_credentials) == 1
        unknown = grpc.ssl_channel_credentials(certificates["server.pem"])
        assert status_of(check_health, server, unknown)[0] == "UNAVAILABLE"


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_loop_is_uvloop_s_where_it_is_installed(doubler, serve_grpc, monkeypatch, is_installed):
    loops = []

    def new_event_loop():
        loops.append(asyncio.new_event_loop())
        return loops[0]

    uvloop = types.SimpleNamespace(new_event_loop=new_event_loop) if is_installed else None
    monkeypatch.setitem(sys.modules, "uvloop", uvloop)
    with ServingEngine(doubler) as engine:
        assert value_of(start(serve_grpc(engine), 1).result()) == 2
    assert len(loops) == int(is_installed)


def test_a_server_that_never_started_can_be_stopped_and_one_may_be_stopped_twice(doubler):
    GrpcServer(service_of(ServingEngine(doubler))).stop()
    server = GrpcServer(service_of(ServingEngine(doubler)))
    server.start()
    server.stop()
    server.stop()
    server.wait()


def test_a_taken_port_is_refused_at_once(doubler):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"on port {port}: .*in use.* 0 for a free one"):
            GrpcServer(service_of(ServingEngine(doubler), grpc_port=port)).start()


def test_a_port_of_another_grpc_server_is_taken_too(doubler, serve_grpc):
    engine = ServingEngine(doubler)
    port = serve_grpc(engine).server.port
    with pytest.raises(InvalidInputError, match=f"on port {port}: .*in use"):
        GrpcServer(service_of(engine, grpc_port=port)).start()


def test_an_address_that_grpc_itself_can_t_take_is_refused(doubler, monkeypatch):
    monkeypatch.setattr(grpc_server, "listen", lambda host, port: socket.socket())
    match = r"Can't listen at '127\.0\.0\.1'"
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(InvalidInputError, match=match),
    ):
        GrpcServer(service_of(ServingEngine(doubler), grpc_port=listener.getsockname()[1])).start()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grpc_port": 70000}, "an integer from 0 to 65535, received 70000"),
        ({"grpc_port": -1}, "received -1"),
        ({"host": "no.such.host.invalid"}, "Can't listen at 'no.such.host.invalid'"),
        ({"max_body_bytes": 0}, "`max_body_bytes` must be a positive integer"),
        ({"grace_seconds": -1}, "`grace_seconds` must be a finite number above 0, received -1"),
        (
            {"grpc_credentials": "server.pem"},
            r"`grpc_credentials` must be .* received 'server\.pem'",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_refused(doubler, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        GrpcServer(service_of(ServingEngine(doubler), **arguments)).start()


def test_the_target_of_an_ip_6_address_has_brackets(doubler):
    server = GrpcServer(service_of(ServingEngine(doubler), host="::1", grpc_port=80))
    assert (server.target, server.url) == ("[::1]:80", "grpc://[::1]:80")


@pytest.mark.parametrize(
    ("module", "package"), [("grpc.aio", "grpcio"), ("google.protobuf.message", "protobuf")]
)
def test_the_error_names_the_extra_where_a_package_is_missing(
    doubler, monkeypatch, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"`{package}` .*keras_deepseek\[grpc\]"):
        GrpcServer(service_of(ServingEngine(doubler))).start()
