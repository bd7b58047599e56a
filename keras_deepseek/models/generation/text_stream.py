"""Text out of the tokens of one row, which come one by one."""

from collections.abc import Sequence
from typing import Any

from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder

_CONTEXT = 8
"""How many tokens of the prompt are decoded with the first ones behind it."""


def stream_text(tokenizer: Any, prompt: Sequence[int]) -> StreamDecoder:
    """Returns what makes text of the tokens behind a prompt.

    What a token reads as may depend on the one before it: a word at the beginning of a text has no
    space before it. So the end of the prompt is decoded first.

    Args:
        tokenizer: What has `detokenize`.
        prompt: list of integers.
    """
    decoder = StreamDecoder(tokenizer.detokenize)
    for token in prompt[-_CONTEXT:]:
        decoder.push(token)
    return decoder
