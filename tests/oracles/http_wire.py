"""A connection over a transport that only notes what is done to it, and a clock that is set."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("httptools")

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.http.http_connection import HttpConnection
from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.message import HttpError, HttpResponse, Pending
from keras_deepseek.inference.http.open_connections import OpenConnections

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = HttpLimits(max_pipelined=3)


def post(body, *headers):
    lines = [b"POST /now HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Application:
    """Answers `/now` at once, `/fault` by raising, and other paths when `answer` is called."""

    def __init__(self):
        self.requests = []
        self.waiting = {}
        self.cancelled = []
        self.ended = []

    def admit(self, request):
        if request.path == "/secret":
            raise HttpError(401, "no token")

    def end(self, request, response):
        path = None if request is None else request.path
        self.ended.append((path, None if response is None else response.status))

    def handle(self, request):
        self.requests.append(request)
        if request.path == "/now":
            return HttpResponse(body=request.body or b"now")
        if request.path == "/fault":
            raise ArithmeticError("a secret")
        name = request.path[1:]

        def start(settle):
            self.waiting[name] = settle
            return lambda: self.cancelled.append(name)

        return Pending(start, lambda finished: HttpResponse(body=outcome(finished)))

    def answer_error(self, error, path):
        if isinstance(error, HttpError):
            return HttpResponse(error.status, str(error).encode())
        return HttpResponse(500, type(error).__name__.encode())


def outcome(finished):
    if finished.error is not None:
        raise finished.error
    return finished.outputs["y"]


def finished_request(value):
    request = Request({"x": np.zeros((1, 1))})
    if isinstance(value, BaseException):
        request.fail(value)
    else:
        request.answer(0, {"y": value}, 1)
    return request


class Transport(asyncio.Transport):
    """Notes what is written and done."""

    def __init__(self, **information):
        super().__init__(information)
        self.written = b""
        self.done = []
        self.unsent = 0

    def write(self, data):
        self.written += data

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
    """A connection with all that is around it."""

    def __init__(self, loop, limits=LIMITS, **information):
        self.now = 1000.0
        self.loop = loop
        self.application = Application()
        self.connections = OpenConnections(limits)
        self.transport = Transport(**information)
        self.connection = HttpConnection(
            self.application, self.connections, 1000, limits, lambda: self.now
        )
        self.connection.connection_made(self.transport)

    def send(self, *pieces):
        for piece in pieces:
            self.connection.data_received(piece)

    def answer(self, name, value=None):
        """Answers the request for the path `name` with its name, or with `value`."""
        settle = self.application.waiting[name]
        settle(finished_request(name.encode() if value is None else value))

    def take(self):
        """Returns the status, the headers and the body of each answer since the last call."""
        answers, rest = [], self.transport.written
        self.transport.written = b""
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            length = int(headers.get("content-length", 0))
            answers.append((int(first.split()[1]), headers, rest[:length].decode()))
            rest = rest[length:]
        return answers

    def bodies(self):
        return [body for _, _, body in self.take()]

    def statuses(self):
        return [status for status, _, _ in self.take()]

    def wait(self, seconds):
        self.now += seconds
        self.connection.check_time()
