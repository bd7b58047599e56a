"""The requests of a day, 20 a second, as fast as they go: do memory, threads or files grow?

Among them are those for another model, wrong ones, ones that make the model fail, and ones whose
client hangs up; connections come and go, calls come over gRPC, bytes that are no requests come, and
new versions are loaded. The accelerator takes no time, so that it is the server that is worn.
"""

import asyncio
import json
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from accelerator import FAILS, TIME_VARIABLE
from server_processes import Rival, Server, Usage, serving, usage_of

from behaviour.bad_bytes import mutate
from behaviour.clients import Client, request_of
from behaviour.grpc_client import has_grpc, message_of, open_channel, start_calls, status_of
from behaviour.reload import OTHER
from behaviour.stress_connection import StressConnection
from keras_deepseek.inference.server.server import loop_factory

TITLE = "A day at 20 requests a second, without the rests between them"
DAY, QUICK_DAY = 20 * 24 * 3600, 50_000
CLIENTS, POINTS, RELOADS = 48, 10, 40
LIMIT_SECONDS = 480.0


@dataclass
class Progress:
    """What the clients share."""

    requests: list[tuple[bytes, int]]
    weights: list[float]
    goal: int
    source: random.Random = field(default_factory=lambda: random.Random(1))
    sent: int = 0
    num_disconnects: int = 0
    lost: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unexpected: Counter[tuple[int, int]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    is_over: bool = False


@dataclass(frozen=True)
class Day:
    """What was asked, and what the server held at ten points of it."""

    progress: Progress
    points: list[tuple[int, Usage]]
    seconds: float

    @property
    def kilobytes_per_request(self) -> float:
        """How the memory grew in the second half."""
        half = self.points[POINTS // 2 - 1 :]
        return slope_of([(float(sent), 1024 * usage.megabytes) for sent, usage in half])


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns what was asked, and what the server held meanwhile."""
    return describe(live_through(rival, python, QUICK_DAY if is_quick else DAY))


def live_through(rival: Rival, python: str, num_requests: int) -> Day:
    """Sends so many requests, or as many as there is time for."""
    grpc = ["--grpc"] if has_grpc() else []
    progress = make_progress(rival, num_requests)
    with serving(rival, python, "--reloads", *grpc, **{TIME_VARIABLE: "0"}) as server:
        calling = threading.Thread(target=call_again, args=(server, progress), daemon=True)
        if grpc:
            calling.start()
        start = time.monotonic()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            points = runner.run(spend_the_day(server, progress))
        seconds = time.monotonic() - start
        if grpc:
            calling.join()
    return Day(progress, points, seconds)


def make_progress(rival: Rival, goal: int) -> Progress:
    """Returns what is asked, with the status that is expected, and how often."""
    wrong = json.dumps({"instances": [[1.0, 2.0]]}).encode()
    shape = request_of(rival).partition(b"Content-Length")[0]
    mix = [
        (request_of(rival), 200, 84.0),
        (request_of(rival, path=OTHER), 200, 10.0),
        (b"GET /v1/models/model/metadata HTTP/1.1\r\nHost: x\r\n\r\n", 200, 1.0),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200, 0.1),
        (request_of(rival, path="/v1/models/none:predict"), 404, 1.0),
        (b"%bContent-Length: %d\r\n\r\n%b" % (shape, len(wrong), wrong), 400, 1.0),
        (request_of(rival, FAILS, path=OTHER), 500, 0.5),
    ]
    requests = [(request, status) for request, status, _ in mix]
    return Progress(requests, [weight for *_, weight in mix], goal)


async def spend_the_day(server: Server, progress: Progress) -> list[tuple[int, Usage]]:
    """Returns what the server held at ten points."""
    loop, pid, start = asyncio.get_running_loop(), server.process.pid, time.monotonic()

    async def connect() -> None:
        await loop.create_connection(
            lambda: StressConnection(progress, reconnect), "127.0.0.1", server.port
        )

    tasks: set[asyncio.Task[None]] = set()

    def reconnect() -> None:
        if progress.sent < progress.goal and not progress.is_over:
            task = loop.create_task(connect())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    for _ in range(CLIENTS):
        await connect()
    points: list[tuple[int, Usage]] = []
    reloads = 0
    while len(points) < POINTS:
        share = progress.sent / progress.goal
        passed = (time.monotonic() - start) / LIMIT_SECONDS
        if max(share, passed) * POINTS >= len(points) + 1:
            points.append((progress.sent, usage_of(pid)))
        if max(share, passed) * RELOADS >= reloads + 1:
            server.process.send_signal(signal.SIGUSR1)
            reloads += 1
        await send_nonsense(server, progress)
        await asyncio.sleep(0.05)
    progress.is_over = True
    await asyncio.sleep(1.0)
    return points


async def send_nonsense(server: Server, progress: Progress) -> None:
    """Sends a request with mistakes, and goes."""
    client = await Client.open(server.port)
    client.writer.write(mutate(progress.source, progress.requests[0][0]))
    await client.read_status(0.02)
    client.close()


def call_again(server: Server, progress: Progress) -> None:
    """Calls over gRPC, some at a time, on a new channel from time to time."""
    while not progress.is_over:
        with open_channel(server.port + 1) as channel:
            for _ in range(50):
                data = message_of(model=progress.source.choice(["model", "other"]))
                calls = start_calls(channel, 8, data)
                calls[0].cancel()
                progress.calls.update(status_of(call) for call in calls[1:])
                time.sleep(0.02)


def describe(day: Day) -> dict[str, str]:
    progress, points = day.progress, day.points
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(progress.statuses.items()))
    calls = progress.calls
    return {
        "requests over HTTP": f"{progress.sent} of {progress.goal} in {day.seconds:.0f} s",
        "answered": statuses,
        "answered with another status than expected": str(dict(progress.unexpected) or "none"),
        "clients that hung up; connections lost": f"{progress.num_disconnects}; {progress.lost}",
        "calls over gRPC": ", ".join(f"{count} {status}" for status, count in calls.items()),
        "MB at ten points": ", ".join(f"{point.megabytes:.1f}" for _, point in points),
        "threads": ", ".join(str(point.threads) for _, point in points),
        "open files": ", ".join(str(point.files) for _, point in points),
        "slope of the last half": f"{1e5 * day.kilobytes_per_request:.1f} KB for 100,000 requests",
    }


def slope_of(points: list[tuple[float, float]]) -> float:
    """Returns the slope of the line of least squares."""
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    below = sum((x - x_mean) ** 2 for x, _ in points) or 1.0
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / below
