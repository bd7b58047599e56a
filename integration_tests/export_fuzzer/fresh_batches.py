"""Batches of sizes and lengths that an export neither was traced by nor verified at."""

from collections.abc import Iterator

import numpy as np

from integration_tests.export_fuzzer.random_models import VOCABULARY
from keras_deepseek.artifacts.signature import Array, Signature

_SIZES = ((2, (7,)), (5, (21,)), (1, (1,)), (7, (34,)), (2, (5, 11, 18)))
"""The rows of a batch, and the lengths that its free axes have in turn."""


def fresh_batches(signature: Signature, seed: int) -> Iterator[dict[str, Array]]:
    """Yields batches by input name, whose tokens are padded in each second row.

    Args:
        signature: `Signature`.
        seed: integer. Other numbers are drawn for another.
    """
    random = np.random.default_rng(10_000 + seed)
    for num_rows, lengths in _SIZES:
        free = 0
        batch = {}
        for spec in signature.inputs:
            shape = [num_rows]
            for size in spec.shape[1:]:
                shape.append(size if size is not None else lengths[free % len(lengths)])
                free += size is None
            batch[spec.name] = _draw(random, spec.dtype, tuple(shape))
        yield batch


def _draw(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if np.dtype(dtype).kind == "f":
        return random.normal(0.0, 1.5, shape).astype(dtype)
    tokens = random.integers(1, VOCABULARY, shape).astype(dtype)
    for row in tokens[::2]:
        row[random.integers(1, len(row) + 1) :] = 0
    return tokens
