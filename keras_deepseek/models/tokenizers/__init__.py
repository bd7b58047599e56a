"""Tokenizers: from text to the padded arrays that a language model takes, and back."""

from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder
from keras_deepseek.models.tokenizers.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
