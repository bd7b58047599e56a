"""A language model in virtual time behind the real scheduler, which checks each piece of work.

A cache is the number of its tokens and a hash of them, and the next token is a function of both: an
answer is right only if its row held its own tokens, each at its position.
"""

import itertools
import math
import random
from collections import Counter, defaultdict

import numpy as np

from keras_deepseek.inference.errors import OverloadedError
from keras_deepseek.inference.text.row_scheduler import RowScheduler
from keras_deepseek.inference.text.row_work import ReadChunk, Resize
from keras_deepseek.inference.text.text_request import TextRequest
from keras_deepseek.text.sampling import SamplingOptions

VOCABULARY_SIZE = 97
END_TOKEN = 0


EMPTY = (0, 1)


def write(cache, tokens):
    """Returns a cache with further tokens."""
    length, number = cache
    for token in tokens:
        length, number = length + 1, (number * 31 + token) % 2_147_483_647
    return length, number


def next_token(cache):
    return cache[1] % VOCABULARY_SIZE


def answer_alone(request):
    """Returns the answer to a request that is alone: its tokens, and how it ends."""
    cache, tokens = write(EMPTY, request.prompt), []
    for _ in range(request.max_tokens):
        tokens.append(next_token(cache))
        cache = write(cache, tokens[-1:])
        if tokens[-1] in request.stop_tokens:
            return tokens, "stop"
    return tokens, "length"


class SimulatedServer:
    """A scheduler, the simulated model and what the clients got."""

    def __init__(self, scheduler, chunk_seconds=0.1, step_seconds=0.045, resize_seconds=0.005):
        self.scheduler = scheduler
        self.now = 0.0
        self.outcomes = {}
        self.times = defaultdict(list)
        self.works = Counter()
        self.num_refused = 0
        self._chunk_seconds, self._resize_seconds = chunk_seconds, resize_seconds
        self._step_seconds = step_seconds if callable(step_seconds) else lambda _: step_seconds
        self._prompts = {}
        self._make_cache()

    def _make_cache(self):
        self._rows = [EMPTY] * self.scheduler.shape.rows

    # What clients do.

    def submit(self, *requests):
        """Returns whether the requests were accepted."""
        try:
            self.scheduler.submit(requests, self.now)
        except OverloadedError:
            self.num_refused += 1
            return False
        return True

    def cancel(self, request):
        self.deliver(self.scheduler.cancel(request, self.now))
        assert request not in self.scheduler.rows

    # What the server does.

    def deliver(self, events):
        for event in events:
            request = event.request
            assert request not in self.outcomes, f"{event.kind} after the end"
            if event.token is not None:
                self.times[request].append(event.time)
            if event.is_last:
                self.outcomes[request] = event.kind
                self._prompts.pop(request, None)
                assert request not in self.scheduler.rows

    def begin(self):
        """Returns the next piece of work, after its check."""
        self.deliver(self.scheduler.expire(self.now))
        work = self.scheduler.next_work(self.now)
        self._check_rows()
        return work

    def end(self, work):
        """Runs a piece of work and reports it."""
        self.works[type(work).__name__] += 1
        shape = self.scheduler.shape
        if isinstance(work, Resize):
            self.now += self._resize_seconds
            self._rows = [EMPTY if row is None else self._rows[row] for row in work.sources]
            assert len(self._rows) == work.shape.rows
            self.scheduler.resize_done(self.now)
        elif isinstance(work, ReadChunk):
            self.now += self._chunk_seconds
            cache = self._prompts.pop(work.request, EMPTY)
            has_ended = work.request in self.outcomes
            assert cache[0] == work.start or has_ended
            cache = write(cache, work.token_ids)
            if work.row is not None:
                assert cache == write(EMPTY, work.request.prompt) or has_ended
                assert len(work.request.prompt) <= shape.slots
                self._rows[work.row] = cache
            elif not has_ended and not work.is_last:
                self._prompts[work.request] = cache
            self.deliver(self.scheduler.read_done(next_token(cache), self._chunk_seconds, self.now))
        else:
            seconds = self._step_seconds(shape)
            self.now += seconds
            results = [-1] * shape.rows
            items = zip(work.tokens, work.positions, work.is_active, strict=True)
            for row, (token, position, is_active) in enumerate(items):
                if is_active:
                    assert self._rows[row][0] == position < shape.slots
                    self._rows[row] = write(self._rows[row], [token])
                    results[row] = next_token(self._rows[row])
            self.deliver(self.scheduler.decode_done(results, seconds, self.now))
        self._check_rows()

    def fail(self, work, *, is_cache_lost):
        self.now += self._chunk_seconds
        self.deliver(self.scheduler.failed(RuntimeError(), self.now, is_cache_lost=is_cache_lost))
        if isinstance(work, ReadChunk):
            assert work.request in self.outcomes
        if isinstance(work, Resize):
            assert not self.scheduler.num_reading
        if is_cache_lost:
            assert not self.scheduler.running
            self._make_cache()

    def run(self, until=math.inf):
        """Works until there is nothing to do, or a time has come."""
        while self.now < until:
            work = self.begin()
            if work is None:
                if until < math.inf:
                    self.now = until
                return
            self.end(work)

    def _check_rows(self):
        running = self.scheduler.running
        assert len(set(running)) == len(running)
        assert all(self.scheduler.rows[request.row] is request for request in running)
        assert len(self.scheduler.rows) == self.scheduler.shape.rows
        assert len(running) + self.scheduler.num_reading <= self.scheduler.num_seats

    def check_answers(self):
        """Checks each answer with that of the request alone, and that nobody holds anything."""
        for request, outcome in self.outcomes.items():
            tokens, kind = answer_alone(request)
            assert request.tokens == tokens[: len(request.tokens)]
            if outcome in ("stop", "length"):
                assert (request.tokens, outcome) == (tokens, kind)
        assert self.scheduler.is_idle
        assert set(self.scheduler.rows) == {None}
        assert not self._prompts

    def gaps(self):
        """Returns the seconds between two tokens of an answer."""
        return [gap for times in self.times.values() for gap in np.diff(times)]


