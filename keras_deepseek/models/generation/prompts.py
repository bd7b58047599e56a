"""Checking of prompts and stop tokens, and their conversion to padded token ids."""

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError


@dataclass(frozen=True)
class Prompts:
    """Prompts as rows of token ids, with the original texts if they were strings.

    With `is_single`, a single prompt was given, so a single result is returned.
    """

    rows: list[list[int]]
    is_single: bool
    texts: list[str] | None = None

    @property
    def is_text(self) -> bool:
        """True if the prompts were strings, so that strings are returned."""
        return self.texts is not None

    def pad(self, length: int) -> tuple[Array, Array]:
        """Returns left-padded token ids (int32) and their mask, both `(batch_size, length)`.

        Prompts are padded on the left. `length` is at least that of the longest one.
        """
        token_ids = np.zeros((len(self.rows), length), "int32")
        mask = np.zeros(token_ids.shape, "bool")
        for row, ids in enumerate(self.rows):
            token_ids[row, length - len(ids) :] = ids
            mask[row, length - len(ids) :] = True
        return token_ids, mask


def read_prompts(inputs: Any, tokenizer: Any, vocabulary_size: int | None) -> Prompts:
    """Reads prompts from strings or token ids, one or several.

    Token ids are a list or array of integers, a list of these, or an array of two axes. A
    `vocabulary_size` of `None` is unknown. Text needs a `tokenizer` with `tokenize`.
    """
    if hasattr(inputs, "shape"):
        inputs = np.asarray(inputs).tolist()  # A single string can be a NumPy array too.
    if isinstance(inputs, str):
        rows = _encode([inputs], tokenizer, vocabulary_size)
        return Prompts(rows, is_single=True, texts=[inputs])
    if not isinstance(inputs, Sequence) or isinstance(inputs, bytes) or not len(inputs):
        raise InvalidInputError(
            "Prompts must be a string, a list of token ids, or a list of either that is not empty; "
            f"received {inputs!r}."
        )
    if all(isinstance(prompt, str) for prompt in inputs):
        texts = list(inputs)
        rows = _encode(texts, tokenizer, vocabulary_size)
        return Prompts(rows, is_single=False, texts=texts)
    is_single = all(isinstance(prompt, numbers.Real) for prompt in inputs)
    rows = [_read_ids(ids, vocabulary_size) for ids in ([inputs] if is_single else inputs)]
    return Prompts(rows, is_single=is_single)


def _encode(texts: list[str], tokenizer: Any, vocabulary_size: int | None) -> list[list[int]]:
    if tokenizer is None:
        raise InvalidInputError(
            "Prompts are text, and the model has no tokenizer. Set `model.tokenizer`, give token "
            "ids, or load the model from a folder with a `tokenizer.json` when `tokenizers` is "
            "installed."
        )
    if not hasattr(tokenizer, "tokenize"):
        raise InvalidInputError(
            f"`model.tokenizer` must be a `Tokenizer`, or None; received {tokenizer!r}."
        )
    rows = [[int(token) for token in tokenizer.tokenize(text)] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        check_tokens(text, row)
        if vocabulary_size is not None and max(row) >= vocabulary_size:
            raise InvalidInputError(
                f"The tokenizer encodes the prompt {text!r} with the token id {max(row)}, and the "
                f"model's vocabulary has only {vocabulary_size} tokens: the tokenizer belongs to "
                "another model. Set `model.tokenizer` to the tokenizer of this model."
            )
    return rows


def check_tokens(text: str, tokens: Sequence[int]) -> None:
    """Raises an error if a prompt has no tokens."""
    if not len(tokens):
        raise InvalidInputError(f"The prompt {text!r} must have at least one token, and has none.")


def _read_ids(ids: Any, vocabulary_size: int | None) -> list[int]:
    if hasattr(ids, "shape"):
        ids = np.asarray(ids).tolist()
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence) or not len(ids):
        raise InvalidInputError(
            f"A prompt must be a list of at least one token id, received {ids!r}. In a batch, "
            "either all prompts are strings or none is."
        )
    row = [check_integer("a token id", token, minimum=0) for token in ids]
    if vocabulary_size is not None and max(row) >= vocabulary_size:
        raise InvalidInputError(
            f"A prompt has the token id {max(row)}, and the model's vocabulary has only "
            f"{vocabulary_size} tokens. Was it encoded by the tokenizer of another model?"
        )
    return row


def read_stop_tokens(
    stop_token_ids: Any,
    end_tokens: frozenset[int],
    batch_size: int,
    vocabulary_size: int | None = None,
) -> list[frozenset[int]]:
    """Returns for each row the set of tokens at which it stops.

    `stop_token_ids` is `"auto"` for the end tokens, an integer, a list of integers, one list of
    integers for each row, or `None` for none. A `vocabulary_size` of `None` is unknown.
    """
    if stop_token_ids is None:
        return [frozenset()] * batch_size
    if isinstance(stop_token_ids, str):
        if stop_token_ids != "auto":
            raise InvalidInputError(
                f'`stop_token_ids` must be "auto", integers or None, received {stop_token_ids!r}.'
            )
        return [end_tokens] * batch_size
    if isinstance(stop_token_ids, numbers.Integral):
        stop_token_ids = [stop_token_ids]
    if hasattr(stop_token_ids, "shape"):
        stop_token_ids = np.asarray(stop_token_ids).tolist()
    rows = list(stop_token_ids) if _is_list(stop_token_ids) else [stop_token_ids]
    if all(isinstance(token, numbers.Integral) for token in rows):
        return [_read_stop(rows, vocabulary_size)] * batch_size  # The same tokens for all rows.
    if len(rows) != batch_size or not all(map(_is_list, rows)):
        raise InvalidInputError(
            f"`stop_token_ids` must be integers, or one list of integers for each of the "
            f"{batch_size} prompts; received {stop_token_ids!r}."
        )
    return [_read_stop(row, vocabulary_size) for row in rows]


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def _read_stop(tokens: Any, vocabulary_size: int | None = None) -> frozenset[int]:
    stop_tokens = frozenset(check_integer("a stop token", token, minimum=0) for token in tokens)
    if vocabulary_size is not None and max(stop_tokens, default=0) >= vocabulary_size:
        raise InvalidInputError(
            f"`stop_token_ids` has the token id {max(stop_tokens)}, at which no text would end: "
            f"the model's vocabulary has only {vocabulary_size} tokens. Is it from another "
            "tokenizer?"
        )
    return stop_tokens


def find_end_tokens(model: Any) -> frozenset[int]:
    """Returns the tokens that end a text of a model.

    They come from the first of these that has any: the `generation_config` of the preset, the
    model's config, and its tokenizer.
    """
    candidates = [
        model.generation_config.get("eos_token_id"),
        getattr(model.config, "end_token_id", None),
        getattr(model.tokenizer, "stop_token_ids", None),
    ]
    for tokens in candidates:
        if tokens is not None and tokens != ():
            return _read_stop([tokens] if isinstance(tokens, numbers.Integral) else tokens)
    return frozenset()
