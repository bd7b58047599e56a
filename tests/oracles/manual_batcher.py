"""A batcher without threads: what comes, runs and passes is called by hand, as is the time."""

import numpy as np

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.batcher import Batcher
from keras_deepseek.inference.batching.delivery import ClientOrder
from keras_deepseek.inference.errors import DeadlineExceededError, OverloadedError

MAX_QUEUE_ROWS = 20


class ManualBatcher:
    """A batcher, a clock that is moved by hand, and what requests met with.

    The model doubles its input and fails for negative numbers.
    """

    def __init__(self, **options):
        self.now = 0.0
        self.running_for = 0.0
        self.sent = []
        self.delivered = []
        self.cancelled = set()
        self.order = ClientOrder()
        self.batcher = Batcher(
            [self.model], clock=lambda: self.now, max_queue_rows=MAX_QUEUE_ROWS, **options
        )

    def model(self, inputs):
        assert len(inputs["x"]) in self.batcher.buckets
        self.now += self.running_for
        if (inputs["x"] < 0).any():
            raise ArithmeticError
        return {"y": 2 * inputs["x"]}

    def request(self, rows, width, timeout, priority, client, fails):
        first = 100 * len(self.sent)
        x = np.arange(first, first + rows, dtype="float32")[:, None].repeat(width, axis=1)
        deliver = self.note if client is None else lambda _: self.order.settle(client)
        request = Request(
            {"x": -1 - x if fails else x}, deliver, deadline=self.now + timeout, priority=priority
        )
        if client is not None:
            self.order.add(client, request, self.note)
        try:
            self.batcher.submit(request)
        except OverloadedError:
            self.cancel((request, client))
        else:
            self.sent.append((request, client))

    def note(self, request):
        self.delivered.append((request, self.now))

    def cancel(self, sent):
        request, client = sent
        if self.batcher.cancel(request):
            self.cancelled.add(request)
        if client is not None:
            self.order.settle(client)

    def act(self, kind, value):
        if kind == "request":
            self.request(**value)
        elif kind == "pass":
            self.now += value
            self.batcher._expire()
        elif kind == "run":
            self.running_for = value
            self.run_one()
        elif self.sent:
            self.cancel(self.sent[value % len(self.sent)])

    def run_one(self):
        """Does what a replica's thread does, but for waiting."""
        self.batcher._expire()
        batch = self.batcher._queue.next_batch(self.now)
        if batch is not None:
            assert batch.rows <= self.batcher.buckets[-1]
            assert len({part.request.shape_key for part in batch.slices}) == 1
            assert all(part.request.deadline > self.now for part in batch.slices)
            self.batcher._answer(batch, self.model)
            self.batcher._queue.free(self.now)

    def check(self):
        answered = [request for request, _ in self.delivered]
        assert len(answered) == len(set(answered))
        not_cancelled = [request for request, _ in self.sent if request not in self.cancelled]
        assert set(answered) == set(not_cancelled)
        assert self.batcher._queue.rows == 0
        for request, time in self.delivered:
            if request.outputs is not None:
                np.testing.assert_array_equal(request.outputs["y"], 2 * request.inputs["x"])
                client = next(client for sent, client in self.sent if sent is request)
                # In order, an answer may have to wait for others after it was there.
                assert time < request.deadline or client is not None
            elif isinstance(request.error, DeadlineExceededError):
                assert time >= request.deadline
            else:
                assert isinstance(request.error, ArithmeticError)
                assert (request.inputs["x"] < 0).any()
        for client in ("a", "b"):
            of_client = [request for request, whose in self.sent if whose == client]
            expected = [request for request in of_client if request not in self.cancelled]
            assert [request for request in answered if request in of_client] == expected
