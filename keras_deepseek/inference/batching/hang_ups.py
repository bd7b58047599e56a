"""Finds requests whose clients have hung up before their server has noticed it.

An event loop reads the end of a connection after the request, in a later turn. Meanwhile a free
model may take the request.
"""

import select

from keras_deepseek.inference.batching.batch import Batch, Request


def find_hung_up(batch: Batch) -> list[Request]:
    """Returns the batch's requests whose clients have closed their end, by one system call."""
    requests = [part.request for part in batch.slices if part.request.connection is not None]
    if not requests:
        return []
    poll = select.poll()
    for request in requests:
        # Only Linux can tell a closed end apart from data that waits.
        poll.register(request.connection, getattr(select, "POLLRDHUP", 0))
    closed = {connection for connection, _ in poll.poll(0)}
    return [request for request in requests if request.connection in closed]
