"""Text out of tokens that come one by one."""

from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one row, in pieces that no later token changes.

    A token may be a part of a character, and what it reads as depends on the one before it: so
    tokens are decoded together with those of the piece before.

    Args:
        tokenizer: What has `detokenize`.
        prompt: list of integers. The tokens that stand before.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = prompt[-_CONTEXT:]
        self._start, self._end = 0, len(self._tokens)

    def push(self, token: int) -> str:
        """Returns the text that a token completes, which may be none.

        Args:
            token: integer.
        """
        self._tokens.append(token)
        return self._read(is_last=False)

    def finish(self) -> str:
        """Returns what was held back, a character of which a part is missing."""
        return self._read(is_last=True)

    def _read(self, *, is_last: bool) -> str:
        before = self._tokenizer.detokenize(self._tokens[self._start : self._end])
        text = self._tokenizer.detokenize(self._tokens[self._start :])
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not is_last):
            return ""
        self._start, self._end = self._end, len(self._tokens)
        piece: str = text[len(before) :]
        return piece


_CONTEXT = 8
"""How many tokens of the prompt are decoded with the first piece."""
