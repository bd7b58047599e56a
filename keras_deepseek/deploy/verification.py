"""Verification of an artifact: its outputs must equal the model's on the same batches."""

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.bundle import ALIKE, Verification
from keras_deepseek.artifacts.compare_outputs import agreements, compare_outputs, differing_places
from keras_deepseek.artifacts.signature import Array, Batch, InferenceFunction
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import draw_batch
from keras_deepseek.backend.keras_private.functional_graphs import layers_by_output
from keras_deepseek.backend.keras_private.quantization import quantizes_inputs
from keras_deepseek.backend.keras_private.unlimited_loops import unlimited_loops
from keras_deepseek.deploy.export_job import ExportJob, RouteResult
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.errors import ExportError, InvalidInputError

_EXTREME_PRECISION = "float16"
"""The tolerance for batches of large numbers, whose rounding errors grow from layer to layer."""
_NONFINITE = {"NaN": (np.nan,), "infinity": (np.inf, -np.inf)}
_HALF_PRECISIONS = ("bfloat16", "float16")
"""The half precisions that a layer may compute in, the least precise one first."""
_INT8_INPUT_PRECISION = "bfloat16"
"""The precision that a layer with int8 inputs counts as: bfloat16 has as many binary digits."""

Run = Callable[[list[Batch]], list[Batch] | None]
"""A function that runs an artifact on batches; it returns `None` if it can't be run here."""

_TRIES = 8
"""The number of times that the last digits of a batch's floats are moved."""
_SEED = 1_000
_LARGEST_TRACED = 2**16
"""The most numbers in the inputs of a batch at whose shapes a model was traced."""


class Expected(NamedTuple):
    """The outputs expected of an artifact: the model's, for samples and for extreme batches.

    `infer` returns those for another batch. A model that `loops_on_data` has a loop without a
    limit, which may never end for infinities.
    """

    usual: list[Batch]
    extreme: list[Batch]
    infer: InferenceFunction
    loops_on_data: bool


def compute_expected(job: ExportJob) -> tuple[ExportJob, Expected]:
    """Runs the model on the job's batches, and drops optional batches that it rejects.

    Raises an `InvalidInputError` if the model fails on the samples and on all alternatives to them.
    """
    infer = backend.current().inference.plain_inference(job.expected_model)
    with unlimited_loops(job.expected_model.model) as loops:
        samples, usual = _infer_first(infer, [job.samples, *job.alternative_samples])
    optional, of_optional = _infer_accepted(infer, job.optional_samples)
    extreme, of_extreme = _infer_accepted(infer, [[sample] for sample in job.extreme_samples])
    reduced = replace(
        job,
        samples=samples + optional,
        extreme_samples=extreme,
        optional_samples=(),
        alternative_samples=(),
    )
    extend = job.export_format.further_outputs
    usual, of_extreme = (
        [outputs | extend(outputs) for outputs in batches]
        for batches in (usual + of_optional, of_extreme)
    )

    def infer_all(sample: Batch) -> Batch:
        outputs = infer(sample)
        return outputs | extend(outputs)

    return reduced, Expected(usual, of_extreme, infer_all, bool(loops))


