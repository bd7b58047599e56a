"""The pieces of work that the scheduler gives to a model with a cache of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from keras_deepseek.inference.text.text_request import TextRequest


class CacheShape(NamedTuple):
    """The shape of the cache: its rows, and the tokens that a row has room for."""

    rows: int
    slots: int

    def holds(self, other: "CacheShape") -> bool:
        """Returns True if a cache of this shape has room for one of another."""
        return self.rows >= other.rows and self.slots >= other.slots


@dataclass(frozen=True)
class ReadChunk:
    """Read a chunk of a prompt, with a batch of one, into a cache of the prompt's own.

    The first chunk begins that cache. The last one gives the first token of the answer, and then
    the cache is placed into the row, which has slots for all tokens of the prompt and one more, but
    maybe for fewer than the cache of the prompt. If the answer is to have no token, that token and
    the cache are dropped.

    Args:
        start: The number of the prompt's tokens that were read before.
        stop: The number of those that are read after it.
        row: The row in which the answer begins after the chunk, or `None`.
    """

    request: TextRequest
    start: int
    stop: int
    row: int | None

    @property
    def token_ids(self) -> Sequence[int]:
        """The tokens to read."""
        return self.request.prompt[self.start : self.stop]

    @property
    def is_last(self) -> bool:
        """True if the chunk ends the prompt."""
        return self.stop == len(self.request.prompt)


@dataclass(frozen=True)
class DecodeStep:
    """Decode one token in each row that has a request; the others are `None`."""

    requests: tuple[TextRequest | None, ...]

    @property
    def tokens(self) -> list[int]:
        """The last token of each row, which the model gets."""
        return [request.tokens[-1] if request else 0 for request in self.requests]

    @property
    def positions(self) -> list[int]:
        """The slot into which each row writes that token."""
        return [request.position if request else 0 for request in self.requests]

    @property
    def is_active(self) -> list[bool]:
        """False for the rows whose result is ignored."""
        return [request is not None for request in self.requests]


@dataclass(frozen=True)
class Resize:
    """Copy the rows into a cache of another shape.

    Args:
        sources: For each row of the new cache the row to copy, or `None` for an empty one.
    """

    shape: CacheShape
    sources: tuple[int | None, ...]


Work = ReadChunk | DecodeStep | Resize
"""One call of the model. The caller of the scheduler runs it and reports how it ended."""
