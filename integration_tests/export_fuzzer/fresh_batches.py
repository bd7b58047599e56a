"""Batches of sizes and lengths that an export neither was traced by nor verified at."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from integration_tests.export_fuzzer.random_models import VOCABULARY
from integration_tests.second_look import Batch, draw_batches
from keras_deepseek.artifacts.signature import Signature, TensorSpec

_SIZES = ((2, (7,)), (5, (21,)), (1, (1,)), (7, (34,)), (2, (5, 11, 18)))
"""The rows of a batch, and the lengths that its free axes have in turn."""


def fresh_batches(signature: Signature, seed: int) -> Iterator[Batch]:
    """Yields batches by input name, whose tokens are padded in each second row.

    Args:
        signature: `Signature`.
        seed: integer. Other numbers are drawn for another.
    """
    random = np.random.default_rng(10_000 + seed)

    def draw(spec: TensorSpec, shape: list[int]) -> Any:
        if np.dtype(spec.dtype).kind == "f":
            return random.normal(0.0, 1.5, shape).astype(spec.dtype)
        tokens = random.integers(1, VOCABULARY, shape).astype(spec.dtype)
        for row in tokens[::2]:
            row[random.integers(1, len(row) + 1) :] = 0
        return tokens

    return draw_batches(signature, _SIZES, draw)
