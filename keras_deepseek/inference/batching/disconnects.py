"""Finds requests whose clients have hung up before their server has noticed it.

An event loop reads the end of a connection after the request, in a later turn. Meanwhile a free
model may take the request.
"""

import select
from collections.abc import Iterable

from keras_deepseek.inference.batching.batch import Batch, Request


def find_disconnected(batch: Batch) -> list[Request]:
    """Returns the batch's requests whose clients have closed their end, by one system call."""
    connected = [
        (connection, part.request)
        for part in batch.slices
        if (connection := part.request.connection) is not None
    ]
    if not connected:
        return []
    closed = find_closed(connection for connection, _ in connected)
    return [request for connection, request in connected if connection in closed]


def find_closed(connections: Iterable[int]) -> set[int]:
    """Returns the descriptors of the connections whose other end is closed, by one system call."""
    poll = select.poll()
    for connection in connections:
        # Only Linux can tell a closed end apart from data that waits.
        poll.register(connection, getattr(select, "POLLRDHUP", 0))
    return {connection for connection, _ in poll.poll(0)}
