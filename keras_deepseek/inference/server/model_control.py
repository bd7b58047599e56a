"""The permission to load, unload and replace models by calls over HTTP or gRPC.

It is off by default, because whoever may ask for predictions could otherwise unload the model.
"""

import os
from collections.abc import Sequence
from typing import Literal

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.errors import NotPermittedError
from keras_deepseek.inference.server.tokens import TokenCheck

ModelControlMode = Literal["none", "explicit"]
"""Triton's words: `"explicit"` lets clients load and unload models, `"none"` does not."""


class ModelControl:
    """The check whether a client may load and unload models. `tokens` are those of `TokenCheck`."""

    def __init__(
        self, mode: ModelControlMode, tokens: Sequence[str] | os.PathLike[str] | None
    ) -> None:
        if mode not in ("none", "explicit"):
            raise InvalidInputError(
                f'`model_control` must be "none" or "explicit", received {mode!r}.'
            )
        if mode == "explicit" and tokens is None:
            raise InvalidInputError(
                'Received model_control="explicit" without `management_tokens`. Give the tokens '
                "with which clients may load and unload models (--management-token-file)."
            )
        if mode == "none" and tokens is not None:
            raise InvalidInputError(
                'Received `management_tokens` without model_control="explicit" '
                "(--model-control explicit). Add it, or remove the tokens."
            )
        self._tokens = None if tokens is None else TokenCheck(tokens)

    @property
    def is_on(self) -> bool:
        """True if some clients may load and unload models."""
        return self._tokens is not None

    def check(self, authorization: str | None) -> None:
        """Raises `NotPermittedError` unless model control is on, and a header has its token.

        `authorization` is the header `Authorization`, or gRPC's metadata of this name.
        """
        if self._tokens is None:
            raise NotPermittedError(
                "This server does not load or unload models for clients. Start it with "
                "--model-control explicit and --management-token-file FILE to allow that."
            )
        if not self._tokens.allows(authorization):
            raise NotPermittedError(
                "Loading and unloading models needs a management token. Send one of those in "
                "--management-token-file as authorization: Bearer TOKEN."
            )