def simulate(
    seed,
    *,
    shapes=((8, 768),),
    share=0.75,
    rate=0.9,
    number=400,
    cancelled=0.1,
    deadline=60.0,
    **seconds,
):
    """Returns a server after requests that came at random, and the requests.

    One of four clients sends half of them.
    """
    rng = random.Random(seed)
    server = SimulatedServer(RowScheduler(shapes, 64, reading_share=share), **seconds)
    server.scheduler.pace.add_chunk(512, 0.1)  # A warm-up measures these.
    for shape in shapes:
        server.scheduler.pace.add_step(math.prod(shape), 0.045)
    requests, arrival, cancels = [], 0.0, []
    order = itertools.count()
    for _ in range(number):
        arrival += rng.expovariate(rate)
        while cancels and cancels[0][0] <= arrival:
            time, _, request = cancels.pop(0)
            server.run(until=time)
            server.cancel(request)
        server.run(until=arrival)
        budget = round(math.exp(rng.uniform(math.log(8), math.log(256))))
        request = TextRequest(
            [rng.randrange(1, VOCABULARY_SIZE) for _ in range(rng.randint(64, 512))],
            SamplingOptions(max_tokens=budget),
            client=str(0 if rng.random() < 0.5 else rng.randrange(1, 4)),
            deadline=arrival + deadline,
        )
        if server.submit(request):
            requests.append(request)
            if rng.random() < cancelled:
                cancels = sorted([*cancels, (arrival + rng.uniform(0, 20), next(order), request)])
    for time, _, request in cancels:
        server.run(until=time)
        server.cancel(request)
    server.run()
    return server, requests
