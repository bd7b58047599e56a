"""A connection over a transport that only notes what is done to it, and a clock that is set."""

import asyncio
import types

import pytest

pytest.importorskip("uvicorn")

from uvicorn.config import Config
from uvicorn.server import ServerState

from keras_deepseek.inference.http.http_protocol import HttpProtocol
from keras_deepseek.inference.http.message import EXTENSION
from keras_deepseek.inference.server.http_limits import HttpLimits

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = HttpLimits()


def post(body, *headers):
    lines = [b"POST /now HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Application:
    """An ASGI application that answers `/now` with the body, and other paths by `Wire.answer`."""

    def __init__(self):
        self.scopes = []
        self.waiting = {}
        self.ended = []
        self.is_early = False
        """True to answer before the body has come."""

    async def __call__(self, scope, receive, send):
        exchange = scope["extensions"][EXTENSION]
        if self.is_early:
            await self._send(send, 404, b"")
            return
        body, is_last = b"", exchange.refusal is not None
        while not is_last:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append("hung up")
                return
            body += message.get("body", b"")
            is_last = not message.get("more_body") or exchange.refusal is not None
        if exchange.refusal is not None:
            await self._send(send, exchange.refusal.status, str(exchange.refusal).encode())
            return
        self.scopes.append(scope)
        if scope["path"] != "/now":
            body = await self._wait(exchange, scope["path"][1:])
            if body is None:
                self.ended.append(f"{scope['path'][1:]} hung up")
                return
        await self._send(send, 200, body or b"now")

    async def _wait(self, exchange, name):
        answer = self.waiting[name] = asyncio.get_running_loop().create_future()
        exchange.call_on_disconnect(lambda: answer.done() or answer.set_result(None))
        return await answer

    async def _send(self, send, status, body):
        self.ended.append(status)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Transport(asyncio.Transport):
    """Notes what is written and done."""

    def __init__(self):
        super().__init__()
        self.written = b""
        self.done = []
        self.unsent = 0

    def write(self, data):
        self.written += data

    def writelines(self, pieces):
        self.written += b"".join(pieces)

    def get_write_buffer_size(self):
        return self.unsent

    def is_closing(self):
        return "close" in self.done or "abort" in self.done

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.done.append("write_eof")

    def close(self):
        self.done.append("close")

    def abort(self):
        self.done.append("abort")

    def pause_reading(self):
        self.done.append("pause_reading")

    def resume_reading(self):
        self.done.append("resume_reading")


class Wire:
    """A connection with all that is around it, on a loop that runs only inside of its methods."""

    def __init__(self, loop, limits=LIMITS, num_other_connections=0):
        self.now = 1000.0
        self.loop = loop
        self.application = Application()
        self.transport = Transport()
        self.full = set()
        self.service = types.SimpleNamespace(
            limits=limits,
            is_unready=False,
            is_stopping=False,
            options=types.SimpleNamespace(max_body_bytes=100_000),
        )
        self.state = ServerState()
        self.state.connections.update(range(num_other_connections))
        config = Config(self.application, lifespan="off", log_config=None, proxy_headers=False)
        self.run(lambda: self._connect(config))

    def _connect(self, config):
        application = types.SimpleNamespace(service=self.service, refuse_early=self._refuse_early)
        self.connection = HttpProtocol(application, config, self.state, lambda: self.now)
        self.connection.connection_made(self.transport)

    def _refuse_early(self, method, path, headers):
        return ([(b"content-length", b"4")], b"full") if path in self.full else None

    def run(self, function):
        """Calls a function on the loop, and lets the loop do all that follows."""

        async def call():
            function()
            for _ in range(20):
                await asyncio.sleep(0)

        self.loop.run_until_complete(call())

    def send(self, *pieces):
        for piece in pieces:
            self.run(lambda piece=piece: self.connection.data_received(piece))

    def answer(self, name):
        """Answers the request for the path `name` with its name."""
        self.run(lambda: self.application.waiting[name].set_result(name.encode()))

    def take(self):
        """Returns the status, the headers and the body of each answer since the last call."""
        answers, unread = [], self.transport.written
        self.transport.written = b""
        while unread:
            head, _, unread = unread.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            length = int(headers.get("content-length", 0))
            answers.append((int(first.split()[1]), headers, unread[:length].decode()))
            unread = unread[length:]
        return answers

    def bodies(self):
        return [body for _, _, body in self.take()]

    def statuses(self):
        return [status for status, _, _ in self.take()]

    def wait(self, seconds):
        self.now += seconds
        self.run(self.connection.check_time)
