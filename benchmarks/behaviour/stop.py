"""SIGTERM while 96 requests are in flight: how many of them are answered?"""

import asyncio
import signal
import subprocess
import time

from accelerator import TIME_VARIABLE
from server_processes import Rival, Server, serving

from behaviour.clients import count_statuses, open_clients, request_of
from behaviour.grpc_client import has_grpc, is_answered, message_of, open_channel, start_calls

TITLE = "SIGTERM with 96 requests in flight"
COUNT, BATCH_SECONDS, LIMIT_SECONDS = 96, "0.3", 60.0


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns how the requests, and the server, ended."""
    del is_quick
    slow = {TIME_VARIABLE: BATCH_SECONDS}
    with serving(rival, python, **slow) as server:
        statuses, began = asyncio.run(ask_and_stop(server))
        rows = {"HTTP": count_statuses(statuses), "it ends": describe_end(server, began)}
    if not rival.package and has_grpc():
        with serving(rival, python, "--grpc", **slow) as server:
            answered, began = call_and_stop(server)
            rows["gRPC"] = f"{sum(answered)} OK, {answered.count(False)} not"
            rows["it ends, with gRPC"] = describe_end(server, began)
    return rows


async def ask_and_stop(server: Server) -> tuple[list[int], float]:
    """Returns how the requests ended, and when the signal was sent."""
    clients = await open_clients(server.port, COUNT)
    for client in clients:
        client.writer.write(request_of(server.rival))
    # The first batch runs, and all have been read: the server has had nothing else to do.
    await asyncio.sleep(0.2)
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    statuses = await asyncio.gather(*(client.read_status(LIMIT_SECONDS) for client in clients))
    for client in clients:
        client.close()
    return list(statuses), began


def call_and_stop(server: Server) -> tuple[list[bool], float]:
    with open_channel(server.port + 1) as channel:
        calls = start_calls(channel, COUNT, message_of())
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        return [is_answered(call) for call in calls], began


def describe_end(server: Server, began: float) -> str:
    try:
        code = server.process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not in {LIMIT_SECONDS:.0f} s"
    return f"code {code}, after {time.monotonic() - began:.1f} s"
