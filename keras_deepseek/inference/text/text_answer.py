"""The answer to one prompt: its pieces as they come, and the whole result."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from keras_deepseek.inference.batching.delivery import LoopDelivery
from keras_deepseek.inference.errors import RequestCancelledError
from keras_deepseek.inference.text.text_request import TextRequest

_logger = logging.getLogger(__name__)


class TokenDetail(NamedTuple):
    """A token with its log-probability.

    Args:
        token_id: The id.
        text: The text of the token by itself, also of special tokens and of the one that ends the
            answer. Bytes that are no whole character are replacement characters.
        log_probability: That of the model before the sampler changes it. `None` for the first
            token of a prompt.
        alternatives: The most likely tokens in its place, the best one first.
    """

    token_id: int
    text: str
    log_probability: float | None
    alternatives: "tuple[TokenDetail, ...]" = ()


class TextPiece(NamedTuple):
    """The text and tokens that one step of the model adds to one choice.

    Args:
        choice: The number of the choice, below `n`.
        text: The new text. It is empty while a character is incomplete, or the text may be the
            beginning of a stop string; a later piece then has more.
        tokens: The new token, if log-probabilities were asked for.
        finish_reason: `"stop"` or `"length"` in the last piece of the choice, else `None`.
    """

    choice: int
    text: str
    tokens: tuple[TokenDetail, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True)
class TextChoice:
    """One of the `n` answers to a prompt.

    Args:
        text: The text without special tokens, stop tokens and stop strings.
        token_ids: All tokens that the model has written, also those at the end that are not in the
            text.
        finish_reason: `"stop"` after a stop token or a stop string, `"length"` if the answer has
            as many tokens as it may have.
        tokens: The details of these tokens, if log-probabilities were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    tokens: tuple[TokenDetail, ...]


@dataclass(frozen=True)
class TextResult:
    """A whole answer.

    Args:
        choices: The `n` answers.
        num_prompt_tokens: The tokens of the prompt.
        num_tokens: The tokens of all choices.
        prompt_details: The tokens of the prompt with their log-probabilities, if asked for.
    """

    choices: tuple[TextChoice, ...]
    num_prompt_tokens: int
    num_tokens: int
    prompt_details: tuple[TokenDetail, ...]

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text


