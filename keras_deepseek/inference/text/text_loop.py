"""The thread that writes the answers of a language model."""

import contextlib
import logging
import math
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from keras_deepseek.inference.batching.delivery import LoopDelivery
from keras_deepseek.inference.batching.late_requests import DeadlineWatch
from keras_deepseek.inference.errors import (
    ClosedError,
    DeadlineExceededError,
    OverloadedError,
    RequestCancelledError,
    TextFailedError,
)
from keras_deepseek.inference.text.choice_writer import ChoiceWriter
from keras_deepseek.inference.text.row_scheduler import RowScheduler
from keras_deepseek.inference.text.row_work import DecodeStep, ReadChunk, Resize, Work
from keras_deepseek.inference.text.text_answer import TextAnswer, TextPiece
from keras_deepseek.inference.text.text_request import Outcome, TextEvent, TextRequest
from keras_deepseek.inference.text.text_totals import TextStatistics, TextTotals
from keras_deepseek.text.row_model import RowModel, RowOutputs

LAST_SECONDS = 1.0
"""The seconds that `close` waits for the last call of the model, after it has ended all answers."""

CLOSED = "The model was closed before the answer was whole."
FAILED = "The model failed to write the answer; see the log."
NOT_FINITE = "The model's logits were not finite numbers."

_logger = logging.getLogger(__name__)


