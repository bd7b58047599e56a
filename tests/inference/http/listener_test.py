import asyncio
import errno
import socket

import pytest

from keras_deepseek.inference.http import listener as listener_module
from keras_deepseek.inference.http.listener import Listener, probe_dead_peers


class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()


class Socket(socket.socket):
    """A listening socket whose next calls of `accept` raise `errors`."""

    errors = ()

    def accept(self):
        if self.errors:
            error, *self.errors = self.errors
            raise error
        return super().accept()


@pytest.fixture
def listening():
    with Socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(300)
        yield listening


def greeting(address):
    with socket.create_connection(address, timeout=60) as client:
        return client.recv(100)


async def listen(listening):
    server = Listener(listening, Greeter, None, 1.0, 1.0, lambda: 1000)
    server.start()
    answer = await asyncio.to_thread(greeting, listening.getsockname())
    await server.stop()
    return answer


def test_who_comes_is_given_a_protocol_and_then_nobody_is_let_in(listening):
    address = listening.getsockname()
    assert asyncio.run(listen(listening)) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        greeting(address)


def test_whom_the_kernel_has_let_in_is_not_forgotten_when_it_stops(listening):
    clients = [socket.create_connection(listening.getsockname(), timeout=60) for _ in range(250)]

    async def stop():
        await Listener(listening, Greeter, None, 1.0, 1.0, lambda: 1000).stop()
        await asyncio.sleep(0)  # The transports close themselves a step later.
        await asyncio.sleep(0)

    asyncio.run(stop())
    for client in clients:
        assert client.recv(100) == b"hello"
        client.close()


def test_a_client_that_is_gone_already_keeps_nobody_waiting(listening, caplog):
    listening.errors = [ConnectionAbortedError(), InterruptedError(), BlockingIOError()]
    assert asyncio.run(listen(listening)) == b"hello"
    assert caplog.records == []


def test_too_many_open_files_are_told_and_waited_out(listening, caplog, monkeypatch):
    monkeypatch.setattr(listener_module, "_REST_SECONDS", 0.01)
    listening.errors = [OSError(errno.EMFILE, "Too many open files")]
    assert asyncio.run(listen(listening)) == b"hello"
    (record,) = caplog.records
    assert record.message == "Can't accept connections."
    assert "Too many open files" in caplog.text


def test_it_can_be_stopped_while_it_waits(listening):
    async def stop_early():
        listening.errors = [OSError(errno.EMFILE, "Too many open files")]
        server = Listener(listening, Greeter, None, 1.0, 1.0, lambda: 1000)
        server.start()
        with socket.create_connection(listening.getsockname(), timeout=60) as client:
            while listening.errors:
                await asyncio.sleep(0)
            await server.stop()
            return await asyncio.to_thread(client.recv, 100)

    assert asyncio.run(stop_early()) == b"hello"


def test_the_kernel_is_asked_to_probe_a_silent_client():
    with socket.socket() as client:
        probe_dead_peers(client)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_a_connection_without_room_is_closed_at_once(listening):
    room = iter((1, 0))

    async def ask():
        server = Listener(listening, Greeter, None, 1.0, 1.0, lambda: next(room))
        server.start()
        answers = [await asyncio.to_thread(greeting, listening.getsockname()) for _ in range(2)]
        await server.stop()
        return answers

    assert asyncio.run(ask()) == [b"hello", b""]
