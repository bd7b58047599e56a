"""The totals of a language model that answers requests, for the metrics."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from keras_deepseek.inference.histogram import SECONDS, Histogram, HistogramValues
from keras_deepseek.inference.text.row_scheduler import RowScheduler
from keras_deepseek.inference.text.text_request import TextEvent

REQUEST_SECONDS = (*SECONDS, 60.0, 120.0, 300.0, 600.0)
"""The bounds for the times of whole answers."""


@dataclass(frozen=True)
class TextStatistics:
    """The state of a language model that answers requests, and its totals. Times are in seconds.

    Each of the `n` answers to a prompt is a request of its own here. `outcomes` has the requests
    that have ended by the kind of their end (`Outcome`), and `"refused"` for those for which there
    was no room. The other fields come with the texts that metrics show.
    """

    outcomes: Mapping[str, int]
    num_waiting: Annotated[int, "Answers that wait for a row."]
    num_reading: Annotated[int, "Prompts that are being read."]
    num_running: Annotated[int, "Answers that have a row or whose prompt is being read."]
    used_share: Annotated[float, "The used part of the largest cache, from 0 to 1."]
    rows: Annotated[int, "Rows of the present cache."]
    slots: Annotated[int, "Tokens of a row of the present cache."]
    num_prompt_tokens: Annotated[int, "Tokens of prompts that were read."]
    num_tokens: Annotated[int, "Tokens of answers."]
    num_compilations: Annotated[
        int, "Compiled or recorded steps. It should not grow while requests are answered."
    ]
    first_token: Annotated[
        HistogramValues, "Seconds from a request to the first token of its answer."
    ]
    between_tokens: Annotated[HistogramValues, "Seconds between two tokens of an answer."]
    request: Annotated[HistogramValues, "Seconds from a request to the end of its answer."]


class TextTotals:
    """Counts and times. The caller holds a lock."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.num_prompt_tokens = 0
        self.num_tokens = 0
        self._first_token = Histogram(SECONDS)
        self._between_tokens = Histogram(SECONDS)
        self._request = Histogram(REQUEST_SECONDS)

    def add_token(self, event: TextEvent, last_time: float | None) -> None:
        """Adds a token, and the time since the one before it."""
        self.num_tokens += 1
        if last_time is None:
            self._first_token.add(event.time - event.request.arrived)
        else:
            self._between_tokens.add(event.time - last_time)

    def add_end(self, event: TextEvent) -> None:
        """Adds a request that has ended."""
        self.outcomes[event.kind] += 1
        self._request.add(event.time - event.request.arrived)

    def statistics(self, scheduler: RowScheduler, num_compilations: int) -> TextStatistics:
        """Returns the totals so far, and the state of a scheduler."""
        running = scheduler.running
        num_used = sum(request.position + 1 for request in running)
        return TextStatistics(
            num_waiting=scheduler.num_waiting,
            num_reading=scheduler.num_reading,
            num_running=scheduler.num_reading + len(running),
            rows=scheduler.shape.rows,
            slots=scheduler.shape.slots,
            used_share=num_used / math.prod(scheduler.shapes[-1]),
            outcomes=dict(self.outcomes),
            num_prompt_tokens=self.num_prompt_tokens,
            num_tokens=self.num_tokens,
            num_compilations=num_compilations,
            first_token=self._first_token.values(),
            between_tokens=self._between_tokens.values(),
            request=self._request.values(),
        )
