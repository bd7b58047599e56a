"""Batches on which the model itself can't decide: where a choice hangs on the last digit.

At a tie, as of a `floor` or an `argmax`, a right artifact that rounds otherwise gives something
else. Another batch is drawn in the place of one such batch; of two, or where the model's own answer
stays the same, the artifact is wrong.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.deploy.export_job import ExportJob, RouteResult
from keras_deepseek.deploy.routes.route import Route
from keras_deepseek.deploy.samples.random_batches import draw_batch
from keras_deepseek.deploy.verification.comparison import differing_places

_TRIES = 8
"""How often the last digits of a batch's floats are moved."""
_SEED = 1_000


def redraw_tie(
    job: ExportJob,
    infer: InferenceFunction,
    expected: list[dict[str, Array]],
    result: RouteResult,
    precisions: dict[str, str | None],
    route: Route,
    folder: Path,
) -> tuple[list[dict[str, Array]], RouteResult] | None:
    """Puts another batch in the place of the one at which the model has a tie.

    The model is run on that batch with its floats moved by one unit in the last place, up or down.
    Each value of the artifact's that differs has to be one that the model then changes itself.

    Args:
        job: Whose samples were run, drawn at random.
        infer: The model.
        expected: What it gives for them.
        result: What the artifact gives for them, and behind them for those of large numbers.
        precisions: dict. What each output is computed in.
        route: How the artifact is run.
        folder: Where it stands.

    Returns:
        What both give for the samples with the other batch among them; `None` where the artifact
        differs on no batch or on several, or where a difference is not the model's own.
    """
    received = list(result.outputs or ())
    places = [
        differing_places(left, right, precisions)
        for left, right in zip(expected, received[: len(expected)], strict=True)
    ]
    differing = [
        index
        for index, found in enumerate(places)
        if found is None or any(each.any() for each in found.values())
    ]
    if len(differing) != 1:
        return None
    (index,) = differing
    sample, found = job.samples[index], places[index]
    if found is None or not _moves(infer, sample, expected[index], found, precisions):
        return None
    shapes = {name: array.shape for name, array in sample.items()}
    other = draw_batch(job.model.model, job.model.signature, shapes, seed=_SEED + index)
    ran = route.run(replace(job, samples=[other], wide_samples=()), folder)
    if ran.outputs is None:
        return None
    expected, received = list(expected), list(received)
    expected[index], received[index] = infer(other), ran.outputs[0]
    return expected, replace(result, outputs=received)


def _moves(
    infer: InferenceFunction,
    sample: dict[str, Array],
    outputs: dict[str, Array],
    places: dict[str, Array],
    precisions: dict[str, str | None],
) -> bool:
    """Returns whether a model changes its outputs at all of some places by the last digits."""
    generator = np.random.default_rng(0)
    left = dict(places)
    for _ in range(_TRIES):
        moved = differing_places(outputs, infer(_nudge(generator, sample)), precisions)
        if moved is None:
            return False
        left = {name: left[name] & ~moved[name] for name in left}
    return not any(each.any() for each in left.values())


def _nudge(generator: np.random.Generator, sample: dict[str, Array]) -> dict[str, Array]:
    """Moves the floats of a batch by their last digit.

    What stands there several times, and whole numbers, stay: they may be said to mean something, as
    that a place is padding, and a tie among such is no matter of rounding.
    """
    nudged = {}
    for name, array in sample.items():
        nudged[name] = array
        if array.dtype.kind == "f":
            _, places, counts = np.unique(array, return_inverse=True, return_counts=True)
            moves = (counts[places].reshape(array.shape) == 1) & (array != np.round(array))
            ends = generator.choice(np.array([-np.inf, np.inf], array.dtype), array.shape)
            nudged[name] = np.where(moves, np.nextafter(array, ends), array)
    return nudged
