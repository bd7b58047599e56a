"""Decoding of a stream of tokens to text, one token at a time.

`tokenizers.decoders.DecodeStream` (0.23) is not used: it holds invalid bytes back for ever, and
drops an incomplete character at the end of the text.
"""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
"""The character that a decoder writes for bytes that are not valid UTF-8, or not yet complete."""

_MOST_UNFINISHED = 8
"""The tokens after which invalid bytes are written. A character has at most four bytes."""


class StreamDecoder:
    """A decoder that gets tokens one at a time and returns only text that can't change any more.

    A character whose bytes are spread over several tokens comes with the last of them.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._detokenize = detokenize
        # A token may decode differently at the start of a text, so the last ones are kept.
        self._context: list[int] = []
        self._fresh: list[int] = []
        self._num_pushed = 0  # The characters of `_fresh` that were returned already.

    def push(self, token_id: int) -> str:
        """Adds a token, and returns the text that is now certain, possibly empty."""
        self._fresh.append(int(token_id))
        text = self._read()
        certain = text.rstrip(_UNFINISHED)
        if len(certain) < len(text) and len(self._fresh) < _MOST_UNFINISHED:
            return self._advance(certain)
        return self._close(text)

    def finish(self) -> str:
        """Returns the text that was held back because its last character was incomplete."""
        return self._close(self._read()) if self._fresh else ""

    def _read(self) -> str:
        begin = len(self._detokenize(self._context)) if self._context else 0
        return self._detokenize([*self._context, *self._fresh])[begin:]

    def _advance(self, text: str) -> str:
        new = text[self._num_pushed :]
        self._num_pushed = max(self._num_pushed, len(text))
        return new

    def _close(self, text: str) -> str:
        new = self._advance(text)
        self._context, self._fresh, self._num_pushed = self._fresh, [], 0
        return new