class TextAnswer:
    """The answer to a prompt, which comes piece by piece.

    Iterate over it, in a thread or with `async for`, for the pieces of all choices, or call
    `result` or `wait` for the whole. Whoever leaves a loop over it early cancels the request, or
    leaves a `with` block of the answer. All of them raise the error of the request:
    `DeadlineExceededError`, `RequestCancelledError`, `TextFailedError` or `ClosedError`.

    The pieces are kept until nothing refers to the answer, so that each loop begins at the first
    one.

    `cancel` ends the requests, and is called once at most. `delivery` wakes event loops.

    Example:

    >>> with engine.submit("Once", SamplingOptions(max_tokens=20)) as answer:  # doctest: +SKIP
    ...     for piece in answer:
    ...         print(piece.text, end="")
    """

    def __init__(
        self,
        requests: Sequence[TextRequest],
        cancel: Callable[[Sequence[TextRequest]], None],
        delivery: LoopDelivery,
    ) -> None:
        self.requests = tuple(requests)
        self.prompt_details: tuple[TokenDetail, ...] = ()
        self._cancel = cancel
        self._delivery = delivery
        self._lock = threading.Lock()
        self._pieces: list[TextPiece] = []
        self._num_open = len(self.requests)
        self._error: Exception | None = None
        self._waiters: list[tuple[Callable[[], object], bool]] = []
        """Functions that wake readers, and whether they want the end alone."""

    # For its reader.

    @property
    def num_prompt_tokens(self) -> int:
        """The number of tokens of the prompt."""
        return len(self.requests[0].prompt)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all choices so far."""
        return sum(len(request.tokens) for request in self.requests)

    @property
    def deadline(self) -> float:
        """The time at which the first token is useless, in seconds of the scheduler's clock."""
        return self.requests[0].deadline

    @property
    def is_over(self) -> bool:
        """True if the answer is whole, or has an error."""
        return not self._num_open or self._error is not None

    def cancel(self) -> None:
        """Ends the request, whose rows are free for others before the model's next step.

        No piece comes after it, and nothing happens if the answer is over.
        """
        if self.fail(RequestCancelledError("The request was cancelled.")):
            self._pieces.clear()
            self._cancel(self.requests)

    def check(self) -> None:
        """Raises the error of the request, if it has one."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def __iter__(self) -> Iterator[TextPiece]:
        number = 0
        with self:
            while True:
                woken = threading.Event()
                if self._has_to_wait(number, woken.set):
                    woken.wait()
                if (piece := self._get(number)) is None:
                    return
                number += 1
                yield piece

    async def __aiter__(self) -> AsyncIterator[TextPiece]:
        number = 0
        async with self:
            while True:
                await self._wait_until(number)
                if (piece := self._get(number)) is None:
                    return
                number += 1
                yield piece

    def result(self, timeout: float | None = None) -> TextResult:
        """Waits for the whole answer.

        Raises a `TimeoutError` after `timeout` seconds. The request goes on.
        """
        woken = threading.Event()
        if self._has_to_wait(None, woken.set) and not woken.wait(timeout):
            raise TimeoutError(f"The answer was not whole after {timeout} s.")
        return self._result()

    async def wait(self) -> TextResult:
        """Waits for the whole answer in an event loop. To cancel the wait cancels the request."""
        try:
            await self._wait_until(None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._result()

    def add_done_callback(self, callback: "Callable[[TextAnswer], object]") -> None:
        """Calls a function with the answer when it is over, on any thread, or now if it is."""

        def call() -> None:
            try:
                callback(self)
            except Exception:  # The thread that writes answers goes on.
                _logger.exception("A callback of an answer failed.")

        if not self._has_to_wait(None, call):
            call()

    async def aclose(self) -> None:
        """Cancels the request, if it is not over."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel()

    # For its writer.

    def add(self, piece: TextPiece) -> None:
        """Adds a piece, unless the answer is over. The delivery's `flush` has to follow."""
        with self._lock:
            if self.is_over:
                return
            self._pieces.append(piece)
            if piece.finish_reason is not None:
                self._num_open -= 1
            woken = self._take_woken()
        for wake in woken:
            wake()

    def fail(self, error: Exception) -> bool:
        """Ends the answer by an error, and returns False if it was over."""
        with self._lock:
            if self.is_over:
                return False
            self._error = error
            woken = self._take_woken()
        for wake in woken:
            wake()
        self._delivery.flush()
        return True

    def _take_woken(self) -> list[Callable[[], object]]:
        """Returns the functions to call, and keeps those that want the end alone until then."""
        woken = [wake for wake, wants_end in self._waiters if self.is_over or not wants_end]
        self._waiters = [] if self.is_over else [pair for pair in self._waiters if pair[1]]
        return woken

    # Waiting.

    def _has_to_wait(self, number: int | None, wake: Callable[[], object]) -> bool:
        """Returns True if `wake` will be called when there is a piece, or the end for `None`."""
        with self._lock:
            if self.is_over or (number is not None and number < len(self._pieces)):
                return False
            self._waiters.append((wake, number is None))
            return True

    async def _wait_until(self, number: int | None) -> None:
        if self.is_over or (number is not None and number < len(self._pieces)):
            return
        waiter = asyncio.get_running_loop().create_future()
        call_soon = self._delivery.caller()

        def settle() -> None:
            if not waiter.done():
                waiter.set_result(None)

        if self._has_to_wait(number, lambda: call_soon(settle)):
            await waiter

    def _get(self, number: int) -> TextPiece | None:
        """Returns a piece, or `None` after the last one. Raises the error after it."""
        with self._lock:
            if number < len(self._pieces):
                return self._pieces[number]
            self.check()
            return None

    def _result(self) -> TextResult:
        self.check()
        choices = []
        for request in self.requests:
            pieces = [piece for piece in self._pieces if piece.choice == request.choice]
            choices.append(
                TextChoice(
                    text="".join(piece.text for piece in pieces),
                    token_ids=tuple(request.tokens),
                    finish_reason=pieces[-1].finish_reason or "",
                    tokens=tuple(detail for piece in pieces for detail in piece.tokens),
                )
            )
        return TextResult(
            tuple(choices), self.num_prompt_tokens, self.num_tokens, self.prompt_details
        )
