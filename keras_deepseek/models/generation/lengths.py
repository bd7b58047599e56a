"""The lengths that are compiled for: a few, so that prompts and caches of all sizes share them."""

_STEPS_AN_OCTAVE = 4
_LEAST = 16


def round_up(length: int) -> int:
    """Returns the next length of those that are compiled for.

    They are the multiples of 16 up to 64, and then four to each doubling: at most a quarter of a
    prompt is padding.

    Args:
        length: integer. A number of tokens.
    """
    doubling = max(length - 1, 1).bit_length() - 1
    step = max(_LEAST, (1 << doubling) // _STEPS_AN_OCTAVE)
    return -(-length // step) * step


def total_slots(needed: int, context: int | None) -> int:
    """Returns the slots that there are in the end: a few numbers, whatever is asked for.

    Args:
        needed: integer. The slots of the prompts and of all tokens that may come.
        context: integer or `None`. The slots of the longest row that the model takes, which are not
            passed where `needed` does not.
    """
    rounded = round_up(needed)
    return rounded if context is None or needed > context else min(rounded, context)


def first_capacity(prompt_length: int, needed: int) -> int:
    """Returns the slots that a cache begins with: each token looks at all of them, empty or not.

    Args:
        prompt_length: integer. The slots that the prompts take.
        needed: integer. The slots that there may be in the end.
    """
    return min(needed, round_up(prompt_length + max(128, prompt_length // 4)))


def next_capacity(capacity: int, needed: int) -> int:
    """Returns the slots that a cache that is full is given.

    Args:
        capacity: integer. Those that it has.
        needed: integer. Those that there may be in the end.
    """
    return min(needed, round_up(capacity + max(128, capacity // 4)))