class TextLoop:
    """Runs the work of a scheduler on a model, on a thread of its own.

    A lock guards the scheduler, the totals, and the caches of prompts that are being read. It is
    free while the model computes and while texts are written, so that others can submit and cancel.
    A step that fails ends the requests of its rows. Then the cache is made anew.

    `take_turn` returns a context manager in which the model runs, among other models.
    """

    def __init__(
        self,
        model: RowModel,
        scheduler: RowScheduler,
        clock: Callable[[], float],
        take_turn: Callable[[], contextlib.AbstractContextManager[None]] | None,
    ) -> None:
        self.delivery = LoopDelivery()
        """Wakes the event loops that wait for pieces: once after each step."""
        self._model = model
        self._scheduler = scheduler
        self._clock = clock
        self._take_turn = take_turn or contextlib.nullcontext
        self._condition = threading.Condition()
        # It ends late requests while the model computes, or hangs.
        self._deadlines = DeadlineWatch[TextAnswer](self._expire, clock)
        self._totals = TextTotals()
        self._writers: dict[TextRequest, ChoiceWriter] = {}
        self._prompts: dict[TextRequest, Any] = {}
        """The caches of prompts that are being read."""
        self._has_cache = False
        self._is_closing = False
        self._thread: threading.Thread | None = None

    # For all threads.

    def start(self) -> None:
        """Makes the cache, and starts the thread. Requests that were submitted before run now."""
        self._make_cache()
        self._thread = threading.Thread(target=self._work, name="text", daemon=True)
        self._thread.start()

    def submit(self, writers: Sequence[ChoiceWriter]) -> None:
        """Adds the requests of all choices of an answer, or raises an error of the scheduler."""
        requests = [writer.request for writer in writers]
        with self._condition:
            if self._is_closing:
                raise ClosedError("The model is closed and accepts no requests.")
            try:
                self._scheduler.submit(requests, self._clock())
            except OverloadedError:
                self._totals.outcomes["refused"] += len(requests)
                raise
            self._writers.update(zip(requests, writers, strict=True))
            self._condition.notify()
        answer = writers[0].answer
        if answer.deadline < math.inf:
            self._deadlines.add(answer)

    def count_room(self, client: str) -> int:
        """Returns how many more requests of a client may wait."""
        with self._condition:
            return self._scheduler.count_room(client)

    def cancel(self, requests: Iterable[TextRequest]) -> None:
        """Ends the requests that are not over, whose rows are then free."""
        with self._condition:
            self._cancel(requests, "cancelled")

    def close(self, seconds: float | None = None) -> bool:
        """Answers the accepted requests, and ends the thread, as `TextEngine.close` says."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join(seconds)
        if self._thread is None or self._thread.is_alive():
            self._fail_all(ClosedError(CLOSED))
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
        self._deadlines.close()
        return self._thread is None or not self._thread.is_alive()

    def statistics(self) -> TextStatistics:
        """Returns the totals so far."""
        with self._condition:
            return self._totals.statistics(self._scheduler, self._model.num_compilations)

    # The thread.

    def _work(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                try:
                    with self._take_turn():
                        task()
                # No error may end the thread: its requests would never be answered.
                except BaseException as error:  # noqa: BLE001
                    self._fail(error)
                self.delivery.flush()
        finally:  # Nobody is left, unless the scheduler itself has failed.
            self._is_closing = True
            self._fail_all(ClosedError(CLOSED))

    def _next_task(self) -> Callable[[], None] | None:
        """Waits for something to do, and returns `None` when the loop is closed and idle."""
        with self._condition:
            while True:
                now = self._clock()
                if self._deadlines.is_due(now):
                    self._expire()
                is_idle = self._scheduler.is_idle
                if is_idle and self._is_closing:
                    return None
                if not self._has_cache:
                    if not is_idle:
                        return self._make_cache
                    self._condition.wait()
                elif (work := self._scheduler.next_work(now)) is not None:
                    return self._as_task(work)
                else:
                    seconds = min(self._scheduler.next_time() - now, threading.TIMEOUT_MAX)
                    self._condition.wait(seconds)

    def _expire(self) -> None:
        """Ends the requests that have no first token by their deadline."""
        now = self._clock()
        self._deadlines.take_due(now)
        with self._condition:
            self._end(self._scheduler.expire(now))

    def _as_task(self, work: Work) -> Callable[[], None]:
        if isinstance(work, DecodeStep):
            return partial(self._decode, work)
        if isinstance(work, Resize):
            return partial(self._resize, work)
        request = work.request
        return partial(self._read, work, self._writers[request], self._prompts.pop(request, None))

    @contextlib.contextmanager
    def _change_cache(self) -> Iterator[None]:
        """Context manager of a change of the cache. If its block fails, the cache is lost."""
        self._has_cache = False
        yield
        self._has_cache = True

    def _make_cache(self) -> None:
        try:
            with self._change_cache():
                self._model.make(*self._scheduler.shape)
        except BaseException:
            # The next request tries it again.
            self._fail_all(TextFailedError(FAILED))
            raise

    def _resize(self, work: Resize) -> None:
        with self._change_cache():
            self._model.resize(work.shape.slots, work.sources)
            with self._condition:
                self._scheduler.resize_done(self._clock())

    def _read(self, work: ReadChunk, writer: ChoiceWriter, cache: Any) -> None:
        request, model, begin = work.request, self._model, self._clock()
        is_last = work.is_last
        if not work.start:
            cache = model.begin(len(request.prompt))
        cache, outputs, prompt_outputs = model.read(
            cache,
            work.token_ids,
            work.start,
            sampling=request.sampling if is_last else None,
            prompt=request.prompt if is_last else (),
            uniform=writer.draw() if is_last else 0.0,
            targets=request.prompt[work.start + 1 : work.stop + 1] if writer.wants_prompt else None,
        )
        if prompt_outputs is not None:
            writer.add_prompt(prompt_outputs, work.start, work.stop)
        token, is_finite = 0, True
        if outputs is not None:
            token, is_finite = int(outputs.tokens[0]), bool(outputs.is_finite[0])
            if is_finite and work.row is not None:
                with self._change_cache():
                    model.place(cache, work.row, request.prompt, request.sampling)
        with self._condition:
            now = self._clock()
            self._totals.num_prompt_tokens += work.stop - work.start
            if not is_finite:
                self._end(self._scheduler.cancel(request, now, "failed"), NOT_FINITE)
            elif not is_last and request in self._writers:
                self._prompts[request] = cache
            events = self._scheduler.read_done(token, now - begin, now)
        if outputs is not None:
            self._write(events, outputs)

    def _decode(self, work: DecodeStep) -> None:
        begin = self._clock()
        with self._change_cache():
            outputs = self._model.decode(
                work.tokens, work.positions, work.is_active, self._draw(work.requests)
            )
            tokens, is_finite = outputs.tokens.tolist(), outputs.is_finite.tolist()
            with self._condition:
                now = self._clock()
                for request, is_right in zip(work.requests, is_finite, strict=True):
                    if request is not None and not is_right:
                        self._end(self._scheduler.cancel(request, now, "failed"), NOT_FINITE)
                events = self._scheduler.decode_done(tokens, now - begin, now)
        self._write(events, outputs)

    def _draw(self, requests: Iterable[TextRequest | None]) -> list[float]:
        """Returns the random numbers of rows. Those without a request don't need one."""
        writers = [None if request is None else self._writers.get(request) for request in requests]
        return [0.0 if writer is None else writer.draw() for writer in writers]

    # Its results.

    def _write(self, events: Iterable[TextEvent], outputs: RowOutputs) -> None:
        """Writes the text of new tokens, and ends the answers in which it has a stop string.

        Only the end of an answer without tokens has none.
        """
        written = []
        for event in events:
            writer = self._writers.get(event.request)
            if writer is not None:  # Else it was cancelled meanwhile.
                written.append((event, writer, _try_write(writer, event, outputs)))
        with self._condition:
            for event, writer, piece in written:
                if event.token is not None:
                    self._totals.add_token(event, writer.last_time)
                    writer.last_time = event.time
                if event.is_last:
                    self._end([event])
                elif piece is None or piece.finish_reason is not None:
                    kind: Outcome = "failed" if piece is None else "stop"
                    self._end(self._scheduler.cancel(event.request, event.time, kind))
        for _, writer, piece in written:
            if piece is None:
                writer.answer.fail(TextFailedError(FAILED))
            else:
                writer.answer.add(piece)

    def _fail(self, error: BaseException) -> None:
        """Ends the requests of the work that has failed."""
        _logger.error("A step of a language model failed.", exc_info=error)
        traceback.clear_frames(error.__traceback__)  # They hold tensors.
        with self._condition:
            is_lost = not self._has_cache
            self._end(self._scheduler.failed(error, self._clock(), is_cache_lost=is_lost))

    def _fail_all(self, error: Exception) -> None:
        with self._condition:
            for writer in tuple(self._writers.values()):
                writer.answer.fail(error)
            self._cancel(tuple(self._writers), "failed")

    def _cancel(self, requests: Iterable[TextRequest], kind: Outcome) -> None:
        now = self._clock()
        for request in requests:
            self._end(self._scheduler.cancel(request, now, kind))

    def _end(self, events: Iterable[TextEvent], reason: str = FAILED) -> None:
        """Forgets requests that have ended, and ends their answers unless they are whole."""
        for event in events:
            self._totals.add_end(event)
            self._prompts.pop(event.request, None)
            answer = self._writers.pop(event.request).answer
            error = _make_error(event.kind, reason)
            if error is not None and answer.fail(error):
                self._cancel(answer.requests, "cancelled")  # Nobody will read them.


def _make_error(kind: Outcome, reason: str) -> Exception | None:
    if kind == "deadline":
        return DeadlineExceededError("The deadline passed before the first token.")
    if kind == "failed":
        return TextFailedError(reason)
    return RequestCancelledError("The request was cancelled.") if kind == "cancelled" else None


def _try_write(writer: ChoiceWriter, event: TextEvent, outputs: RowOutputs) -> TextPiece | None:
    try:
        return writer.write(event, outputs)
    except Exception:
        _logger.exception("The text of a token could not be written.")
        return None
