"""From tokens, as they are generated, to text: none of it is ever taken back."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character, such as the first ones of one."""

_MOST_UNFINISHED = 8
"""Tokens. A character has four bytes at most: after as many, they will never be one."""


class StreamDecoder:
    """Decodes token by token; a character whose bytes are in several tokens comes with the last.

    Args:
        detokenize: Function from a list of token ids to a string.

    Example:

    >>> decoder = StreamDecoder(lambda ids: bytes(ids).decode("utf-8", "replace"))
    >>> [decoder.push(byte) for byte in "h\u00e9!".encode()], decoder.finish()
    (['h', '', '\u00e9', '!'], '')
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._detokenize = detokenize
        # A token may read otherwise at the beginning of a text, so a few before it stay.
        self._context: list[int] = []
        self._fresh: list[int] = []
        self._num_pushed = 0  # Characters of `_fresh`.

    def push(self, token_id: int) -> str:
        """Returns the text that is certain with one more token, often none.

        Args:
            token_id: integer.
        """
        self._fresh.append(int(token_id))
        text = self._read()
        certain = text.rstrip(_UNFINISHED)
        if len(certain) < len(text) and len(self._fresh) < _MOST_UNFINISHED:
            return self._advance(certain)
        return self._close(text)

    def finish(self) -> str:
        """Returns the rest: what was held back as the beginning of a character."""
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
