"""The tokenizer of KerasHub's language models, with the methods that a server needs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder

_UNKNOWN = (IndexError, OverflowError, ValueError)
"""The errors of KerasHub's tokenizers for a token id that they lack."""


class KerasHubTokenizer:
    """The tokenizer of a task of KerasHub, as a `Tokenizer` is one.

    It adds the tokens before a text that the task's `generate` adds, and ends a text where that
    ends. There is no chat template.

    Args:
        task: `keras_hub.models.CausalLM` with a preprocessor.

    Raises:
        InvalidInputError: The task has no preprocessor with a tokenizer.
        NotSupportedError: The preprocessor does more than to add tokens before a text.
    """

    most_bytes_per_token = None

    def __init__(self, task: Any) -> None:
        tokenizer = getattr(task.preprocessor, "tokenizer", None)
        if tokenizer is None:
            raise InvalidInputError(
                f"The `preprocessor` of {type(task).__name__} is {task.preprocessor!r:.100}, and "
                "texts need one with a tokenizer: set it, or save the preset with it. To serve "
                "logits to clients that send token ids, serve keras.Model(task.inputs, "
                "task.outputs)."
            )
        self._tokenizer: Any = tokenizer
        self._special_tokens = frozenset(self._tokenizer.special_token_ids)
        text = "a"
        token_ids, self.stop_token_ids = _record_generate(task, text)
        number = len(token_ids) - len(self._encode(text))
        self._starts = token_ids[:number]
        if token_ids != [*self._starts, *self._encode(text)]:
            raise NotSupportedError(
                f"The preprocessor of {type(task).__name__} makes the tokens {token_ids} of "
                f"{text!r}, and its tokenizer {self._encode(text)}. Only tokens before a text can "
                "be served."
            )

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in np.asarray(self._tokenizer.tokenize(text))]

    def tokenize(self, texts: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, behind those that `generate` puts before it."""
        return [*(self._starts if add_special_tokens else ()), *self._encode(texts)]

    def detokenize(self, token_ids: Any, *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids. Those that the tokenizer lacks have none."""
        skipped = self._special_tokens if skip_special_tokens else ()
        ids = [int(token) for token in token_ids if token not in skipped]
        try:
            text = self._tokenizer.detokenize(ids)
        except _UNKNOWN:
            valid = [token for token in ids if self.id_to_token(token) is not None]
            text = self._tokenizer.detokenize(valid)
        return text if isinstance(text, str) else np.asarray(text).item().decode(errors="replace")

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Returns a decoder of tokens that arrive one at a time."""
        return StreamDecoder(partial(self.detokenize, skip_special_tokens=skip_special_tokens))

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id, or `None` if there is no such id."""
        try:
            return str(self._tokenizer.id_to_token(int(token_id)))
        except _UNKNOWN:
            return None

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token, or `None` if there is no such token."""
        try:
            token_id = int(self._tokenizer.token_to_id(token))
        except (KeyError, ValueError):
            return None
        # Some return the id of the unknown token.
        return token_id if self.id_to_token(token_id) == token else None

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Raises an error, as KerasHub's presets have no chat templates."""
        raise InvalidInputError("A tokenizer of KerasHub has no chat template. Pass a string.")


def _record_generate(task: Any, text: str) -> tuple[list[int], tuple[int, ...]]:
    """Returns the tokens that `generate` makes of a text, and those at which it stops."""
    calls = []

    def record(inputs: Any, stop_token_ids: Any = None) -> Any:
        calls.append((inputs, stop_token_ids))
        return inputs

    # A task calls the function that it has compiled before.
    function = getattr(task, "generate_function", None)
    task.generate_function = record
    try:
        task.generate(text)
    finally:
        task.generate_function = function
    ((inputs, stop_tokens),) = calls
    token_ids, mask = (ops.convert_to_numpy(inputs[key]) for key in ("token_ids", "padding_mask"))
    stops = tuple(int(token) for token in stop_tokens or () if token is not None)
    return token_ids[mask.astype(bool)].tolist(), stops
