"""A check of `max_length` and `max_new_tokens` against the prompts and the model's context."""

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError


def settle_budgets(
    prompt_lengths: list[int],
    context: int | None,
    max_length: int | None,
    max_new_tokens: int | None,
) -> list[int]:
    """Checks the length limits, and returns the number of new tokens that each row may get.

    `context` is the number of tokens that the model takes. `max_length` includes the prompt.
    """
    longest = max(prompt_lengths)
    if context is not None and longest >= context:
        raise InvalidInputError(
            f"A prompt has {longest} tokens, and the model's context is {context}: there is no "
            "room for an answer. Shorten the prompt."
        )
    if max_length is not None and longest >= check_integer("max_length", max_length):
        raise InvalidInputError(
            f"`max_length` is {max_length}, prompt included, and a prompt has {longest} tokens. "
            "Raise it, or give `max_new_tokens`."
        )
    if max_new_tokens is not None:
        check_integer("max_new_tokens", max_new_tokens)
    if context is None and max_length is None and max_new_tokens is None:
        raise InvalidInputError(
            "The number of tokens has no limit: give `max_new_tokens` or `max_length`."
        )
    budgets = []
    for length in prompt_lengths:
        bounds = [total - length for total in (context, max_length) if total is not None]
        budgets.append(min(bounds + ([max_new_tokens] if max_new_tokens is not None else [])))
    return budgets
