import json
import socket
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.artifacts import InvalidInputError, MissingExtraError
from keras_deepseek.inference import HttpServer, ServingEngine

pytest.importorskip("httptools")


def ask(server, value):
    body = json.dumps({"instances": [[value, value]]}).encode()
    url = f"{server.url}/v1/models/model:predict"
    with urllib.request.urlopen(url, data=body, timeout=60) as response:
        return json.load(response)["predictions"][0][0]


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
    server = HttpServer(engine, port=0)
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


def test_a_server_that_never_started_can_be_stopped(doubler):
    HttpServer(ServingEngine(doubler)).stop()


def test_a_taken_port_is_refused_at_once(doubler):
    with socket.create_server(("127.0.0.1", 0)) as taken, ServingEngine(doubler) as engine:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"on port {port}: .*in use.* 0 for a free one"):
            engine.serve(port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "Received port 70000. Expected an integer from 0"),
        ("127.0.0.1", -1, "Received port -1"),
        ("no.such.host.invalid", 0, "Can't listen at 'no.such.host.invalid' on port 0"),
    ],
)
def test_an_address_that_is_none_is_refused(doubler, host, port, message):
    with pytest.raises(InvalidInputError, match=message):
        HttpServer(ServingEngine(doubler), host, port).start()


def test_the_url_of_an_ip_6_address_has_brackets(doubler):
    assert HttpServer(ServingEngine(doubler), "::1", 80).url == "http://[::1]:80"


def test_the_error_names_the_extra_where_the_server_is_missing(doubler, monkeypatch):
    monkeypatch.setitem(sys.modules, "httptools", None)
    with pytest.raises(MissingExtraError, match=r"`httptools` .*keras_deepseek\[serving\]"):
        HttpServer(ServingEngine(doubler)).start()
