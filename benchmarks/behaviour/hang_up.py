"""Of 128 requests the clients of 96 hang up: how many rows are run all the same?"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from accelerator import SLOW, read_counts
from server_processes import Rival, Server, serving

from behaviour.clients import CLOSED, HOST, OK, Client, count_statuses, open_clients, request_of
from behaviour.grpc_client import has_grpc, is_answered, message_of, open_channel, start_calls

TITLE = "96 of 128 clients hang up: rows that are run, where 32 are wanted"
COUNT, STAYING = 128, 32


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns the rows that were run, batches' padding among them."""
    del is_quick
    speaks_grpc = not rival.package and has_grpc()
    with serving(rival, python, *(["--grpc"] if speaks_grpc else [])) as server:
        return {
            "they hang up as soon as they have asked": asyncio.run(hang_up(server, is_busy=False)),
            "they hang up while the accelerator is busy": asyncio.run(
                hang_up(server, is_busy=True)
            ),
            "gRPC, their process is killed then": kill(server) if speaks_grpc else "-",
        }


async def hang_up(server: Server, *, is_busy: bool) -> str:
    request = request_of(server.rival)
    staying = await open_clients(server.port, STAYING)
    # asyncio would close them only when all of this has been sent.
    leaving = [socket.create_connection((HOST, server.port)) for _ in range(COUNT - STAYING)]
    rows_at_start = rows_of(server)
    async with asyncio.TaskGroup() as group:
        if is_busy:
            group.create_task(ask_slowly(server))
            await asyncio.sleep(0.3)
        for number, client in enumerate(staying):
            client.writer.write(request)
            for gone in leaving[number::STAYING]:
                gone.sendall(request)
                if not is_busy:
                    gone.close()
        if is_busy:
            await asyncio.sleep(0.3)
            for gone in leaving:
                gone.close()
        statuses = await asyncio.gather(*(client.read_status(30.0) for client in staying))
    rows = await asyncio.to_thread(settle, server) - rows_at_start - is_busy
    for client in staying:
        client.close()
    return describe(rows, list(statuses))


async def ask_slowly(server: Server) -> None:
    """Keeps the accelerator busy."""
    client = await Client.open(server.port)
    await client.ask(request_of(server.rival, SLOW))
    client.close()


def kill(server: Server) -> str:
    rows_at_start, port = rows_of(server), server.port + 1
    command = [sys.executable, "-m", "behaviour.grpc_client", str(port), str(COUNT - STAYING)]
    folder = Path(__file__).parents[1]
    paths = [str(folder), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (
        open_channel(port) as channel,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as leaving,
    ):
        assert leaving.stdout is not None
        (slow,) = start_calls(channel, 1, message_of(SLOW))
        leaving.stdout.readline()
        staying = start_calls(channel, STAYING, message_of())
        time.sleep(0.3)
        leaving.kill()
        answered = [is_answered(call) for call in [slow, *staying]]
    return describe(
        settle(server) - rows_at_start - 1,
        [OK if was_answered else CLOSED for was_answered in answered[1:]],
    )


def rows_of(server: Server) -> int:
    return int(read_counts(server.counts)[1])


def settle(server: Server) -> int:
    """Returns the rows when no more are run."""
    rows = -1
    while rows != (rows := rows_of(server)):
        time.sleep(1.0)
    return rows


def describe(rows: int, statuses: list[int]) -> str:
    return f"{rows}" if set(statuses) == {OK} else f"{rows}; {count_statuses(statuses)}"
