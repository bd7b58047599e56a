"""How many tokens each row may get, settled before anything runs."""

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError


def settle_budgets(
    prompt_lengths: list[int],
    context: int | None,
    max_length: int | None,
    max_new_tokens: int | None,
) -> list[int]:
    """Returns how many tokens each row gets at most.

    Args:
        prompt_lengths: The tokens of each prompt.
        context: integer. The tokens that the model takes, or `None` where it has no bound.
        max_length: integer or `None`. The tokens of a row in the end, prompt included.
        max_new_tokens: integer or `None`. The tokens that a row is given.

    Raises:
        InvalidInputError: A prompt leaves no room, or nothing bounds the tokens.
    """
    longest = max(prompt_lengths)
    if context is not None and longest >= context:
        raise InvalidInputError(
            f"A prompt has {longest} tokens, and the model's context is {context}, of which the "
            "answer needs at least one. Shorten the prompt."
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
            "Nothing says how many tokens to generate: give `max_new_tokens` or `max_length`."
        )
    budgets = []
    for length in prompt_lengths:
        bounds = [total - length for total in (context, max_length) if total is not None]
        budgets.append(min(bounds + ([max_new_tokens] if max_new_tokens is not None else [])))
    return budgets
