"""Replacement of a random batch at which rounding decides the model's outputs (a tie).

At a tie, as of a `floor` or an `argmax`, the last digit decides. A right artifact that rounds
otherwise then gives something else. One such batch is replaced by another. If there are two, or if
the model's own answer stays the same, the artifact is wrong.
"""

from collections.abc import Callable

import numpy as np

from keras_deepseek.artifacts.compare_outputs import differing_places
from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import draw_batch

_TRIES = 8
"""The number of times that the last digits of a batch's floats are moved."""
_SEED = 1_000


def resample_argmax_tie(
    model: NamedModel,
    samples: list[dict[str, Array]],
    infer: InferenceFunction,
    run: Callable[[list[dict[str, Array]]], list[dict[str, Array]] | None],
    expected: list[dict[str, Array]],
    received: list[dict[str, Array]],
    precisions: dict[str, str | None],
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]] | None:
    """Replaces the one random batch at which rounding decides the model's outputs (a tie).

    Returns `expected` and `received` with the outputs for the new batch. `None` if the artifact
    differs on no batch or on several, or if a difference is not the model's own. The model is run
    on that batch with its floats moved by one unit in the last place, up or down. The batch counts
    as a tie if the model then changes each value in which the artifact differs. `received` may go
    on with outputs for further batches.
    """
    masks_by_batch = [
        differing_places(reference, outputs, precisions)
        for reference, outputs in zip(expected, received[: len(expected)], strict=True)
    ]
    differing = [
        index
        for index, masks in enumerate(masks_by_batch)
        if masks is None or any(mask.any() for mask in masks.values())
    ]
    if len(differing) != 1:
        return None
    (index,) = differing
    sample, masks = samples[index], masks_by_batch[index]
    if masks is None or not _all_change(infer, sample, expected[index], masks, precisions):
        return None
    shapes = {name: array.shape for name, array in sample.items()}
    other = draw_batch(model.model, model.signature, shapes, seed=_SEED + index)
    outputs = run([other])
    if outputs is None:
        return None
    expected, received = list(expected), list(received)
    expected[index], received[index] = infer(other), outputs[0]
    return expected, received


def _all_change(
    infer: InferenceFunction,
    sample: dict[str, Array],
    outputs: dict[str, Array],
    masks: dict[str, Array],
    precisions: dict[str, str | None],
) -> bool:
    """Returns True if rounding-size changes of a batch change every one of the marked outputs."""
    generator = np.random.default_rng(0)
    unexplained = dict(masks)
    for _ in range(_TRIES):
        moved = differing_places(outputs, infer(_nudge(generator, sample)), precisions)
        if moved is None:
            return False
        unexplained = {name: unexplained[name] & ~moved[name] for name in unexplained}
    return not any(mask.any() for mask in unexplained.values())


def _nudge(generator: np.random.Generator, sample: dict[str, Array]) -> dict[str, Array]:
    """Moves the floats of a batch by one unit in the last place, up or down.

    Repeated values and whole numbers stay: they may have a meaning, as padding has, and a tie among
    them is not due to rounding.
    """
    nudged = {}
    for name, array in sample.items():
        nudged[name] = array
        if array.dtype.kind == "f":
            _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
            moves = (counts[inverse].reshape(array.shape) == 1) & (array != np.round(array))
            ends = generator.choice(np.array([-np.inf, np.inf], array.dtype), array.shape)
            nudged[name] = np.where(moves, np.nextafter(array, ends), array)
    return nudged
