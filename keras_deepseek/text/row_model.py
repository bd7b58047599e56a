"""The interfaces of a language model whose cache has rows, and of its tokenizer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.text.sampling import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class LogProbabilities:
    """Log-probabilities of n tokens, by the model's logits before the sampler changes them.

    Args:
        log_probabilities: float32 `(n,)`; `None` if no row needs them.
        top_tokens: int32 `(n, 20)`, the most likely tokens, the best one first, or `None`.
        top_log_probabilities: float32 `(n, 20)`, or `None`.
    """

    log_probabilities: Array | None = None
    top_tokens: Array | None = None
    top_log_probabilities: Array | None = None


@dataclass(frozen=True, kw_only=True)
class RowOutputs(LogProbabilities):
    """The next token of each of n rows. A chunk of a prompt has one row.

    Args:
        tokens: int32 `(n,)`.
        is_finite: Boolean `(n,)`. False for a row whose logits have NaN or infinity.
    """

    tokens: Array
    is_finite: Array


class RowModel(ABC):
    """The steps of a language model whose cache has rows. One thread calls them.

    `make` a cache. Read a prompt by `begin` and `read`, `place` its cache into a row, and `decode`
    all rows together. A token's slot is its position.

    Args:
        vocabulary_size: The token ids are below it.
        max_length: The most tokens of a prompt and its answer, or `None` without a limit.
    """

    def __init__(self, vocabulary_size: int, max_length: int | None) -> None:
        self.vocabulary_size = vocabulary_size
        self.max_length = max_length

    @property
    @abstractmethod
    def num_compilations(self) -> int:
        """The number of times that a step was compiled, or recorded. Any thread may read it."""

    @abstractmethod
    def make(self, rows: int, slots: int) -> None:
        """Makes an empty cache in place of the present one, also after a step has failed."""

    @abstractmethod
    def resize(self, slots: int, sources: Sequence[int | None]) -> None:
        """Copies rows into a cache of another shape.

        `sources` has the row to copy, or `None`, for each row of the new cache.
        """

    @abstractmethod
    def begin(self, prompt_length: int) -> Any:
        """Returns the empty staging cache of a prompt, which has it alone."""

    @abstractmethod
    def read(
        self,
        cache: Any,
        token_ids: Sequence[int],
        start: int,
        *,
        sampling: SamplingOptions | None = None,
        prompt: Sequence[int] = (),
        uniform: float = 0.0,
        targets: Sequence[int] | None = None,
    ) -> tuple[Any, RowOutputs | None, LogProbabilities | None]:
        """Reads a chunk of a prompt into its staging cache, which is used up.

        Args:
            cache: The staging cache.
            token_ids: The tokens of the chunk. Only the last chunk may be shorter than others.
            start: The number of tokens that were read before.
            sampling: The settings of the first token of the answer, or `None` if the chunk is not
                the last one.
            prompt: All tokens of the prompt, for the last chunk.
            uniform: A random number in [0, 1) for the first token.
            targets: The tokens that follow those of the chunk, or `None` if no log-probabilities
                are needed. Nothing follows the last token of a prompt.

        Returns:
            The next staging cache, the first token of the answer or `None`, and the
                log-probabilities of `targets` or `None`.
        """

    @abstractmethod
    def place(self, cache: Any, row: int, prompt: Sequence[int], sampling: SamplingOptions) -> None:
        """Copies the staging cache of a prompt into a row."""

    @abstractmethod
    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        is_active: Sequence[bool],
        uniforms: Sequence[float],
    ) -> RowOutputs:
        """Reads the last token of each row, and returns the next one.

        `positions` are the slots of these tokens, 0 in rows that are not active.
        """

    @abstractmethod
    def warm_up(
        self, shapes: Sequence[tuple[int, int]], report: Callable[[int, int], None]
    ) -> None:
        """Runs all steps that caches of these rows and slots need, so that none is compiled later.

        `shapes` has each number of rows with each number of slots.
        `report` gets the number of runs that are done, and of all. The cache is a new one of the
        first shape then.
        """


class TextTokenizer(Protocol):
    """A tokenizer, as `keras_deepseek.models.Tokenizer` is one."""

    @property
    def most_bytes_per_token(self) -> int | None:
        """The most UTF-8 bytes of a text that one token can stand for, or `None` if not known."""

    def tokenize(self, texts: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        """Returns the token ids of a text."""

    def detokenize(self, token_ids: Any, *, skip_special_tokens: bool = True) -> Any:
        """Returns the text of token ids."""

    def stream(self, *, skip_special_tokens: bool = True) -> Any:
        """Returns a `StreamDecoder` of tokens that arrive one at a time."""
