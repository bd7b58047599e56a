"""The interfaces by which the loop calls a language model and its tokenizer.

`keras_deepseek.models` has both. It imports Keras, which serving does only in an executor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from keras_deepseek.artifacts.signature import Array


class RowSampling(Protocol):
    """The settings of a row that the model uses. `SamplingOptions` has them."""

    @property
    def temperature(self) -> float:
        """0 is greedy: then no random number is used."""

    @property
    def top_k(self) -> int | None:
        """Number of the most likely tokens to draw from."""

    @property
    def top_p(self) -> float:
        """Total probability of the tokens to draw from."""

    @property
    def min_p(self) -> float:
        """Smallest probability to draw, relative to that of the most likely token."""

    @property
    def repetition_penalty(self) -> float:
        """A factor for tokens of the prompt and the answer."""

    @property
    def presence_penalty(self) -> float:
        """A number that is subtracted from the logits of the answer's tokens."""

    @property
    def frequency_penalty(self) -> float:
        """The same, as often as the answer has the token."""

    @property
    def logit_bias(self) -> Mapping[int, float] | None:
        """Numbers that are added to the logits of tokens."""

    @property
    def num_alternatives(self) -> int | None:
        """The number of alternatives of each token, or `None` without log-probabilities."""


class LogProbabilities(Protocol):
    """Log-probabilities of n tokens, by the model's logits before the sampler changes them."""

    @property
    def log_probabilities(self) -> Array | None:
        """Float32 `(n,)`, or `None` if no row asked for them."""

    @property
    def top_tokens(self) -> Array | None:
        """The most likely tokens, int32 `(n, number)`, the best one first."""

    @property
    def top_log_probabilities(self) -> Array | None:
        """Float32 `(n, number)`."""


class RowOutputs(LogProbabilities, Protocol):
    """The NumPy outputs of a step: one token for each of n rows, and for a chunk n is 1."""

    @property
    def tokens(self) -> Array:
        """Int32 `(n,)`."""

    @property
    def is_finite(self) -> Array:
        """Boolean `(n,)`: False for a row whose logits are not all finite numbers."""


class RowModel(Protocol):
    """The steps of a language model with a cache of rows. One thread calls it."""

    @property
    def vocabulary_size(self) -> int:
        """The token ids are below it."""

    @property
    def max_length(self) -> int | None:
        """The most tokens of a prompt and its answer, or `None` without a limit."""

    @property
    def num_compilations(self) -> int:
        """Grows whenever a step is compiled or recorded. Any thread may read it."""

    def make(self, rows: int, slots: int) -> None:
        """Makes an empty cache in place of the present one, also after a step has failed."""

    def resize(self, slots: int, sources: Sequence[int | None]) -> None:
        """Copies rows into a cache of another shape, as `Resize` says."""

    def begin(self, prompt_length: int) -> Any:
        """Returns an empty cache for a prompt alone."""

    def read(
        self,
        cache: Any,
        token_ids: Sequence[int],
        start: int,
        *,
        sampling: RowSampling | None = None,
        prompt: Sequence[int] = (),
        uniform: float = 0.0,
        targets: Sequence[int] | None = None,
    ) -> tuple[Any, RowOutputs | None, LogProbabilities | None]:
        """Reads a chunk of a prompt into its own cache.

        Args:
            cache: That of `begin` or of the last call, which is not used again.
            token_ids: The chunk.
            start: The number of the prompt's tokens that were read before.
            sampling: The settings of the first token, or `None` if this is not the last chunk.
            prompt: The whole prompt, for the last chunk.
            uniform: A random number in [0, 1) for the first token.
            targets: The tokens that follow those of the chunk, whose log-probabilities are asked
                for. Nothing follows the last token of a prompt.
        """

    def place(
        self, cache: Any, row: int, prompt: Sequence[int], sampling: RowSampling, first_token: int
    ) -> None:
        """Copies the cache of a prompt into a row."""

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        is_active: Sequence[bool],
        uniforms: Sequence[float],
    ) -> RowOutputs:
        """Decodes one token in each row."""

    def warm_up(
        self, shapes: Sequence[tuple[int, int]], report: Callable[[int, int], None]
    ) -> None:
        """Compiles all steps of caches of these rows and slots.

        `report` gets the number of steps that are done, and of all.
        """


class TokenDecoder(Protocol):
    """A decoder of tokens that arrive one at a time."""

    def push(self, token_id: int) -> str:
        """Adds a token, and returns the text that is now certain."""

    def finish(self) -> str:
        """Returns the text that was held back, as the last character was incomplete."""


class TextTokenizer(Protocol):
    """A tokenizer, as `keras_deepseek.models.Tokenizer` is one."""

    @property
    def stop_token_ids(self) -> Sequence[int]:
        """The ids of the tokens that end a text."""

    @property
    def most_bytes_per_token(self) -> int | None:
        """The most UTF-8 bytes of a text that one token can stand for, or `None` if not known."""

    def tokenize(self, texts: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        """Returns the token ids of a text."""

    def detokenize(self, token_ids: Any, *, skip_special_tokens: bool = True) -> Any:
        """Returns the text of token ids."""

    def stream(self, *, skip_special_tokens: bool = True) -> TokenDecoder:
        """Returns a decoder of tokens that arrive one at a time."""
