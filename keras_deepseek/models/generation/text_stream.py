"""Decoding of the tokens of one row that arrive one at a time."""

from collections.abc import Collection, Sequence
from typing import Any

from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder

_CONTEXT = 8
"""The number of prompt tokens that are decoded together with the first new ones."""


class TextStream:
    """A decoder of the tokens that follow a prompt.

    The text of a token may depend on the one before it: a word at the start of a text has no space
    before it. So the end of the prompt is decoded first. End tokens leave no text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], end_tokens: Collection[int]) -> None:
        self._decoder = StreamDecoder(tokenizer.detokenize)
        self._end_tokens = end_tokens
        for token in prompt[-_CONTEXT:]:
            self._decoder.push(token)

    def push(self, token: int) -> str:
        """Returns the text that one more token adds; `""` while a character is incomplete."""
        return "" if token in self._end_tokens else self._decoder.push(token)

    def finish(self) -> str:
        """Returns the text that was held back because its last character was incomplete."""
        return self._decoder.finish()
