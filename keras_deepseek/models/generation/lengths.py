"""The few sequence lengths to compile for, to which prompts and caches are padded."""

_STEPS_AN_OCTAVE = 4
_LEAST = 16


def round_up(length: int) -> int:
    """Rounds a number of tokens up to a length that steps are compiled for.

    These are the multiples of 16 up to 64, and then four lengths for each doubling: at most a
    quarter of a prompt is padding.
    """
    doubling = max(length - 1, 1).bit_length() - 1
    step = max(_LEAST, (1 << doubling) // _STEPS_AN_OCTAVE)
    return -(-length // step) * step


def total_slots(needed: int, context: int | None) -> int:
    """Returns the largest number of slots that a cache will need, rounded to a compiled length.

    `needed` counts the prompts and all tokens that may come. The result is not larger than
    `context`, the longest row that the model takes, unless `needed` is.
    """
    rounded = round_up(needed)
    return rounded if context is None or needed > context else min(rounded, context)


def first_capacity(prompt_length: int, needed: int) -> int:
    """Returns the number of slots that the cache starts with.

    It is small because attention visits empty slots too. `needed` is the largest number of slots.
    """
    return min(needed, round_up(prompt_length + max(128, prompt_length // 4)))


def next_capacity(capacity: int, needed: int) -> int:
    """Returns the number of slots, at most `needed`, of the cache that replaces a full cache."""
    return min(needed, round_up(capacity + max(128, capacity // 4)))
