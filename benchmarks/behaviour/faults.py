"""The model ends its process, or hangs, for one request of 32: what becomes of the others?"""

import asyncio
import time

from accelerator import EXITS, HANGS
from server_processes import Rival, Server, serving

from behaviour.clients import OK, Client, count_statuses, open_clients, request_of

TITLE = "The model's process ends, or hangs, for one request among 32"
COUNT, LIMIT_SECONDS = 32, 45.0
ARGUMENTS = {"": ["--isolated"], "litserve": ["restart"]}


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns how the culprit and its neighbours were answered, and when all was well again."""
    del is_quick
    rows = {}
    for name, first in (("ends", EXITS), ("hangs", HANGS)):
        # Our batches may take 2 s here; mosec has 3 s, and LitServe 30 s for a request.
        with serving(rival, python, *ARGUMENTS.get(rival.package, [])) as server:
            rows |= asyncio.run(break_it(server, name, first))
    return rows


async def break_it(server: Server, name: str, first: float) -> dict[str, str]:
    clients = await open_clients(server.port, COUNT)
    good, bad = request_of(server.rival), request_of(server.rival, first)
    start = time.monotonic()
    culprit, *other_answers = await asyncio.gather(
        *(
            client.ask(good if number else bad, LIMIT_SECONDS)
            for number, client in enumerate(clients)
        )
    )
    seconds = max(answer.seconds for answer in other_answers)
    after = await time_to_recover(server, good, start)
    for client in clients:
        client.close()
    statuses = [answer.status for answer in other_answers]
    return {
        f"it {name}: the culprit": f"{count_statuses([culprit.status])}, {culprit.seconds:.1f} s",
        f"it {name}: the 31 others": f"{count_statuses(statuses)}, within {seconds:.1f} s",
        f"it {name}: it serves again": after,
    }


async def time_to_recover(server: Server, request: bytes, start: float) -> str:
    """Says after how long a new client is answered with 200."""
    while (now := time.monotonic()) < start + 2 * LIMIT_SECONDS:
        try:
            client = await Client.open(server.port)
        except OSError:
            await asyncio.sleep(0.2)
            continue
        answer = await client.ask(request, 5.0)
        client.close()
        if answer.status == OK:
            return f"after {time.monotonic() - start:.1f} s"
        await asyncio.sleep(max(0.0, now + 0.2 - time.monotonic()))
    return (
        "never"
        if server.process.poll() is None
        else f"never: ended with {server.process.returncode}"
    )
