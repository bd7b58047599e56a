"""The batches that an export is verified on, and those that int8 is made for."""

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
    make_further_samples,
    make_samples,
    make_wide_samples,
)

Batches = list[dict[str, Array]]


@dataclass(frozen=True)
class VerificationData:
    """The batches of an export; `ExportJob` says what the kinds of samples are for.

    Args:
        samples: For each batch its arrays by input name.
        other_samples: Lists like `samples`. Defaults to none.
        further_samples: Batches as well. Defaults to none.
        wide_samples: Batches of large numbers. Defaults to none.
        calibration: Batches that int8 is made for. Defaults to `None`.
        are_random: boolean. Whether the samples were drawn. Defaults to `False`.
    """

    samples: Batches
    other_samples: list[Batches] = field(default_factory=list)
    further_samples: Batches = field(default_factory=list)
    wide_samples: Batches = field(default_factory=list)
    calibration: Batches | None = None
    are_random: bool = False


def choose_data(
    named: NamedModel, samples: Sequence[Any] | None, calibration: Any
) -> VerificationData:
    """Returns the batches for a model, drawn where none are given.

    Args:
        named: `NamedModel`.
        samples: list of inputs, each as `model.predict` takes them. `None`: a part of
            `calibration`, or random ones.
        calibration: inputs as `model.predict` takes them, or `None`.

    Raises:
        InvalidInputError: What is given does not fit the model, or nothing can be seen by it.
    """
    signature = named.signature
    rows = held_out = ranges = None
    if calibration is not None:
        rows = check_calibration(bind_rows("calibration", signature, calibration))
        if samples is None:  # Else no row is kept from the ranges to be looked at by nobody.
            rows, held_out = hold_out(rows)
        ranges = cut_batches(rows)
    if samples is not None:
        given = [
            bind_rows(f"samples[{index}]", signature, sample)
            for index, sample in enumerate(samples)
        ]
        return VerificationData(given, calibration=ranges)
    if held_out is not None:
        return VerificationData(cut_batches(held_out), calibration=ranges)
    model = named.model
    return VerificationData(
        make_samples(model, signature),
        other_samples=[make_samples(model, signature, ROUND_LENGTHS)],
        further_samples=make_further_samples(model, signature),
        wide_samples=make_wide_samples(model, signature),
        are_random=True,
    )
