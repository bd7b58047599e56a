import asyncio
import contextlib
import gzip
import http.client
import json
import random
import re
import socket
import sys
import threading
import types
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference import HttpLimits, HttpServer, ServingEngine
from tests.inference.conftest import service_of
from tests.oracles.http_client import ask, connect, predict_request, read_all

pytest.importorskip("uvicorn")


def watch_requests(engine):
    """Returns a semaphore that is released once for each request that the engine accepts."""
    accepted, submit = threading.Semaphore(0), engine.find()._batcher.submit

    def submit_and_tell(inputs):
        future = submit(inputs)
        accepted.release()
        return future

    engine.find()._batcher.submit = submit_and_tell
    return accepted


def test_many_clients_get_their_own_answers(doubler):
    with ServingEngine(doubler) as engine:
        server = engine.serve(0)
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda value: ask(server, value), range(320)))
        statistics = engine.statistics()
    assert answers == [2 * value for value in range(320)]
    assert statistics.rows == 320


def test_requests_of_many_clients_share_batches(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        accepted = watch_requests(engine)
        server = engine.serve(0)
        doubler.hold()
        with ThreadPoolExecutor(9) as pool:
            answers = [pool.submit(ask, server, 0)]
            assert doubler.entered.wait(60)
            answers += [pool.submit(ask, server, value) for value in range(1, 9)]
            for _ in range(9):
                assert accepted.acquire(timeout=60)
            doubler.release()
            assert [answer.result() for answer in answers] == [2 * value for value in range(9)]
    assert doubler.sizes == [1, 8]


def test_a_client_that_hangs_up_is_not_computed_and_disturbs_nobody(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        accepted = watch_requests(engine)
        server = engine.serve(0)
        doubler.hold()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(ask, server, 1)
            assert doubler.entered.wait(60)
            body = b'{"instances": [[7, 7]]}'
            head = (
                f"POST /v1/models/model:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            )
            with socket.create_connection((server.host, server.port)) as gone:
                gone.sendall(head.encode() + b"\r\n\r\n" + body)
                assert accepted.acquire(timeout=60)  # The first client's.
                assert accepted.acquire(timeout=60)
                cancelled, cancel = threading.Event(), engine.find()._batcher.cancel
                engine.find()._batcher.cancel = lambda request: (cancel(request), cancelled.set())[
                    0
                ]
            assert cancelled.wait(60)
            last = pool.submit(ask, server, 2)
            doubler.release()
            assert (first.result(), last.result()) == (2, 4)
    assert 7 not in doubler.rows_seen


def test_of_128_requests_whose_clients_leave_but_for_32_no_more_are_run(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        accepted = watch_requests(engine)
        cancelled, cancel = threading.Semaphore(0), engine.find()._batcher.cancel
        engine.find()._batcher.cancel = lambda request: (cancel(request), cancelled.release())[0]
        server = engine.serve(0)
        doubler.hold()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, server, 200)
            assert doubler.entered.wait(60)
            clients = [connect(server) for _ in range(128)]
            for value, client in enumerate(clients):
                client.sendall(predict_request(value, b"Connection: close"))
            for _ in range(129):
                assert accepted.acquire(timeout=60)
            leaving = [client for value, client in enumerate(clients) if value % 4]
            for client in leaving:
                client.close()
            for _ in leaving:
                assert cancelled.acquire(timeout=60)
            doubler.release()
            assert first.result() == 400
            for client in clients[::4]:
                assert read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")
                client.close()
    assert sorted(doubler.rows_seen) == [*range(0, 128, 4), 200]


def test_stopping_answers_what_is_in_flight_and_frees_the_port(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        server = engine.serve(0)
        doubler.hold()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, server, 3)
            assert doubler.entered.wait(60)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            doubler.release()
            assert answer.result() == 6
            stopping.join()
        with pytest.raises(urllib.error.URLError, match="refused"):
            ask(server, 1)
        assert engine.ready  # The engine goes on for others.
        again = engine.serve(server.port)
        assert ask(again, 4) == 8


def test_a_server_without_a_ready_engine_answers_503(doubler):
    engine = ServingEngine(doubler)
    server = HttpServer(service_of(engine))
    server.start()
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, 1)
    with caught.value as error:
        assert error.code == 503
        assert "not ready" in json.load(error)["error"]
    engine.start()
    assert ask(server, 1) == 2
    server.stop()
    engine.close()


def wait_until_refused(server):
    """Returns when the server accepts nobody any more."""
    while True:
        try:
            connect(server).close()
        except ConnectionResetError:  # The kernel alone had let it in.
            continue
        except ConnectionRefusedError:
            return


def test_pipelined_requests_are_answered_in_their_order(serve_http):
    with connect(serve_http()) as connection:
        values = range(100)
        last = predict_request(100, b"Connection: close")
        connection.sendall(b"".join(map(predict_request, values)) + last)
        answers = read_all(connection).split(b"HTTP/1.1 200 OK\r\n")[1:]
    predictions = [json.loads(answer.split(b"\r\n\r\n")[1])["predictions"] for answer in answers]
    assert predictions == [[[2.0 * value] * 2] for value in range(101)]


def test_a_request_may_come_byte_by_byte(serve_http):
    with connect(serve_http()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in predict_request(3, b"Connection: close"):
            connection.sendall(bytes([byte]))
        assert b"[[6.0,6.0]]" in read_all(connection)


def test_a_client_that_waits_to_be_told_to_go_on_is_told(serve_http):
    with connect(serve_http()) as connection:
        head, body = predict_request(3, b"Expect: 100-continue", b"Connection: close").split(
            b"\r\n\r\n"
        )
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert b"[[6.0,6.0]]" in read_all(connection)


def test_compressed_bodies_are_taken_and_bombs_are_refused(serve_http):
    server = serve_http()
    url = f"{server.url}/v1/models/model:predict"

    def ask_compressed(content):
        body, headers = gzip.compress(content), {"Content-Encoding": "gzip"}
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    assert ask_compressed(b'{"instances": [[1, 2]]}') == {"predictions": [[2.0, 4.0]]}
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask_compressed(b" " * 1_000_000)
    with caught.value as error:
        assert error.code == 413
        assert "inflates to more than 10000 bytes" in json.load(error)["error"]


def test_a_million_random_bytes_disturb_nobody_and_show_nothing(serve_http, caplog):
    server = serve_http()
    source = random.Random(3)
    good = http.client.HTTPConnection(server.host, server.port, timeout=60)
    for number in range(500):
        start = predict_request(1)[: source.randrange(80)] if number % 2 else b""
        with connect(server) as connection:
            connection.sendall(start + source.randbytes(2000))
            connection.shutdown(socket.SHUT_WR)
            answer = read_all(connection)
        assert b"Traceback" not in answer
        if not start:
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]
        if number % 10 == 0:
            good.request("POST", "/v1/models/model:predict", '{"instances": [[1, 2]]}')
            assert json.load(good.getresponse()) == {"predictions": [[2.0, 4.0]]}
    good.close()
    assert caplog.records == []


def test_requests_with_mistakes_are_no_fault_of_the_server(serve_http, caplog):
    server, source = serve_http(header_seconds=60.0), random.Random(4)
    valid = predict_request(1)
    statuses = set()
    for _ in range(2000):
        data = bytearray(valid)
        for _ in range(source.randint(1, 4)):
            start = source.randrange(len(data) + 1)
            piece = data[start : start + source.randint(1, 16)]
            data[start : start + len(piece)] = source.choice(
                [b"", piece * 3, source.randbytes(len(piece)), b"\r\n", b"\0", b"9", b"["]
            )
        with connect(server) as connection:
            connection.sendall(data)
            # What was understood to go on is ended by what can't be understood.
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"\0" * 20_000)
                statuses |= {
                    int(code) for code in re.findall(rb"HTTP/1.1 (\d+)", read_all(connection))
                }
    assert {200, 400} <= statuses
    # A method that there is not, and another version of HTTP.
    assert {status for status in statuses if status >= 500} <= {501, 505}
    assert caplog.records == []
    assert ask(server, 2) == 4


def test_a_client_that_closes_its_sending_half_has_hung_up(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        accepted = watch_requests(engine)
        server = engine.serve(0)
        doubler.hold()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, server, 1)
            assert doubler.entered.wait(60)
            with connect(server) as connection:
                connection.sendall(predict_request(7))
                for _ in range(2):
                    assert accepted.acquire(timeout=60)
                connection.shutdown(socket.SHUT_WR)
                assert read_all(connection) == b""
            doubler.release()
            assert first.result() == 2
    assert 7 not in doubler.rows_seen


def test_clients_that_keep_their_connection_lose_no_request_when_the_server_stops(serve_http):
    server = serve_http(settle_seconds=60.0)
    busy, lock = threading.Semaphore(0), threading.Lock()
    statuses = []

    def ask_until_told_to_stop():
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        is_told = False
        while not is_told:
            connection.request("POST", "/v1/models/model:predict", '{"instances": [[1, 2]]}')
            response = connection.getresponse()
            is_told = response.will_close
            response.read()
            with lock:
                statuses.append(response.status)
            busy.release()
        return True

    with ThreadPoolExecutor(32) as pool:
        clients = [pool.submit(ask_until_told_to_stop) for _ in range(32)]
        for _ in range(320):
            assert busy.acquire(timeout=60)
        server.stop()
        assert all(client.result(timeout=60) for client in clients)
    assert set(statuses) == {200}


def test_every_request_in_flight_is_answered_when_the_server_stops(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        accepted = watch_requests(engine)
        server = engine.serve(0)
        doubler.hold()
        clients = [connect(server) for _ in range(40)]
        idle = connect(server)
        for value, client in enumerate(clients):
            client.sendall(predict_request(value))
        for _ in clients:
            assert accepted.acquire(timeout=60)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        wait_until_refused(server)
        doubler.release()
        for value, client in enumerate(clients):
            answer = read_all(client)
            client.close()
            assert b"\r\nconnection: close\r\n" in answer
            assert answer.endswith(b"[[%d.0,%d.0]]}" % (2 * value, 2 * value))
        assert read_all(idle) == b""
        idle.close()
        stopping.join(60)
        assert not stopping.is_alive()


def test_a_stopping_server_does_not_wait_for_ever(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        server = HttpServer(service_of(engine, limits=HttpLimits(grace_seconds=0.1)))
        server.start()
        doubler.hold()
        with connect(server) as connection:
            connection.sendall(predict_request(1))
            assert doubler.entered.wait(60)
            server.stop()
            assert read_all(connection) == b""
        doubler.release()


@pytest.mark.parametrize("is_installed", [True, False])
def test_the_loop_is_uvloop_s_where_it_is_installed(serve_http, monkeypatch, is_installed):
    loops = []

    def new_event_loop():
        loops.append(asyncio.new_event_loop())
        return loops[0]

    uvloop = types.SimpleNamespace(new_event_loop=new_event_loop) if is_installed else None
    monkeypatch.setitem(sys.modules, "uvloop", uvloop)
    assert ask(serve_http(), 1) == 2
    assert len(loops) == int(is_installed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ssl_context": "server.pem"}, r"`ssl_context` must be .* received 'server\.pem'"),
        ({"limits": {"idle_seconds": 3}}, r"`limits` must be an `HttpLimits`"),
        ({"access_log": "no"}, r"`access_log` must be True or False"),
    ],
)
def test_an_option_of_another_type_is_refused(doubler, options, message):
    with pytest.raises(InvalidInputError, match=message):
        HttpServer(service_of(ServingEngine(doubler), **options))


def test_a_server_that_never_started_can_be_stopped(doubler):
    HttpServer(service_of(ServingEngine(doubler))).stop()


def test_a_taken_port_is_refused_at_once(doubler):
    with socket.create_server(("127.0.0.1", 0)) as listener, ServingEngine(doubler) as engine:
        port = listener.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"on port {port}: .*in use.* 0 for a free one"):
            engine.serve(port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "an integer from 0 to 65535, received 70000"),
        ("127.0.0.1", -1, "received -1"),
        ("no.such.host.invalid", 0, "at 'no.such.host.invalid' on port 0.* Choose an address of"),
        ("192.0.2.1", 0, r"Can't listen at '192\.0\.2\.1' on port 0.* Choose an address of this"),
    ],
)
def test_an_address_that_is_none_is_refused(doubler, host, port, message):
    with pytest.raises(InvalidInputError, match=message):
        HttpServer(service_of(ServingEngine(doubler), host=host, http_port=port)).start()


def test_the_url_of_an_ip_6_address_has_brackets(doubler):
    assert (
        HttpServer(service_of(ServingEngine(doubler), host="::1", http_port=80)).url
        == "http://[::1]:80"
    )


def test_the_error_names_the_extra_where_the_server_is_missing(doubler, monkeypatch):
    for name in ("uvicorn", "httptools"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=rf"`{name}` .*keras_deepseek\[serving\]"):
            HttpServer(service_of(ServingEngine(doubler))).start()


def test_a_server_that_others_reach_is_warned_of_without_tls(doubler, server_context):
    with ServingEngine(doubler) as engine:
        with pytest.warns(UserWarning, match=r"Everybody who can reach '0\.0\.0\.0'"):
            engine.serve(0, host="0.0.0.0")
        with pytest.warns(UserWarning, match="Tokens and requests cross the network in clear text"):
            engine.serve(0, host="0.0.0.0", tokens=["secret"])
        engine.serve(0, host="0.0.0.0", ssl_context=server_context)
        engine.serve(0, host="localhost")
