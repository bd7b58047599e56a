"""The requests of `text_serving.py`, the clock, and what is reported of the answers.

Each server has one thread, and the clock is the processor time of its process, so that other work
on the machine does not count. While a server has nothing to do, the clock is set forward.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TextRequest:
    """A prompt that comes at `arrival`, in seconds, and gets `num_tokens` tokens."""

    arrival: float
    prompt: list[int]
    num_tokens: int


def make_requests(
    number: int,
    vocabulary_size: int,
    rate: float | None = None,
    seed: int = 0,
    prompt: tuple[int, int] = (64, 512),
    answer: tuple[int, int] = (8, 256),
) -> list[TextRequest]:
    """Returns requests with random tokens. Without a rate all come at once.

    The lengths of prompts are uniform, and those of answers uniform in their logarithm.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.zeros(number) if rate is None else np.cumsum(rng.exponential(1 / rate, number))
    requests = []
    for arrival in arrivals.tolist():
        length = int(rng.integers(prompt[0], prompt[1] + 1))
        num_tokens = round(float(np.exp(rng.uniform(*np.log(answer)))))
        token_ids = rng.integers(1, vocabulary_size, length).tolist()
        requests.append(TextRequest(arrival, token_ids, num_tokens))
    return requests


class Clock:
    """The processor time of this process, which jumps over the time in which it waits."""

    def __init__(self) -> None:
        self._start = self._zero = time.process_time()

    def __call__(self) -> float:
        """Returns the seconds."""
        return time.process_time() - self._zero

    def jump(self, to: float) -> None:
        """Sets the clock forward, or leaves it if it is later."""
        self._zero -= max(to - self(), 0.0)

    def busy(self) -> float:
        """Returns the seconds without the jumps."""
        return time.process_time() - self._start


class Answers:
    """The tokens of all answers and the times at which they came."""

    def __init__(self, requests: list[TextRequest]) -> None:
        self.clock = Clock()
        self.tokens: list[list[int]] = [[] for _ in requests]
        self._times: list[list[float]] = [[] for _ in requests]
        self._requests = requests

    def add(self, number: int, tokens: list[int], now: float | None = None) -> None:
        """Adds tokens to an answer, that come now."""
        self.tokens[number] += tokens
        self._times[number] += [self.clock() if now is None else now] * len(tokens)

    def summarize(self) -> dict[str, Any]:
        """Returns the figures.

        Raises:
            RuntimeError: An answer has another length than its request asks for.
        """
        busy = self.clock.busy()
        lengths = [request.num_tokens for request in self._requests]
        for received in (self.tokens, self._times):
            if list(map(len, received)) != lengths:
                raise RuntimeError(
                    f"Answers have {list(map(len, received))} tokens; expected {lengths}."
                )
        arrivals = [request.arrival for request in self._requests]
        pairs = zip(self._times, arrivals, strict=True)
        first = np.array([times[0] - arrival for times, arrival in pairs])
        gaps = np.concatenate([np.diff(times) for times in self._times])
        seconds = max(times[-1] for times in self._times) - min(arrivals)
        return {
            "tokens_per_second": sum(lengths) / seconds,
            "cpu_ms": busy / sum(lengths) * 1e3,
            "first_p50": float(np.percentile(first, 50)),
            "first_p99": float(np.percentile(first, 99)),
            "between_p50_ms": float(np.percentile(gaps, 50)) * 1e3,
            "between_p99_ms": float(np.percentile(gaps, 99)) * 1e3,
            "tokens": self.tokens,
        }


def answer_questions(serve: Callable[..., Answers], vocabulary_size: int) -> None:
    """Reads traffic from the standard input, one question a line, and prints the figures.

    Args:
        serve: Takes requests, and other fields of the question by name.
        vocabulary_size: Of the model.
    """
    for line in sys.stdin:
        question = json.loads(line)
        requests = make_requests(vocabulary_size=vocabulary_size, **question.pop("traffic"))
        answers = serve(requests, **question)
        print(json.dumps(answers.summarize()), flush=True)
