"""One version of a language model: its steps, its tokenizer and its `TextEngine`."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import InvalidFieldError, InvalidInputError
from keras_deepseek.inference.models.model_options import (
    MAX_LENGTH,
    MAX_TEXT_ROWS,
    ModelOptions,
    check_kind,
)
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.text.text_engine import TextEngine
from keras_deepseek.inference.text.text_record import is_chat

if TYPE_CHECKING:
    from keras_deepseek.inference.executors.text_model import TextModel

_logger = logging.getLogger(__name__)

CHUNK_SIZE = 256
"""The tokens of a prompt that are read at once. A chunk reads all weights, and answers wait for it:
with 64, all requests together took 1.35 times as long, and the longest gap was 0.12 and not 0.27
seconds, on one core, with 88 million weights."""

MAX_WAITING = 512
"""The most answers that wait by default."""

_FACTOR = 4
"""The factor between two sizes of the cache. All of them are compiled before the start: the nine
sizes up to 16 rows of 4,096 slots took 32 seconds of one core on PyTorch and 62 on TensorFlow, with
88 million weights.
"""

_FIRST_SLOTS = 512

_SIGNATURE = Signature(
    inputs=(
        TensorSpec("text_input", (None, 1), "object"),
        TensorSpec("sampling_parameters", (None, 1), "object"),
        TensorSpec("stream", (None, 1), "bool"),
    ),
    outputs=(TensorSpec("text_output", (None, 1), "object"),),
)
"""The tensors by which Triton's clients ask a language model."""


def make_sizes(first: int, last: int) -> list[int]:
    """Returns the rows, or the slots, that the cache may have. The last one has room for all.

    Example:

    >>> make_sizes(1, 16)
    [1, 4, 16]
    """
    sizes = []
    while first < last:
        sizes.append(first)
        first *= _FACTOR
    return [*sizes, last]


class TextVersion(Version):
    """A version of a language model: it takes texts, and answers while it writes.

    `model` is the path of a preset or a live `CausalLM`, ours or KerasHub's. For each piece of
    work, `take_turn` must give the model its turn; with `None` the model waits for no other.
    """

    is_text = True

    def __init__(
        self,
        name: str,
        number: int,
        model: Any,
        options: ModelOptions,
        take_turn: Callable[[], contextlib.AbstractContextManager[None]] | None = None,
    ) -> None:
        from keras_deepseek.inference.executors.text_model import open_text_model

        super().__init__(name, number, options)
        check_kind(options, "text", name)
        self.created = int(time.time())
        """When it was opened, in Unix seconds."""
        self._model = open_text_model(
            model,
            chunk_size=CHUNK_SIZE,
            batch_invariant=options.batch_invariant,
            threads=options.threads,
            weights=options.weights,
        )
        self.tokenizer = self._model.tokenizer
        self.has_chat = self._model.has_chat
        """True if it can format a conversation: it has a chat template, or its family a format."""
        self.chat_style = self._model.chat_style
        """The family's message format, unless the checkpoint has a chat template."""
        self.max_length = _find_max_length(name, self._model, options.max_length)
        """The most tokens of a prompt and its answer together."""
        self._shapes = self._make_shapes()
        self.engine = TextEngine(
            self._model.steps,
            self.tokenizer,
            shapes=self._shapes,
            chunk_size=self._model.chunk_size or self.max_length,
            max_waiting=options.max_queue_rows or MAX_WAITING,
            end_tokens=self._model.end_tokens,
            take_turn=take_turn,
        )

    @property
    def signature(self) -> Signature:
        """The tensors by which Triton's clients ask a language model, over Open Inference."""
        return _SIGNATURE

    def format_prompt(self, prompt: Any) -> str | Sequence[int]:
        """Returns a prompt for the engine: a text or token ids as they are, or chat messages."""
        if not is_chat(prompt):
            text: str | Sequence[int] = prompt
            return text
        if not self.has_chat:
            raise InvalidFieldError(
                "messages",
                f"The model {self.name!r} has no chat template. Send a prompt to /v1/completions, "
                "or pass a string.",
            )
        return self.tokenizer.apply_chat_template(prompt)

    def _make_shapes(self) -> list[tuple[int, int]]:
        """Returns the pairs of rows and slots that the cache may have, all of them compiled.

        A step takes longer with more rows and with more slots, so that few or short answers get a
        smaller cache. If the bits of an answer must not depend on others, there is one size.
        """
        max_rows = self._options.max_batch_size or MAX_TEXT_ROWS
        self._model.check_cache(max_rows, self.max_length)
        if self._options.batch_invariant:
            return [(max_rows, self.max_length)]
        slots = self._model.steps.resizable_slots(make_sizes(_FIRST_SLOTS, self.max_length))
        return list(itertools.product(make_sizes(1, max_rows), slots))

    def _warm_up(self) -> None:
        start, steps = time.monotonic(), self._model.steps
        _logger.info(
            "Warms up the language model %r: caches of %s rows and slots.",
            *(self.name, ", ".join(f"{rows} x {slots}" for rows, slots in self._shapes)),
        )
        steps.warm_up(self._shapes, self._report)
        seconds = time.monotonic() - start
        message = "The language model %r is warm after %.1f s: %d compilations."
        _logger.info(message, self.name, seconds, steps.num_compilations)

    def _report(self, number: int, total: int) -> None:
        self.progress = f"{self.name!r} warms up {number} of {total} steps"
        if 10 * number // total > 10 * (number - 1) // total:  # A line for each tenth.
            _logger.info("The language model %s.", self.progress)

    def _begin(self) -> None:
        self.engine.start()

    def _end(self, seconds: float | None) -> bool:
        return self.engine.close(seconds)

    def _release(self, *, is_idle: bool = True) -> None:
        """Does nothing: the memory is freed with the version."""


def _find_max_length(name: str, model: "TextModel", asked_length: int | None) -> int:
    most = model.steps.max_length
    if asked_length is None:
        lengths = (most, model.default_length, MAX_LENGTH)
        return min(length for length in lengths if length is not None)
    if most is not None and asked_length > most:
        raise InvalidInputError(
            f"Received max_length={asked_length} for {name!r}, a language model with at most "
            f"{most} tokens. Lower `max_length` (--max-length), or remove it."
        )
    return asked_length
