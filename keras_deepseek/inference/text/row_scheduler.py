"""The sharing of one cache's rows among requests: who waits, reads, and decodes, and what is next.

It never waits, and every call gets the time as an argument. A thread asks for `next_work`, runs it
and reports it by `read_done`, `decode_done`, `resize_done` or `failed`. Between these it may
`submit`, `cancel` and `expire` requests, also while a piece of work runs. If several threads call
it, they hold a lock.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidFieldError, InvalidInputError
from keras_deepseek.inference.batching.fair_scheduler import FairOrder
from keras_deepseek.inference.errors import OverloadedError
from keras_deepseek.inference.text.pace import Pace
from keras_deepseek.inference.text.row_work import (
    CacheShape,
    DecodeStep,
    ReadChunk,
    Resize,
    Work,
)
from keras_deepseek.inference.text.text_request import Outcome, TextEvent, TextRequest

WorkT = TypeVar("WorkT", ReadChunk, DecodeStep, Resize)


class RowScheduler:
    """Shares the rows of a cache among requests.

    A request waits, until one of `num_seats` seats is free: as many as the largest cache has rows.
    Clients with the fewest seats are first, then those for which the model has worked least. Its
    prompt is read in chunks, the shortest remainder first less its age, and placed into a row. Then
    all rows decode together. Between two decode steps there is one chunk at most, so that the
    longest gap in an answer is a chunk and a step, and a resize where the cache grows.

    The cache has the smallest of the `shapes` in which the rows have room. It grows at once, and
    shrinks after a pause.

    Args:
        shapes: Pairs of rows and slots. The last one has the most of both.
        chunk_size: The tokens of a prompt that are read at once.
        reading_share: The share of the time that reading may have while at least half of the rows
            decode. With fewer, a chunk follows each step.
        max_waiting: The places for requests that wait. A client may have half of what others leave,
            so that a newcomer finds some.
        shrink_seconds: The seconds after which a cache that is too large shrinks.
    """

    def __init__(
        self,
        shapes: Iterable[tuple[int, int]],
        chunk_size: int,
        *,
        reading_share: float = 0.75,
        max_waiting: int = 512,
        shrink_seconds: float = 1.0,
    ) -> None:
        self.shapes = sorted((CacheShape(*shape) for shape in shapes), key=math.prod)
        self._largest = self.shapes[-1]
        if not all(self._largest.holds(shape) for shape in self.shapes):
            raise InvalidInputError(
                f"One of the shapes must have the most rows and slots; received {self.shapes}."
            )
        self.num_seats = self._largest.rows
        self.shape = self.shapes[0]
        self.rows: list[TextRequest | None] = [None] * self.shape.rows
        self.pace = Pace(chunk_size)
        self._chunk_size = check_integer("chunk_size", chunk_size)
        self._share = check_number("reading_share", reading_share, above=0, below=1)
        self._max_waiting = check_integer("max_waiting", max_waiting)
        self._shrink_seconds = shrink_seconds
        self._waiting: dict[TextRequest, None] = {}  # An ordered set, as the next one.
        self._reading: dict[TextRequest, None] = {}
        self._order = FairOrder()
        self._debt = 0.0  # Seconds of decoding that the reading of chunks still owes.
        self._owes_step = False  # A chunk was read, or a resize done, since the last decode step.
        self._work: Work | None = None
        self._roomy_since = math.inf

    # Who is there.

    @property
    def running(self) -> list[TextRequest]:
        """The requests whose answers are being decoded."""
        return [request for request in self.rows if request is not None]

    @property
    def num_waiting(self) -> int:
        """The number of requests that have no seat yet."""
        return len(self._waiting)

    @property
    def num_reading(self) -> int:
        """The number of requests whose prompts are being read."""
        return len(self._reading)

    @property
    def is_idle(self) -> bool:
        """True if there is no request."""
        return not (self._waiting or self._reading or self.running)

    def submit(self, requests: Sequence[TextRequest], now: float) -> None:
        """Adds the requests of all answers to one prompt, or none of them.

        Raises `InvalidFieldError` if a row has no room for one, and `OverloadedError` if too many
        wait, or the first token would come after the deadline.
        """
        self._take_seats()
        request, num_requests = requests[0], len(requests)
        for other in requests:
            other.take_room(self._largest.slots)
            other.arrived = now
        if num_requests > (most := self._share_of(self._max_waiting)):
            raise InvalidFieldError(
                "n", f"{num_requests} answers were asked for, and {most} of a client may wait."
            )
        wait = self.predict_first_token(requests)
        if num_requests > self.count_room(request.client):
            num_own = self._count_waiting(request.client)
            raise OverloadedError(
                f"{self.num_waiting} requests are waiting, {num_own} of this client: it may have "
                f"half of what others leave of {self._max_waiting} places",
                wait,
            )
        allowed = request.deadline - now
        if wait > allowed and not self.is_idle:  # Else no time would ever be learned anew.
            raise OverloadedError(
                f"The first token would take {wait:.3g} s, and is needed in {allowed:.3g} s", wait
            )
        for other in requests:
            self._waiting[other] = None
            self._order.join(other.client)
        self._take_seats()

    def count_room(self, client: str) -> int:
        """Returns how many more requests of a client may wait."""
        self._take_seats()
        num_own = self._count_waiting(client)
        return self._share_of(self._max_waiting - (self.num_waiting - num_own)) - num_own

    @staticmethod
    def _share_of(num_places: int) -> int:
        """Returns how many of the places that others leave a client may have: half, rounded up."""
        return (num_places + 1) // 2

    def predict_first_token(self, requests: Sequence[TextRequest]) -> float:
        """Returns the seconds to the first token of the last of these, if they came now."""
        request = requests[0]
        last_turn = self._count_waiting(request.client) + len(requests)
        active = (*self._waiting, *self._reading, *self.running)
        turns = Counter(dict.fromkeys([other.client for other in active], 0))
        ahead = []
        for other in self._waiting:
            turns[other.client] += 1
            # Clients take turns, so nobody waits for all requests of another one.
            if (-other.priority, turns[other.client]) <= (-request.priority, last_turn):
                ahead.append(other)
        # The others will take as many turns, with requests that come later. These are like its own.
        turns.pop(request.client, None)
        num_later = sum(max(last_turn - 1 - turn, 0) for turn in turns.values())
        ahead += [request] * min(num_later, self._max_waiting)
        return self.pace.forecast(
            running=self.running,
            reading=self._reading,
            waiting=[*ahead, *requests],
            num_free=self.num_seats - len(self._reading) - len(self.running),
            cache_size=math.prod(self.shape),
            reading_share=self._share,
        )

    def cancel(
        self, request: TextRequest, now: float, kind: Outcome = "cancelled"
    ) -> list[TextEvent]:
        """Ends an answer, and frees its row before the next piece of work.

        A stop string in the text ends it with the kind `"stop"`. Returns no event if it is over.
        """
        is_open = request in self._waiting or request in self._reading or request.row is not None
        return [self._end(request, kind, now)] if is_open else []

    def expire(self, now: float) -> list[TextEvent]:
        """Ends the requests that have no first token by their deadline."""
        late = [r for r in (*self._waiting, *self._reading) if r.deadline <= now]
        return [self._end(request, "deadline", now) for request in late]

    def next_time(self) -> float:
        """Returns when `expire` or `next_work` may have more to do, if nothing happens before."""
        deadlines = (request.deadline for request in (*self._waiting, *self._reading))
        return min(min(deadlines, default=math.inf), self._roomy_since + self._shrink_seconds)

    # What to do.

    def next_work(self, now: float) -> Work | None:
        """Returns what the model should do now, or `None`. The caller reports how it ended."""
        if self._work is not None:
            raise RuntimeError(f"{self._work} was not reported.")
        self._take_seats()
        request = self._choose_reading(now)
        work: Work | None = self._make_resize(request, now)
        if work is None and request is not None:
            row = self.rows.index(None) if self._is_placed_next(request) else None
            work = ReadChunk(request, request.num_read, self._stop(request), row)
        elif work is None and self.running:
            work = DecodeStep(tuple(self.rows))
        self._work = work
        return work

    def _take_seats(self) -> None:
        seated = [*self._reading, *self.running]
        seats = Counter(request.client for request in seated)
        for _ in range(min(self.num_seats - len(seated), len(self._waiting))):
            request = min(
                self._waiting,
                key=lambda r: (-r.priority, seats[r.client], self._order.seconds[r.client]),
            )
            del self._waiting[request]
            self._reading[request] = None
            seats[request.client] += 1

    def _choose_reading(self, now: float) -> TextRequest | None:
        if not self.running:
            self._debt, self._owes_step = 0.0, False
        if not self._reading or self._owes_step or self._debt > 0:
            return None
        # An old request is never overtaken for longer than its age.
        return min(
            self._reading,
            key=lambda r: (-r.priority, self.pace.read_seconds(r) - (now - r.arrived)),
        )

    def _make_resize(self, request: TextRequest | None, now: float) -> Resize | None:
        """Returns a resize to the smallest shape that has room, if it is due."""
        running = self.running
        is_placed = request is not None and self._is_placed_next(request)
        decoding = [*running, request] if request is not None and is_placed else running
        required = CacheShape(
            len(decoding) or 1,
            max((min(r.position + 2, len(r.prompt) + r.max_tokens) for r in decoding), default=1),
        )
        shape = next(shape for shape in self.shapes if shape.holds(required))
        if self.shape.holds(required):
            if math.prod(shape) >= math.prod(self.shape):
                self._roomy_since = math.inf
                return None
            self._roomy_since = min(self._roomy_since, now)
            if now - self._roomy_since < self._shrink_seconds or self._owes_step:
                return None
        sources = [row for row, request in enumerate(self.rows) if request is not None]
        return Resize(shape, (*sources, *[None] * (shape.rows - len(sources))))

    def _stop(self, request: TextRequest) -> int:
        return min(request.num_read + self._chunk_size, len(request.prompt))

    def _is_placed_next(self, request: TextRequest) -> bool:
        """Returns True if the answer begins after the next chunk of the prompt."""
        return self._stop(request) == len(request.prompt) and request.max_tokens > 0

    # What came of it.

    def read_done(self, token: int, seconds: float, now: float) -> list[TextEvent]:
        """Reports a `ReadChunk`, and the token after its last one."""
        work = self._report(ReadChunk)
        request = work.request
        self.pace.add_chunk(len(request.prompt), seconds)
        self._order.charge(request.client, seconds)
        self._owes_step = True
        if 2 * len(self.running) >= self.num_seats:
            self._debt += seconds * (1 - self._share) / self._share
        if request not in self._reading:
            return []  # It has ended meanwhile.
        request.num_read = work.stop
        if work.row is None:
            return [self._end(request, "length", now)] if work.is_last else []
        del self._reading[request]
        self.rows[work.row], request.row = request, work.row
        return [self._add_token(request, token, 0, now)]

    def decode_done(self, tokens: Sequence[int], seconds: float, now: float) -> list[TextEvent]:
        """Reports a `DecodeStep`, and the token of each row."""
        work = self._report(DecodeStep)
        self.pace.add_step(math.prod(self.shape), seconds)
        self._debt = max(self._debt - seconds, -seconds)
        self._owes_step = False
        decoded = [request for request in work.requests if request is not None]
        for request in decoded:
            self._order.charge(request.client, seconds / len(decoded))
        return [
            self._add_token(request, int(tokens[row]), row, now)
            for row, request in enumerate(work.requests)
            if request is not None and self.rows[row] is request
        ]

    def resize_done(self, now: float) -> None:
        """Reports a `Resize`."""
        work = self._report(Resize)
        self.rows = [None if source is None else self.rows[source] for source in work.sources]
        for row, request in enumerate(self.rows):
            if request is not None:
                request.row = row
        self.shape = work.shape
        self._owes_step = True
        self._roomy_since = math.inf

    def failed(
        self, error: BaseException, now: float, *, is_cache_lost: bool = True
    ) -> list[TextEvent]:
        """Reports that the last piece of work has failed, and ends its requests.

        With `is_cache_lost`, the requests of all rows end, and the caller makes a new cache of the
        same shape. Prompts that are being read have caches of their own, and go on. They end with a
        resize that has failed, which they would ask for again.
        """
        work, self._work = self._work, None
        self._roomy_since = math.inf
        self._owes_step = True  # It took its time.
        lost = self.running if is_cache_lost else []
        if isinstance(work, Resize):
            lost += self._reading
        elif isinstance(work, ReadChunk) and work.request in self._reading:
            lost.append(work.request)
        return [self._end(request, "failed", now, error) for request in lost]

    def _report(self, kind: type[WorkT]) -> WorkT:
        work = self._work
        if not isinstance(work, kind):
            message = f"A {kind.__name__} was reported, and the last work was {work}."
            raise RuntimeError(message)  # noqa: TRY004 - the order of the calls is wrong.
        self._work = None
        return work

    def _add_token(self, request: TextRequest, token: int, row: int, now: float) -> TextEvent:
        request.tokens.append(token)
        if token in request.stop_tokens:
            kind: Outcome = "stop"
        elif len(request.tokens) >= request.max_tokens:
            kind = "length"
        else:
            return TextEvent(request, "token", now, token, row)
        self._remove(request)
        return TextEvent(request, kind, now, token, row)

    def _end(
        self, request: TextRequest, kind: Outcome, now: float, error: BaseException | None = None
    ) -> TextEvent:
        self._remove(request)
        return TextEvent(request, kind, now, error=error)

    def _remove(self, request: TextRequest) -> None:
        """Frees the row or the seat of a request."""
        self._waiting.pop(request, None)
        self._reading.pop(request, None)
        if request.row is not None:
            self.rows[request.row], request.row = None, None
        if request.tokens:
            self.pace.add_answer(request)
        self._order.leave(request.client)

    def _count_waiting(self, client: str) -> int:
        return sum(request.client == client for request in self._waiting)
