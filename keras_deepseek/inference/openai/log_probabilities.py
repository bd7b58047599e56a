"""Log-probabilities in both forms of OpenAI's API: that of chats, and that of completions."""

from collections.abc import Iterable
from typing import Any

from keras_deepseek.inference.text.text_answer import TokenDetail

_LEAST = -9999.0
"""In the place of minus infinity, which JSON does not have."""


def format_chat_details(details: Iterable[TokenDetail]) -> dict[str, Any]:
    """Returns the `logprobs` of a chat's choice."""
    return {
        "content": [
            {**_entry(detail), "top_logprobs": [_entry(other) for other in detail.alternatives]}
            for detail in details
        ],
        "refusal": None,
    }


class CompletionDetails:
    """Writes the `logprobs` of a completion's choice, whose chunks count characters on."""

    def __init__(self) -> None:
        self._offset = 0

    def format(self, details: Iterable[TokenDetail]) -> dict[str, Any]:
        """Returns the `logprobs` of the next tokens.

        The alternatives of a token have its own number under its text, whether or not it is one of
        the most likely: clients compare the largest of them with it.
        """
        form: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for detail in details:
            value = _value_of(detail)
            form["tokens"].append(detail.text)
            form["token_logprobs"].append(value)
            form["top_logprobs"].append(None if value is None else _alternatives(detail, value))
            form["text_offset"].append(self._offset)
            self._offset += len(detail.text)
        return form


def _alternatives(detail: TokenDetail, value: float) -> dict[str, float]:
    values: dict[str, float] = {}
    for other in detail.alternatives:
        other_value = value if other.token_id == detail.token_id else _value_of(other)
        if other_value is not None:
            values.setdefault(other.text, other_value)  # Two may have one text: the better one.
    values[detail.text] = max(value, values.get(detail.text, value))
    return values


def _entry(detail: TokenDetail) -> dict[str, Any]:
    data = list(detail.text.encode("utf-8", "replace"))
    return {"token": detail.text, "logprob": _value_of(detail), "bytes": data}


def _value_of(detail: TokenDetail) -> float | None:
    return None if detail.log_probability is None else max(detail.log_probability, _LEAST)
