"""Clients of an HTTP server, good and bad ones, on the streams of asyncio."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from server_processes import ROW, Rival, Server

HOST = "127.0.0.1"
OK, CLOSED, SILENT = 200, 0, -1
"""The last two stand for a connection that ended without an answer, and for none in time."""


@dataclass(frozen=True)
class Answer:
    """A status, when it was asked for, and how long it took."""

    status: int
    began: float
    seconds: float


def request_of(rival: Rival, first: float = ROW[0], path: str | None = None) -> bytes:
    """Returns a request of one row, which begins with a number."""
    body = json.dumps(rival.body).replace(str(ROW[0]), str(first), 1).encode()
    head = (
        f"POST {path or rival.path} HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """One connection, and one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Client":
        """Connects."""
        return cls(*await asyncio.open_connection(HOST, port))

    async def ask(self, request: bytes, seconds: float = 60.0) -> Answer:
        """Sends a request and reads its answer."""
        start = time.monotonic()
        with suppress(OSError):
            self.writer.write(request)
        return Answer(await self.read_status(seconds), start, time.monotonic() - start)

    async def read_status(self, seconds: float) -> int:
        """Returns the status of the next answer, or `CLOSED`, or `SILENT`."""
        try:
            async with asyncio.timeout(seconds):
                head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
                fields = dict(
                    line.split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
                )
                await self.reader.readexactly(int(fields.get(b"content-length", b"0")))
        except TimeoutError:
            return SILENT
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return CLOSED
        return int(head.split(b" ", 2)[1])

    async def wait_for_end(self, seconds: float) -> bool:
        """Returns whether the server closes the connection within some time."""
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Hangs up."""
        self.writer.close()


async def open_clients(port: int, count: int) -> list[Client]:
    """Returns clients that have connected."""
    return [await Client.open(port) for _ in range(count)]


@asynccontextmanager
async def crowd(server: Server, request: bytes, count: int) -> AsyncIterator[list[Answer]]:
    """Inside of `async with`, clients ask again and again; it yields the list of their answers."""
    answers: list[Answer] = []
    is_over = asyncio.Event()

    async def ask_again() -> None:
        client = None
        while not is_over.is_set():
            if client is None:
                try:
                    client = await Client.open(server.port)
                except OSError:
                    answers.append(Answer(CLOSED, time.monotonic(), 0.0))
                    await asyncio.sleep(0.1)
                    continue
            answers.append(await client.ask(request))
            if answers[-1].status in (CLOSED, SILENT):
                client.close()
                client = None
        if client is not None:
            client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(ask_again())
        try:
            yield answers
        finally:
            is_over.set()


def p99_of(answers: Sequence[Answer]) -> str:
    """Returns the 99th percentile of what was answered with 200, in words."""
    latencies = sorted(answer.seconds for answer in answers if answer.status == OK)
    return (
        f"{1000 * latencies[int(0.99 * (len(latencies) - 1))]:.0f} ms"
        if latencies
        else "none served"
    )


def count_statuses(statuses: Sequence[int]) -> str:
    """Returns how often each came, in words."""
    names = {CLOSED: "closed", SILENT: "no answer"}
    counts = {status: statuses.count(status) for status in sorted(set(statuses), reverse=True)}
    return ", ".join(f"{count} {names.get(status, status)}" for status, count in counts.items())
