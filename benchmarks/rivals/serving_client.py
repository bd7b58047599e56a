"""One client with many connections: `serving_client.py SETTING`, JSON; prints JSON.

In a closed loop each connection sends when it was answered. In an open loop requests come at their
own times, in a Poisson process or in bursts of it, whether the server keeps up or not: a latency
counts from when a request should have been sent.
"""

import asyncio
import collections
import json
import random
import sys
import time
from statistics import fmean, pstdev
from typing import Any

try:
    from uvloop import run
except ImportError:
    run = asyncio.run


class Connection(asyncio.Protocol):
    """Sends one request at a time."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._buffer = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Is ready."""
        self._transport: Any = transport
        self._client.is_free(self)

    def send(self, due: float) -> None:
        """Sends the request that should be sent at a time."""
        self._due = due
        self._transport.write(self._client.request)

    def data_received(self, data: bytes) -> None:
        """Reads an answer to its end."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        start = head.find(b"content-length:")
        length = int(head[start + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        is_good = self._buffer.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        self._client.answered(self, self._due, is_good)

    def connection_lost(self, error: Exception | None) -> None:
        """Is told that it is over."""
        self._client.lost += 1


class Client:
    """What was sent and answered."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.setting = setting
        body = json.dumps(setting["body"]).encode()
        head = (
            f"POST {setting['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body
        self.latencies: list[float] = []
        self.refused = self.lost = self.late = 0
        self._free: list[Connection] = []
        self._waiting: collections.deque[float] = collections.deque()
        self._is_open = "rate" in setting
        self._start = self._end = 0.0

    def is_free(self, connection: Connection) -> None:
        """Sends what waits for a connection, or the next request of a closed loop."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        elif self._is_open:
            self._free.append(connection)
        elif time.perf_counter() < self._end or not self._end:
            connection.send(time.perf_counter())

    def answered(self, connection: Connection, due: float, is_good: bool) -> None:
        """Notes an answer."""
        now = time.perf_counter()
        if self._start <= due < self._end:
            if not is_good:
                self.refused += 1
            elif now - due > self.setting.get("useful_seconds", 1e9):
                self.late += 1
            else:
                self.latencies.append(now - due)
        self.is_free(connection)

    async def run(self) -> dict[str, Any]:
        """Returns what was measured."""
        setting, loop = self.setting, asyncio.get_running_loop()
        for _ in range(setting["connections"]):
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", setting["port"])
        if self._is_open:
            await self._send_in_time()
        else:
            self._start = time.perf_counter() + setting["warm_up"]
            self._end = self._start + setting["seconds"]
            await asyncio.sleep(setting["warm_up"] + setting["seconds"])
        await asyncio.sleep(1.0)
        return self._result()

    async def _send_in_time(self) -> None:
        setting, generator = self.setting, random.Random(1)
        burst = setting.get("burst", 1)
        now = time.perf_counter()
        self._start = now + setting["warm_up"]
        self._end = self._start + setting["seconds"]
        due = now
        while due < self._end:
            due += generator.expovariate(setting["rate"] / burst)
            if (delay := due - time.perf_counter()) > 0:
                await asyncio.sleep(delay)
            for _ in range(burst):
                if self._free:
                    self._free.pop().send(due)
                else:
                    self._waiting.append(due)

    def _result(self) -> dict[str, Any]:
        latencies = sorted(self.latencies) or [0.0]
        return {
            "requests_per_second": len(self.latencies) / self.setting["seconds"],
            "refused": self.refused,
            "late": self.late,
            "mean_ms": 1000 * fmean(latencies),
            "deviation_ms": 1000 * pstdev(latencies),
            "p50_ms": 1000 * latencies[len(latencies) // 2],
            "p99_ms": 1000 * latencies[int(0.99 * (len(latencies) - 1))],
        }


async def main() -> None:
    """Measures one setting."""
    print(json.dumps(await Client(json.loads(sys.argv[1])).run()))


run(main())
