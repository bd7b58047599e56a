"""A check of a config's start, end and padding token ids."""

from collections.abc import Iterable
from typing import Any

from keras_deepseek.checks import check_integer


def check_token_ids(config: Any) -> None:
    """Checks a config's start, end and padding token ids; turns a list of end ids into a tuple."""
    for name in ("start_token_id", "pad_token_id"):
        check_integer(name, getattr(config, name), minimum=0, default=0)
    ends = config.end_token_id
    if not isinstance(ends, Iterable) or isinstance(ends, str | bytes):
        check_integer("end_token_id", ends, minimum=0, default=0)
        return
    tokens = tuple(check_integer("end_token_id", token, minimum=0) for token in ends)
    object.__setattr__(config, "end_token_id", tokens)  # JSON returns lists.
