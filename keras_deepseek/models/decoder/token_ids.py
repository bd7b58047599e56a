"""The tokens that a text begins and ends with, and is padded by, in the configs of all families."""

from collections.abc import Iterable
from typing import Any

from keras_deepseek.checks import check_integer


def check_token_ids(config: Any) -> None:
    """Says where a config has a token that is none; several that end a text become a tuple.

    Args:
        config: Dataclass with `start_token_id`, `end_token_id` and `pad_token_id`.

    Raises:
        InvalidInputError: One is neither an integer from 0 on nor `None`.
    """
    for name in ("start_token_id", "pad_token_id"):
        check_integer(name, getattr(config, name), least=0, default=0)
    ends = config.end_token_id
    if not isinstance(ends, Iterable) or isinstance(ends, str | bytes):
        check_integer("end_token_id", ends, least=0, default=0)
        return
    tokens = tuple(check_integer("end_token_id", token, least=0) for token in ends)
    object.__setattr__(config, "end_token_id", tokens)  # JSON has lists.
