"""Random masking of tokens, as for BERT."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError


def mask_tokens(
    token_ids: Any,
    *,
    mask_token_id: int,
    vocabulary_size: int,
    special_token_ids: Iterable[int] = (0,),
    share: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    ignore_class: int = -100,
    seed: Any = 0,
) -> tuple[Array, Array]:
    """Returns tokens of which some are masked, and the original tokens as targets.

    In each row, `share` of the tokens that are not special are chosen, rounded, and at least one.
    Each chosen token becomes the mask with probability `mask_share`, a random token with
    probability `random_share`, and else stays the same. So a model has to read every token.
    `MaskedTokens` makes batches of the result, and `gather_masked_positions` selects the masked
    positions.

    Args:
        token_ids: Integer array of shape `(num_rows, length)`.
        mask_token_id: integer. The token that replaces masked ones.
        vocabulary_size: integer. Random tokens are below it and not special.
        special_token_ids: integers. Tokens that are never chosen and never drawn, such as padding
            and those that begin and end sequences. `mask_token_id` is always one of them. Defaults
            to `(0,)`.
        share: float. The share of tokens that are chosen. Defaults to `0.15`.
        mask_share: float. The probability that a chosen token becomes the mask. Defaults to `0.8`.
        random_share: float. The probability that a chosen token becomes a random one. Defaults to
            `0.1`.
        ignore_class: integer. The target of tokens that were not chosen. Defaults to `-100`.
        seed: integer, sequence of integers or `numpy.random.Generator`. The source of random
            numbers. Defaults to `0`.

    Returns:
        A pair of int32 arrays of the shape of `token_ids`: the masked tokens, and the targets.

    Raises:
        InvalidInputError: Tokens have another shape or dtype or are outside the vocabulary, a share
            is out of range, or every token is special.

    Example:

    >>> from keras_deepseek.training import mask_tokens
    >>> tokens = [[2, 11, 12, 13, 14, 3, 0]]
    >>> masked, targets = mask_tokens(
    ...     tokens, mask_token_id=4, vocabulary_size=20, special_token_ids=(0, 2, 3), share=0.5
    ... )
    >>> int((targets >= 0).sum()), masked[0, [0, 5, 6]].tolist()
    (2, [2, 3, 0])
    """
    rows = _read_tokens(token_ids, vocabulary_size)
    check_number("share", share, above=0, below=1)
    check_number("mask_share", mask_share, minimum=0)
    check_number("random_share", random_share, minimum=0)
    if mask_share + random_share > 1:
        raise InvalidInputError(
            "`mask_share` and `random_share` must add up to at most 1; received "
            f"{mask_share} and {random_share}."
        )
    special = np.unique([mask_token_id, *special_token_ids])
    ordinary = np.setdiff1d(np.arange(vocabulary_size), special)
    if not len(ordinary):
        raise InvalidInputError(f"All {vocabulary_size} tokens are special: none can be masked.")
    rng = np.random.default_rng(seed)
    is_chosen = _choose(~np.isin(rows, special), share, rng)
    draws = rng.random(rows.shape)  # From 0 to 1, one for each token.
    random_tokens = ordinary[rng.integers(0, len(ordinary), rows.shape)]
    changed = np.where(draws < mask_share + random_share, random_tokens, rows)
    changed = np.where(draws < mask_share, mask_token_id, changed)
    return (
        np.where(is_chosen, changed, rows).astype("int32"),
        np.where(is_chosen, rows, ignore_class).astype("int32"),
    )


def count_masked(num_tokens: Any, share: float = 0.15) -> Any:
    """Returns how many of `num_tokens` tokens are chosen for masking."""
    counts = np.maximum(1, np.round(np.multiply(num_tokens, share)))
    return np.minimum(counts, num_tokens).astype(int)


def _choose(may_be: Array, share: float, rng: np.random.Generator) -> Array:
    """Chooses tokens for masking at random; returns a boolean array, true for chosen ones."""
    # A random order of each row. Tokens that may not be chosen are last: 2 is above each number.
    order = np.argsort(np.where(may_be, rng.random(may_be.shape), 2), axis=1)
    ranks = np.argsort(order, axis=1)  # Inverts the order: the place of each token in it.
    counts = count_masked(may_be.sum(axis=1), share)
    chosen: Array = ranks < counts[:, None]
    return chosen


def _read_tokens(token_ids: Any, vocabulary_size: int) -> Array:
    rows = np.asarray(token_ids)
    if rows.ndim != 2 or rows.dtype.kind not in "iu":  # noqa: PLR2004
        raise InvalidInputError(
            "`token_ids` must be integers of shape (num_rows, length); received "
            f"{rows.dtype} of shape {rows.shape}."
        )
    check_integer("vocabulary_size", vocabulary_size)
    if rows.size and not 0 <= rows.min() <= rows.max() < vocabulary_size:
        raise InvalidInputError(
            f"`token_ids` must be at least 0 and below vocabulary_size={vocabulary_size}; received "
            f"{rows.min()} to {rows.max()}."
        )
    return rows
