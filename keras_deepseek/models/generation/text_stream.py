"""Text out of the tokens of one row, which come one by one."""

from collections.abc import Collection, Sequence
from typing import Any

from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder

_CONTEXT = 8
"""How many tokens of the prompt are decoded with the first ones behind it."""


class TextStream:
    """Makes text of the tokens behind a prompt.

    What a token reads as may depend on the one before it: a word at the beginning of a text has no
    space before it. So the end of the prompt is decoded first.

    Args:
        tokenizer: What has `detokenize`.
        prompt: list of integers.
        end_tokens: integers. The tokens that leave no text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], end_tokens: Collection[int]) -> None:
        self._decoder = StreamDecoder(tokenizer.detokenize)
        self._end_tokens = end_tokens
        for token in prompt[-_CONTEXT:]:
            self._decoder.push(token)

    def push(self, token: int) -> str:
        """Returns what a token adds to the text; nothing while a character is not complete.

        Args:
            token: integer.
        """
        return "" if token in self._end_tokens else self._decoder.push(token)

    def finish(self) -> str:
        """Returns what is held back at the end."""
        return self._decoder.finish()
