"""The batches for verifying an export, and the rows for int8 calibration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from keras_deepseek.artifacts.export_arguments import bind_rows, check_calibration
from keras_deepseek.artifacts.rows_file import cut_batches
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.samples.random_batches import (
    ROUND_LENGTHS,
    hold_out,
    make_extreme_samples,
    make_optional_samples,
    make_samples,
)

Batches = list[dict[str, Array]]


@dataclass(frozen=True)
class VerificationData:
    """The input batches of an export. `ExportJob` explains the kinds of samples."""

    samples: Batches
    alternative_samples: list[Batches] = field(default_factory=list)
    optional_samples: Batches = field(default_factory=list)
    extreme_samples: Batches = field(default_factory=list)
    calibration: Batches | None = None
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