def expect_at(
    job: ExportJob, expected: Expected, shapes: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[ExportJob, Expected]:
    """Adds random batches of some shapes of the inputs, if the model takes them.

    They are those at which a model was traced that may choose by a size. Large ones are left out.
    """
    model, signature = job.expected_model.model, job.model.signature
    names = [spec.name for spec in signature.inputs]
    unique = dict.fromkeys(
        tuple(of_batch) for of_batch in shapes if sum(map(math.prod, of_batch)) <= _LARGEST_TRACED
    )
    lists = [
        [draw_batch(model, signature, dict(zip(names, of_batch, strict=True)))]
        for of_batch in unique
    ]
    batches, outputs = _infer_accepted(expected.infer, lists)
    job = replace(job, samples=[*job.samples, *batches])
    return job, expected._replace(usual=[*expected.usual, *outputs])


def _infer_accepted(
    infer: InferenceFunction, lists: Sequence[Sequence[Batch]]
) -> tuple[list[Batch], list[Batch]]:
    """Returns the first batch of each list that gives finite outputs, and these."""
    accepted, finite_outputs = [], []
    for samples in lists:
        for sample in samples:
            with contextlib.suppress(Exception):  # Any backend's error: it takes no such batch.
                outputs = infer(sample)
                if all(np.isfinite(array.astype("float64")).all() for array in outputs.values()):
                    accepted.append(sample)
                    finite_outputs.append(outputs)
                    break
    return accepted, finite_outputs


def _infer_first(
    infer: InferenceFunction, lists: list[list[Batch]]
) -> tuple[list[Batch], list[Batch]]:
    failures = []
    for samples in lists:
        try:
            return list(samples), [infer(sample) for sample in samples]
        except Exception as error:  # noqa: BLE001 - of any backend
            failures.append(error)
    shapes = {name: array.shape for name, array in lists[0][0].items()}
    raise InvalidInputError(
        f"The model itself fails on a batch that it is to be verified on, as one of {shapes}: "
        f"{failure_reason(failures[0])}. Pass samples=[...], batches that it takes."
    ) from failures[0]


def verify(expected: Expected, result: RouteResult, job: ExportJob) -> Verification:
    """Compares the outputs of an artifact with those of the model."""
    if result.outputs is None:
        return Verification("unverified", result.reason)
    if not (expected.usual or expected.extreme):
        return Verification("unverified", "there is no batch to compare on")
    precisions = _precisions(job, expected)
    num_usual = len(expected.usual)
    usual, of_extreme = result.outputs[:num_usual], result.outputs[num_usual:]
    try:
        comparison = compare_outputs(expected.usual, usual, precisions)
        extreme = compare_outputs(
            expected.extreme,
            of_extreme,
            {name: precision or _EXTREME_PRECISION for name, precision in precisions.items()},
            by_column=False,
        )
    except ExportError as error:
        return Verification("failed", str(error))
    agreement = {}
    if job.precision is not None:
        agreement = agreements(expected.usual + expected.extreme, result.outputs)
    if not comparison.any_finite:
        return Verification(
            "unverified", "the model gives no finite value, so nothing was compared"
        )
    if comparison.constant_outputs:
        names = ", ".join(map(repr, comparison.constant_outputs))
        return Verification(
            "unverified",
            f"output {names} hardly changes from row to row of the samples, so that an artifact "
            "that ignores its inputs would pass; pass samples=, batches of real use, several of a "
            "shape",
            num_samples=comparison.num_samples,
            largest_difference=comparison.largest_difference,
            agreement=agreement,
        )
    return Verification(
        "verified",
        num_samples=comparison.num_samples + extreme.num_samples,
        largest_difference=comparison.largest_difference,
        agreement=agreement,
        signatures=job.export_format.signatures,
    )


def verify_resampling_ties(
    expected: Expected, result: RouteResult, job: ExportJob, run: Run
) -> tuple[Verification, str]:
    """Verifies an artifact; if that fails, once more with another batch where the model has a tie.

    It also returns a note on the other batch for the report, or `""`.
    """
    verification = verify(expected, result, job)
    if verification.state != "failed" or not job.has_random_samples or job.precision is not None:
        return verification, ""
    precisions = _precisions(job, expected)
    with contextlib.suppress(Exception):  # An error of any backend: the artifact stays failed.
        redrawn = _resample_argmax_tie(
            job.expected_model,
            job.samples,
            expected.infer,
            run,
            expected.usual,
            list(result.outputs or ()),
            precisions,
        )
        if redrawn is not None:
            usual, outputs = redrawn
            result = replace(result, outputs=outputs)
            verification = verify(expected._replace(usual=usual), result, job)
            return verification, ", one batch drawn anew, at a tie of the model's"
    return verification, ""


def compare_nonfinite(
    verification: Verification, expected: Expected, job: ExportJob, folder: Path, run: Run
) -> Verification:
    """Notes in a verification how an artifact treats NaN and infinities in its inputs.

    A difference fails no export: kernels of runtimes differ in it, and so do Keras's backends. Each
    kind of value is put into one of the random batches, and compared if the model itself takes it.
    """
    if verification.state != "verified" or not job.has_random_samples or not job.samples:
        return verification
    if expected.loops_on_data:
        return verification
    precisions = {
        name: precision or _EXTREME_PRECISION
        for name, precision in _precisions(job, expected).items()
    }
    batches, references = [], {}
    sample = job.samples[0]
    for kind, values in _NONFINITE.items():
        batch = _spoil(sample, job, values)
        with contextlib.suppress(Exception), np.errstate(all="ignore"):  # Of any backend.
            references[kind] = expected.infer(batch)
            batches.append(batch)
    if not batches:
        return verification
    differences = _find_differences(references, batches, run, precisions)
    if differences and (operators := job.export_format.operators_losing_nan(folder)):
        differences.append(f"known of {', '.join(operators)}")
    return replace(verification, nonfinite="; ".join(differences) or ALIKE)


def _spoil(sample: Batch, job: ExportJob, values: tuple[float, ...]) -> Batch:
    """Returns a copy of a batch with special values, such as NaN, in its floating-point inputs.

    The first row gets a single one, a fifth of each further row gets the next of `values`. Floats
    that index a table stay. Returns `{}` if there are no others.
    """
    generator = np.random.default_rng(0)
    spoilt = {}
    for spec in job.model.signature.inputs:
        array = sample[spec.name]
        if array.dtype.kind == "f" and array.size and spec.vocabulary_size is None:
            rows = array.reshape(len(array), -1).copy()
            for index, row in enumerate(rows):
                number = max(1, row.size // 5) if index else 1
                columns = generator.choice(row.size, number, replace=False)
                row[columns] = values[index % len(values)]
            spoilt[spec.name] = rows.reshape(array.shape)
    return {**sample, **spoilt} if spoilt else {}


def _find_differences(
    references: dict[str, Batch],
    batches: list[Batch],
    run: Run,
    precisions: Mapping[str, str | None],
) -> list[str]:
    try:
        with np.errstate(all="ignore"):
            outputs = run(batches) or [{} for _ in batches]
    except Exception as error:  # noqa: BLE001 - of any runtime
        kinds = " or ".join(references)
        return [f"for {kinds} in its inputs, it fails: {failure_reason(error)}"]
    differences = []
    for (kind, reference), received in zip(references.items(), outputs, strict=True):
        differing = differing_places(reference, received, precisions)
        if differing is None:
            differences.append("its outputs have other names, shapes or dtypes")
        differences += [
            f"for {kind} in its inputs, "
            f"{_describe_difference(name, reference[name], received[name], mask)}"
            for name, mask in (differing or {}).items()
            if mask.any()
        ]
    return differences


def _describe_difference(name: str, expected: Array, received: Array, mask: Array) -> str:
    """Describes the first difference of an output. `mask` is true where there is one.

    A finite number in place of NaN or infinity comes before all others.
    """
    hidden = mask & ~np.isfinite(expected) & np.isfinite(received)
    first = tuple(np.argwhere(hidden if hidden.any() else mask)[0])
    return (
        f"output {name!r} gives {float(received[first]):.3g} where the model gives "
        f"{float(expected[first]):.3g} ({mask.sum()} of {mask.size} values)"
    )


def _precisions(job: ExportJob, expected: Expected) -> dict[str, str | None]:
    """Returns the compute precision of each output by name; `None` for that of its dtype."""
    names = (expected.usual or expected.extreme)[0].keys()
    if job.precision is not None:
        return dict.fromkeys(names, job.precision)
    layers = layers_by_output(job.expected_model)
    precision_by_output = {
        name: _lowest_half_precision(set(map(_precision, output_layers)))
        for name, output_layers in layers.items()
    }
    # A format's further outputs count as computed in the least precision of all outputs.
    least = _lowest_half_precision(precision_by_output.values())
    return {name: precision_by_output.get(name, least) for name in names}


def _precision(layer: keras.Layer) -> str:
    # Of a float that is rounded to int8, the last digit may decide to which number.
    return _INT8_INPUT_PRECISION if quantizes_inputs(layer) else layer.compute_dtype


def _lowest_half_precision(dtypes: Collection[str | None]) -> str | None:
    return next((precision for precision in _HALF_PRECISIONS if precision in dtypes), None)


def _resample_argmax_tie(
    model: NamedModel,
    samples: list[Batch],
    infer: InferenceFunction,
    run: Run,
    expected: list[Batch],
    received: list[Batch],
    precisions: dict[str, str | None],
) -> tuple[list[Batch], list[Batch]] | None:
    """Replaces the one random batch at which rounding decides the model's outputs (a tie).

    To find a tie, the model is run several times on the batch with floats moved by one unit in the
    last place. There is a tie if each value in which the artifact differs changes in some run.

    Returns `expected` and `received` with the outputs for the new batch. The result is `None` if
    the artifact differs on no batch or on several, or if there is no tie. `received` may go on with
    outputs for further batches.
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
    sample: Batch,
    outputs: Batch,
    masks: Batch,
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


def _nudge(generator: np.random.Generator, sample: Batch) -> Batch:
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
