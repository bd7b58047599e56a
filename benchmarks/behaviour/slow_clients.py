"""Clients that send a byte now and then, or nothing, or that close their sending half."""

import asyncio
import time

from server_processes import Rival, Server, serving

from behaviour.clients import Client, count_statuses, crowd, open_clients, p99_of, request_of

TITLE = "500 clients that send a byte of a header now and then, and 500 that send nothing"
COUNT, GOOD = 500, 16


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns what good clients noticed, and what became of the bad ones."""
    seconds = 14.0 if is_quick else 25.0
    with serving(rival, python) as server:
        return asyncio.run(disturb(server, seconds))


async def disturb(server: Server, seconds: float) -> dict[str, str]:
    request = request_of(server.rival)
    async with crowd(server, request, GOOD) as answers:
        await asyncio.sleep(1.0)
        start = time.monotonic()
        await asyncio.sleep(5.0)
        calm = [answer for answer in answers if answer.began >= start]
        start = time.monotonic()
        slow = await open_clients(server.port, COUNT)
        silent = await open_clients(server.port, COUNT)
        ends = await asyncio.gather(
            *(drip(client, start + seconds) for client in slow),
            *(client.wait_for_end(seconds) for client in silent),
        )
        disturbed = [answer for answer in answers if answer.began >= start]
    newcomer = await ask_once(server, request)
    half_closed = await half_close(server, request)
    for client in [*slow, *silent]:
        client.close()
    statuses = [answer.status for answer in disturbed]
    return {
        "p99 of good clients before, meanwhile": f"{p99_of(calm)}, {p99_of(disturbed)}",
        "good clients meanwhile": count_statuses(statuses),
        "one that comes afterwards": count_statuses([newcomer]),
        f"slow ones closed within {seconds:.0f} s": f"{sum(ends[:COUNT])} of {COUNT}",
        "silent ones": f"{sum(ends[COUNT:])} of {COUNT}",
        "a client that closes its sending half": half_closed,
    }


async def drip(client: Client, end: float) -> bool:
    """Sends a request byte by byte; returns whether the server closed the connection."""
    client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nSlow: ")
    while time.monotonic() < end:
        if await client.wait_for_end(0.5):
            return True
        client.writer.write(b"a")
    return False


async def ask_once(server: Server, request: bytes) -> int:
    client = await Client.open(server.port)
    answer = await client.ask(request, 10.0)
    client.close()
    return answer.status


async def half_close(server: Server, request: bytes) -> str:
    """Says what becomes of a request whose client can still read, but sends no more."""
    client = await Client.open(server.port)
    client.writer.write(request)
    client.writer.write_eof()
    status = await client.read_status(10.0)
    is_closed = await client.wait_for_end(10.0)
    client.close()
    return f"{count_statuses([status])}, then {'closed' if is_closed else 'left open'}"
