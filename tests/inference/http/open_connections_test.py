import asyncio

import pytest

from keras_deepseek.inference.http.http_limits import HttpLimits
from keras_deepseek.inference.http.open_connections import OpenConnections

LIMITS = HttpLimits(settle_seconds=0.01, grace_seconds=0.03, linger_seconds=0.01)


class Connection:
    """Notes what is asked of it, and is gone when it is asked what `ends_by` says."""

    def __init__(self, connections, ends_by):
        self.asked = []
        self._connections = connections
        self._ends_by = ends_by
        connections.add(self)

    def _note(self, name):
        self.asked.append(name)
        if name == self._ends_by:
            asyncio.get_running_loop().call_soon(self._connections.remove, self)

    def check_time(self):
        self._note("check_time")

    def start_draining(self):
        self._note("start_draining")

    def close_if_idle(self):
        self._note("close_if_idle")

    def abort(self):
        self._note("abort")


@pytest.mark.parametrize(
    ("ends_by", "asked"),
    [
        ("start_draining", ["start_draining"]),
        ("close_if_idle", ["start_draining", "close_if_idle"]),
        ("abort", ["start_draining", "close_if_idle", "abort"]),
        ("nothing", ["start_draining", "close_if_idle", "abort"]),
    ],
)
def test_each_connection_is_given_time_to_end(ends_by, asked):
    async def drain():
        connections = OpenConnections(LIMITS)
        connection = Connection(connections, ends_by)
        await connections.drain()
        return connection.asked, len(connections)

    assert asyncio.run(drain()) == (asked, int(ends_by == "nothing"))


def test_nothing_is_waited_for_where_nothing_is_open():
    limits = HttpLimits(settle_seconds=1e9, grace_seconds=1e9)
    asyncio.run(asyncio.wait_for(OpenConnections(limits).drain(), 60))


def test_a_connection_that_comes_while_draining_is_drained():
    async def drain():
        connections = OpenConnections(LIMITS)
        Connection(connections, "abort")
        draining = asyncio.create_task(connections.drain())
        await asyncio.sleep(0)
        late = Connection(connections, "start_draining")
        await draining
        return late.asked

    assert asyncio.run(drain()) == ["start_draining"]


def test_all_clocks_are_looked_at_until_the_end():
    async def watch():
        connections = OpenConnections(LIMITS)
        connections.watch()
        connection = Connection(connections, "abort")
        while connection.asked.count("check_time") < 3:
            await asyncio.sleep(LIMITS.tick_seconds)
        await connections.drain()
        seen = len(connection.asked)
        await asyncio.sleep(5 * LIMITS.tick_seconds)
        return len(connection.asked) - seen

    assert asyncio.run(watch()) == 0
