"""A language model that answers many requests at once."""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from keras_deepseek.checks import check_number
from keras_deepseek.errors import InvalidFieldError, InvalidInputError
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.text.choice_writer import ChoiceWriter, make_token_text
from keras_deepseek.inference.text.row_scheduler import RowScheduler
from keras_deepseek.inference.text.text_answer import TextAnswer
from keras_deepseek.inference.text.text_loop import TextLoop
from keras_deepseek.inference.text.text_request import TextRequest, check_prompt_length
from keras_deepseek.inference.text.text_totals import TextStatistics
from keras_deepseek.text.row_model import RowModel, TextTokenizer
from keras_deepseek.text.sampling import SamplingOptions
from keras_deepseek.text.stop_strings import StopStrings

SHORT_TEXT = 2**13
"""The most characters that an event loop tokenizes itself: it takes some milliseconds."""


class TextEngine:
    """A language model that answers many requests at once, with continuous batching.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        shapes: Pairs of rows and slots that the cache may have. The last one has the most of both:
            that many answers are written at once, with so many tokens of prompt and answer.
        chunk_size: The tokens of a prompt that are read at once.
        max_waiting: The most requests that wait. A client may have half of what others leave.
        end_tokens: The tokens that end an answer.
        clock: A function that returns seconds.
        take_turn: Returns a context manager in which the model runs, among other models.

    Raises:
        InvalidInputError: The shapes don't fit together, or have more slots than the model's
            longest sequence.

    Example:

    >>> engine = TextEngine(  # doctest: +SKIP
    ...     steps, tokenizer, shapes=[(1, 512), (8, 2048)], chunk_size=256, end_tokens=[1]
    ... )
    >>> engine.start()  # doctest: +SKIP
    >>> engine.submit("Once upon", SamplingOptions(max_tokens=20)).result().text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: RowModel,
        tokenizer: TextTokenizer,
        *,
        shapes: Iterable[tuple[int, int]],
        chunk_size: int,
        end_tokens: Iterable[int],
        max_waiting: int = 512,
        clock: Callable[[], float] = time.monotonic,
        take_turn: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        scheduler = RowScheduler(shapes, chunk_size, max_waiting=max_waiting)
        self.max_length = scheduler.shapes[-1].slots
        """The most tokens of a prompt and its answer."""
        if model.max_length is not None and self.max_length > model.max_length:
            raise InvalidInputError(
                f"The cache would have {self.max_length} slots, and the model's sequences have "
                f"at most {model.max_length} tokens."
            )
        self._model = model
        self._clock = clock
        self._end_tokens = frozenset(end_tokens)
        self._token_text = make_token_text(tokenizer)
        self._loop = TextLoop(model, scheduler, clock, take_turn)
        # One text after another, so that long ones need memory once.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def start(self) -> None:
        """Makes the cache, and starts the thread that writes the answers."""
        self._loop.start()

    def close(self, seconds: float | None = None) -> bool:
        """Refuses new requests, and returns when the accepted ones are answered.

        After `seconds`, requests without an answer get a `ClosedError`. Returns False if a call of
        the model has not returned a second later: its thread goes on.
        """
        self._tokenizing.shutdown(wait=False)
        return self._loop.close(seconds)

    def statistics(self) -> TextStatistics:
        """Returns the state of the engine, and its totals."""
        return self._loop.statistics()

    def count_room(self, client: str) -> int:
        """Returns how many more answers to a client may wait. A prompt needs room for all `n`."""
        return self._loop.count_room(client)

    def tokenize(self, text: str, *, adds_special_tokens: bool = True) -> Sequence[int]:
        """Returns the tokens of a prompt.

        It takes about a second for a million tokens, so that an event loop rather calls
        `submit_async`. Raises an `InvalidFieldError` if the text is longer than any that fits, by
        its number of bytes, or is not valid Unicode.
        """
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidFieldError("prompt", f"The text is not valid Unicode: {error}.") from None
        if (most_bytes := self.tokenizer.most_bytes_per_token) is not None:
            fewest_tokens = math.ceil(num_bytes / most_bytes)
            check_prompt_length(fewest_tokens, self.max_length, is_least=True)
        return self.tokenizer.tokenize(text, add_special_tokens=adds_special_tokens)

    def submit(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingOptions | None = None,
        *,
        client: str = "",
        priority: int = 0,
        timeout: float | None = None,
        has_echo: bool = False,
        adds_special_tokens: bool = True,
        keeps_special_tokens: bool = False,
    ) -> TextAnswer:
        """Submits a prompt, and returns its answer before it is written.

        Args:
            prompt: A text, or token ids.
            sampling: The settings of the answer.
            client: The name of the client. Clients share the rows fairly.
            priority: A request of higher priority is read first.
            timeout: The seconds after which the first token is useless.
            has_echo: True if the answer is to follow its prompt. The prompt's tokens then have
                log-probabilities if the answer's have, and `max_tokens` may be 0.
            adds_special_tokens: True if the tokenizer adds its start token to a text. A chat
                template has it.
            keeps_special_tokens: True if special tokens are part of the answer's text.

        Raises:
            InvalidFieldError: A value is wrong, or the prompt is empty or too long. It has the name
                of the field.
            OverloadedError: Too many requests wait, or the first token would come too late.
            ClosedError: The engine is closed.
        """
        sampling = sampling or SamplingOptions()
        if sampling.max_tokens == 0 and not has_echo:
            raise InvalidFieldError(
                "max_tokens",
                "`max_tokens` may be 0 with `echo` alone, to score a prompt: send at least 1.",
            )
        deadline = math.inf
        if timeout is not None:
            deadline = self._clock() + check_number("timeout", timeout, above=0)
        if isinstance(prompt, str):
            prompt = self.tokenize(prompt, adds_special_tokens=adds_special_tokens)
        if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sized):
            raise InvalidFieldError(
                "prompt", f"The prompt must be a text or token ids, received {type(prompt)}."
            )
        check_prompt_length(len(prompt), self.max_length)
        requests = TextRequest.choices(
            prompt,
            sampling,
            client=client,
            priority=priority,
            deadline=deadline,
            end_tokens=self._end_tokens,
        )
        requests[0].check_vocabulary(self._model.vocabulary_size)
        answer = TextAnswer(requests, self._loop.cancel, self._loop.delivery)
        wants_prompt = has_echo and sampling.num_alternatives is not None
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64
        stops = StopStrings(sampling.stop) if sampling.stop else None
        self._loop.submit(
            [
                ChoiceWriter(
                    request,
                    answer,
                    tokenizer=self.tokenizer,
                    token_text=self._token_text,
                    seed=seed,
                    stops=stops,
                    wants_prompt=wants_prompt and not request.choice,
                    keeps_special_tokens=keeps_special_tokens,
                )
                for request in requests
            ]
        )
        return answer

    async def submit_async(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingOptions | None = None,
        *,
        adds_special_tokens: bool = True,
        **options: Any,
    ) -> TextAnswer:
        """Submits a prompt as `submit` does. A long text is tokenized on another thread."""
        if isinstance(prompt, str) and len(prompt) > SHORT_TEXT:
            tokenize = partial(self.tokenize, prompt, adds_special_tokens=adds_special_tokens)
            loop = asyncio.get_running_loop()
            try:
                tokens = loop.run_in_executor(self._tokenizing, tokenize)
            except RuntimeError as error:  # It was shut down.
                raise ClosedError("The model is closed and accepts no requests.") from error
            prompt = await tokens
        return self.submit(prompt, sampling, adds_special_tokens=adds_special_tokens, **options)
