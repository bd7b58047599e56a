"""The input batches on which an artifact is verified: the user's, or random ones."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.export_arguments import bind_rows, check_calibration
from keras_deepseek.artifacts.rows_file import cut_batches
from keras_deepseek.artifacts.signature import Array, Batch, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import batch_shapes, count_free_lengths, draw_batch
from keras_deepseek.backend.keras_private.sample_values import longest_sequence

_NUM_ROWS = 4
_LEAST_TO_HOLD_OUT, _EACH_HELD_OUT = 20, 5
LENGTHS = (13,)
"""The length of all free axes in each batch."""
ROUND_LENGTHS = (64, 96)
"""Lengths for models that take only round ones, as those that halve an image several times."""
_SHORT, _OTHER, _LONG = 5, 9, 40
"""Lengths of small and large batches."""
_EXTREME_SEED = 2
_MOST_ROWS, _LARGEST_ROW = 20, 2**18
"""The rows of the largest batch, and the largest number of values in a row of it."""
_UNEQUAL_LENGTHS = (9, 13, 16, 6)
"""The lengths of the free axes, in turn, so that a swap of two axes shows."""


def make_samples(
    model: keras.Model, signature: Signature, lengths: tuple[int, ...] = LENGTHS
) -> list[Batch]:
    """Returns a random input batch for each length, of another number of rows, that fit a model.

    Floats are drawn from a standard normal distribution. If the input first goes through a
    `Normalization` or `Rescaling`, they are drawn from the distribution that this layer turns into
    a standard one. Integers are drawn below the vocabulary of the embeddings that the input
    reaches; in the first row they end in zeros, as padding does. For a layer that knows only some
    numbers, as `IntegerLookup`, they are drawn from these and a few unknown ones. `lengths` has the
    length of all free axes in each batch.
    """
    rows = range(_NUM_ROWS + 1 - len(lengths), _NUM_ROWS + 1)
    return [
        _make_batch(model, signature, num_rows, itertools.repeat(length))
        for num_rows, length in zip(rows, _limit_lengths(model, lengths), strict=True)
    ]


def make_accepted_samples(model: NamedModel) -> list[Batch]:
    """Returns random batches on which a model runs without an error; `[]` if there are none."""
    infer = backend.current().inference.plain_inference(model)
    for lengths in (LENGTHS, ROUND_LENGTHS):
        samples = make_samples(model.model, model.signature, lengths)
        with contextlib.suppress(Exception):  # Of any backend.
            for sample in samples if count_free_lengths(model.signature) else ():
                infer(sample)
            return samples
    return []


def make_optional_samples(model: keras.Model, signature: Signature) -> list[list[Batch]]:
    """Returns lists of random batches, of each of which the first that the model takes is used.

    One list is of small batches and one of large ones: they reveal a choice by size that was fixed
    when the model was traced. In a third one, the free axes differ in length.
    """
    short, other, long = _limit_lengths(model, (_SHORT, _OTHER, _LONG))
    sizes = [[(1, 1), (1, short)], [(_MOST_ROWS, long), (_NUM_ROWS - 1, other)]]
    row = (math.prod(size or long for size in spec.shape[1:]) for spec in signature.inputs)
    if max(row, default=0) > _LARGEST_ROW:
        del sizes[1][0]
    if not count_free_lengths(signature):
        sizes = [choices[:1] for choices in sizes]
    batches = [
        [_make_batch(model, signature, rows, itertools.repeat(length)) for rows, length in choices]
        for choices in sizes
    ]
    if count_free_lengths(signature) > 1:
        unequal = itertools.cycle(_limit_lengths(model, _UNEQUAL_LENGTHS))
        batches.append([_make_batch(model, signature, _NUM_ROWS - 1, unequal)])
    return batches


def make_extreme_samples(model: keras.Model, signature: Signature) -> list[Batch]:
    """Returns a random batch of extreme floats; `[]` for a model without float inputs.

    An unstable formula fails on them. A stable one may be less precise on them than on others, too.
    It has the shapes of the last sample, for which frameworks have compiled the model already.
    """
    if all(np.dtype(spec.dtype).kind != "f" for spec in signature.inputs):
        return []
    last = make_samples(model, signature)[-1]
    shapes = {name: array.shape for name, array in last.items()}
    extreme = draw_batch(model, signature, shapes, seed=_EXTREME_SEED)
    return [{name: _make_extreme(array) for name, array in extreme.items()}]


def _limit_lengths(model: keras.Model, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Reduces sequence lengths to the positions that a model has, if possible in proportion."""
    longest = longest_sequence(model)
    if longest is None or longest >= max(lengths):
        return lengths
    return tuple(max(1, longest * length // max(lengths)) for length in lengths)


def _make_extreme(array: Array) -> Array:
    """Scales the floats of the first row up, and moves those of other rows far from zero."""
    if array.dtype.kind == "f":
        far = 50 * array.std()
        array[:1] *= 20
        array[1:] += far
    return array


def hold_out(arrays: Batch) -> tuple[Batch, Batch]:
    """Splits rows in two: every fifth one for verification, the others for calibration.

    Fewer than 20 rows serve for both.
    """
    num_rows = len(next(iter(arrays.values())))
    if num_rows < _LEAST_TO_HOLD_OUT:
        return arrays, arrays
    is_held_out = np.arange(num_rows) % _EACH_HELD_OUT == _EACH_HELD_OUT - 1
    return (
        {name: array[~is_held_out] for name, array in arrays.items()},
        {name: array[is_held_out] for name, array in arrays.items()},
    )


def _make_batch(
    model: keras.Model, signature: Signature, batch_size: int, lengths: Iterator[int]
) -> Batch:
    shapes = batch_shapes(signature, batch_size, lengths)
    # The seed makes batches differ even if their size is fixed.
    return draw_batch(model, signature, shapes, seed=batch_size)


@dataclass(frozen=True)
class VerificationData:
    """The input batches of an export. `ExportJob` explains the kinds of samples."""

    samples: list[Batch]
    alternative_samples: list[list[Batch]] = field(default_factory=list)
    optional_samples: list[list[Batch]] = field(default_factory=list)
    extreme_samples: list[Batch] = field(default_factory=list)
    calibration: list[Batch] | None = None
    has_random_samples: bool = False


def choose_data(
    named: NamedModel, samples: Sequence[Any] | None, calibration: Any
) -> VerificationData:
    """Checks the user's samples and calibration rows, and returns the batches to use.

    Without samples, it takes a part of `calibration`, or random batches.
    """
    signature = named.signature
    rows = held_out = ranges = None
    if calibration is not None:
        rows = check_calibration(bind_rows("calibration", signature, calibration))
        if samples is None:  # With samples, all rows serve for the ranges.
            rows, held_out = hold_out(rows)
        ranges = cut_batches(rows)
    if samples is not None:
        batches = [
            bind_rows(f"samples[{index}]", signature, sample)
            for index, sample in enumerate(samples)
        ]
        return VerificationData(batches, calibration=ranges)
    if held_out is not None:
        return VerificationData(cut_batches(held_out), calibration=ranges)
    model = named.model
    return VerificationData(
        make_samples(model, signature),
        alternative_samples=[make_samples(model, signature, ROUND_LENGTHS)],
        optional_samples=make_optional_samples(model, signature),
        extreme_samples=make_extreme_samples(model, signature),
        has_random_samples=True,
    )
