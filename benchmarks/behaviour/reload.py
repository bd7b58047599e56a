"""New versions of a model are loaded while 64 clients ask for it, and others for another model."""

import asyncio
import json
import signal
import time

from server_processes import Rival, Server, fetch, serving

from behaviour.clients import Answer, count_statuses, crowd, p99_of, request_of

TITLE = "A new version is loaded while 64 clients ask"
OTHER = "/v1/models/other:predict"


def measure(rival: Rival, python: str, is_quick: bool) -> dict[str, str]:
    """Returns what failed, and what clients of another model noticed."""
    if rival.package not in RELOADS:
        return {"requests": "it has no reload"}
    num_reloads, seconds = (2, 2.0) if is_quick else (10, 8.0)
    arguments = [] if rival.package else ["--reloads"]
    with serving(rival, python, *arguments) as server:
        return asyncio.run(reload(server, num_reloads, seconds))


async def reload(server: Server, num_reloads: int, seconds: float) -> dict[str, str]:
    path = "/predictions/other" if server.rival.package else OTHER
    other_request = request_of(server.rival, path=path)
    async with (
        crowd(server, request_of(server.rival), 64) as answers,
        crowd(server, other_request, 4) as other_answers,
    ):
        await asyncio.sleep(1.0)
        start = time.monotonic()
        await asyncio.sleep(seconds)
        calm = since(other_answers, start)
        start = time.monotonic()
        for number in range(num_reloads):
            await asyncio.to_thread(RELOADS[server.rival.package], server, number + 2)
            await asyncio.sleep(seconds / num_reloads)
        during = since(other_answers, start)
    statuses = [answer.status for answer in answers]
    return {
        "requests": f"{num_reloads} reloads: {count_statuses(statuses)}",
        "p99 of another model before, meanwhile": f"{p99_of(calm)}, {p99_of(during)}",
        "requests of the other": count_statuses([answer.status for answer in other_answers]),
    }


def since(answers: list[Answer], start: float) -> list[Answer]:
    return [answer for answer in answers if answer.began >= start]


def load_ours(server: Server, version: int) -> None:
    """Returns when a version has taken over."""
    server.process.send_signal(signal.SIGUSR1)
    while True:
        _, content = fetch(server.port, "/v1/models/model")
        states = json.loads(content)["model_version_status"]
        if any(
            state["version"] == str(version) and state["state"] == "AVAILABLE" for state in states
        ):
            return
        time.sleep(0.05)


def load_torchserve(server: Server, version: int) -> None:
    """Registers a version, makes it the default, and drops the one before it."""
    fetch(
        server.port + 1,
        f"/models?url=m{version}.mar&initial_workers=1&synchronous=true",
        method="POST",
    )
    fetch(server.port + 1, f"/models/m/{version}.0/set-default", method="PUT")
    fetch(server.port + 1, f"/models/m/{version - 1}.0", method="DELETE")


RELOADS = {"": load_ours, "ts": load_torchserve}
