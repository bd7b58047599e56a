import asyncio
import socket
import sys
import threading
import types

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ClosedError, HttpServer, ServingEngine
from keras_deepseek.inference.server.server import (
    Server,
    call_in,
    listen,
    loop_factory,
    stop_servers,
)
from tests.inference.conftest import service_of


class Silent(Server):
    """Listens for nobody; `fault` ends it before it listens, `gate` holds it up until then."""

    def __init__(
        self, engine, host="127.0.0.1", port=0, fault=None, gate=None, is_secure=False, **options
    ):
        service = service_of(engine, host=host, http_port=port, **options)
        super().__init__(service, port, scheme="silent", is_secure=is_secure)
        self.fault = fault
        self.gate = gate

    def _prepare(self):
        return self._serve

    async def _serve(self, listens):
        if self.gate is not None:
            await asyncio.to_thread(self.gate.wait)
        if self.fault is not None:
            raise self.fault
        listens.set_result(7)
        await self.stopping.wait()


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        yield engine


def test_it_is_ready_from_the_start_to_the_stop(engine):
    server = Silent(engine)
    server.start()
    assert (server.ready, server.port, server.target) == (True, 7, "127.0.0.1:7")
    server.service.check_ready("model")
    stop_servers([server])
    server.wait()
    assert not server.ready
    server.service.check_ready("model")
    engine.close()
    with pytest.raises(ClosedError, match="'model' is not ready"):
        server.service.check_ready("model")
    server.stop()


def test_an_unready_server_answers_all_the_same(engine):
    server = Silent(engine)
    server.announce_unready()
    server.service.check_ready("model")
    assert not server.ready


def test_a_server_without_a_model_is_not_ready(engine):
    server = Silent(engine)
    assert server.ready
    engine.unload()
    assert not server.ready


def test_a_service_has_one_server(engine):
    server = Silent(engine)
    with pytest.raises(InvalidInputError, match="has a server already"):
        HttpServer(server.service)


def test_the_address_of_ipv6_for_all_takes_ipv4_too():
    if not socket.has_dualstack_ipv6():
        pytest.skip("This machine has no IPv6.")
    with listen("::", 0) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()
        socket.create_connection(("::1", listener.getsockname()[1])).close()


@pytest.mark.parametrize(
    ("host", "is_secure", "url"),
    [("127.0.0.1", False, "silent://127.0.0.1:80"), ("::1", True, "silents://[::1]:80")],
)
def test_its_url_says_what_is_spoken_and_where(engine, host, is_secure, url):
    assert Silent(engine, host, 80, is_secure=is_secure).url == url


def test_what_ends_it_before_it_listens_is_raised(engine):
    server = Silent(engine, fault=ArithmeticError("no"))
    with pytest.raises(ArithmeticError, match="no"):
        server.start()
    server.wait()


def test_it_may_be_told_to_stop_before_it_listens(engine):
    gate = threading.Event()
    server = Silent(engine, gate=gate)
    starting = threading.Thread(target=server.start)
    stopping = threading.Thread(target=server.stop)
    starting.start()
    stopping.start()
    gate.set()
    starting.join(60)
    stopping.join(60)
    server.stop()
    assert not starting.is_alive()
    assert not stopping.is_alive()


def test_one_that_never_started_can_be_stopped(engine):
    Silent(engine).stop()


def test_a_port_that_is_none_is_refused(engine):
    with pytest.raises(InvalidInputError, match="received 70000"):
        Silent(engine, port=70000)


def test_strangers_are_warned_of_and_a_warning_that_is_an_error_ends_it(engine):
    with pytest.warns(UserWarning, match="Everybody who can reach"):
        (server := Silent(engine, "0.0.0.0")).start()
    server.stop()
    with pytest.raises(UserWarning, match="Everybody who can reach"):
        (server := Silent(engine, "0.0.0.0")).start()
    server.wait()
    with pytest.warns(UserWarning, match="Tokens and requests cross the network in clear text"):
        (server := Silent(engine, "0.0.0.0", tokens=["a" * 16])).start()
    server.stop()
    (secure := Silent(engine, "0.0.0.0", is_secure=True)).start()
    secure.stop()


def test_the_loop_is_uvloop_s_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is None
    uvloop = types.SimpleNamespace(new_event_loop=object())
    monkeypatch.setitem(sys.modules, "uvloop", uvloop)
    assert loop_factory() is uvloop.new_event_loop


def test_a_function_is_called_in_the_loop_and_in_none_that_is_closed():
    called = []
    loop = asyncio.new_event_loop()
    call_in(loop, lambda: (called.append(1), loop.stop()))
    loop.run_forever()
    loop.close()
    call_in(loop, lambda: called.append(2))
    assert called == [1]
