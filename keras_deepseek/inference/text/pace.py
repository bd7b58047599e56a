"""The learned times of chunks and decode steps, and forecasts of first tokens."""

import heapq
import math
from collections.abc import Iterable

from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.text.text_request import TextRequest

KEPT_SHARE = 0.98
"""The weight of all earlier answers after one more: about the last 50 count."""


class Pace:
    """Learned seconds of a model: of a chunk of a prompt, and of a decode step of all rows.

    A chunk's time depends on the length of the prompt, in powers of two of `chunk_size`, and a
    step's on the size of the cache, rows x slots. Before anything is measured all times are zero,
    so that nothing is refused.

    Args:
        chunk_size: The tokens of a prompt that are read at once.
    """

    def __init__(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._chunks = BatchTime()
        self._steps = BatchTime()
        self._num_used = 0.0
        self._num_allowed = 0.0

    @property
    def used_share(self) -> float:
        """The tokens of the last answers, relative to those that they were allowed."""
        return self._num_used / self._num_allowed if self._num_allowed else 1.0

    def add_chunk(self, prompt_length: int, seconds: float) -> None:
        """Adds the measured time of a chunk."""
        self._chunks.add(self._size(prompt_length), seconds)

    def add_step(self, cache_size: int, seconds: float) -> None:
        """Adds the measured time of a decode step."""
        self._steps.add(cache_size, seconds)

    def add_answer(self, request: TextRequest) -> None:
        """Learns from an answer that has ended how many of its tokens it has used."""
        self._num_used = KEPT_SHARE * self._num_used + len(request.tokens)
        self._num_allowed = KEPT_SHARE * self._num_allowed + request.max_tokens

    def read_seconds(self, request: TextRequest) -> float:
        """Returns the seconds in which the rest of a prompt can be read."""
        chunks = math.ceil((len(request.prompt) - request.num_read) / self._chunk_size)
        return chunks * self._chunks.predict(self._size(len(request.prompt)))

    def forecast(
        self,
        *,
        running: Iterable[TextRequest],
        reading: Iterable[TextRequest],
        waiting: Iterable[TextRequest],
        num_free: int,
        cache_size: int,
        reading_share: float,
    ) -> float:
        """Returns the seconds to the first token of the last of the waiting requests.

        Prompts are read one after another, in this order, beside the answers, and take a seat when
        one is free. Answers use the learned share of the tokens that they may still have.
        `num_free` seats are free, and reading gets the `reading_share` of the time.
        """
        used_share = self.used_share
        ends = [(request.max_tokens - len(request.tokens)) * used_share for request in running]
        model = _VirtualModel(self._steps.predict(cache_size), reading_share, ends, num_free)
        for request in reading:
            model.read(self.read_seconds(request), request.max_tokens * used_share)
        for request in waiting:
            model.take_seat()
            model.read(self.read_seconds(request), request.max_tokens * used_share)
        return model.clock

    def _size(self, prompt_length: int) -> int:
        num_chunks = math.ceil(prompt_length / self._chunk_size)
        return self._chunk_size << (num_chunks - 1).bit_length()


class _VirtualModel:
    """A model in virtual time that reads one prompt after another beside the answers.

    `ends` has, for each running answer, the number of steps after which it ends.
    """

    def __init__(self, step: float, reading_share: float, ends: list[float], num_free: int) -> None:
        self.clock = 0.0
        self._step = step
        self._share = reading_share
        self._ends = ends
        self._num_free = num_free
        self._num_steps = 0.0
        heapq.heapify(ends)

    def take_seat(self) -> None:
        """Decodes until a seat is free, and takes it."""
        if self._num_free:
            self._num_free -= 1
        else:
            self.clock += self._decode(self._ends[0] - self._num_steps)
            heapq.heappop(self._ends)

    def read(self, seconds: float, num_tokens: float) -> None:
        """Reads a prompt in seconds of the model, and begins its answer."""
        while self._ends and seconds:
            # Decoding gets its share of the time, until the prompt is read or an answer ends.
            decoding = seconds * (1 - self._share) / self._share
            until_end = (self._ends[0] - self._num_steps) * self._step
            if decoding < until_end:
                self.clock += seconds + self._decode(decoding / self._step)
                seconds = 0.0
            else:
                part = until_end * self._share / (1 - self._share)
                self.clock += part + self._decode(self._ends[0] - self._num_steps)
                seconds = max(seconds - part, 0.0)
                heapq.heappop(self._ends)
                self._num_free += 1
        self.clock += seconds
        heapq.heappush(self._ends, self._num_steps + num_tokens)

    def _decode(self, num_steps: float) -> float:
        self._num_steps += num_steps
        return num_steps * self._step
