"""From the routes to a format, the first whose artifact computes what the model computes."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.manifest import Verification
from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.keras_private.integer_products import integer_products
from keras_deepseek.backend.keras_private.output_layers import layers_by_output
from keras_deepseek.deploy.export_job import ExportJob, MadeArtifact, RouteResult
from keras_deepseek.deploy.failure_reason import DISK_IS_FULL, failure_reason
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.routes.route import (
    InChild,
    InProcess,
    Route,
    check_packages,
    find_routes,
)
from keras_deepseek.deploy.verification.comparison import agreements, compare
from keras_deepseek.deploy.verification.ties import redraw_tie
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)

_LEAST_ROOM = 2**13
"""Bytes. A runtime that could not write them may say so in words of its own."""
_OF_WIDE = "float16"
"""The precision whose tolerance large numbers have: what is lost of them grows on the way."""
_HALF_PRECISIONS = ("bfloat16", "float16")
"""What a layer may compute in, the least precise one first."""


class _Expected(NamedTuple):
    """What the model gives: for the samples, and for the batches of large numbers."""

    usual: list[dict[str, Array]]
    wide: list[dict[str, Array]]


def make_artifact(job: ExportJob, folder: Path, say: Callable[[str], None]) -> MadeArtifact:
    """Goes through the routes until one gives an artifact that computes what the model computes.

    Args:
        job: What to export.
        folder: An empty folder for the artifact.
        say: Function that shows a stage as it begins.

    Returns:
        A `MadeArtifact`.

    Raises:
        ExportError: No route did; the message names each with its reason. Or the disk is full.
        InvalidInputError: The model's custom layers can't be found from another process, or the
            format has no such names as its inputs and outputs.
    """
    format_name = job.export_format.name
    if check := getattr(job.export_format, "check_signature", None):
        check(job.model.signature)
    say(f"{format_name}: computing what the model gives")
    job, expected = _compute_expected(job)
    passed_over: list[str] = []
    missing: list[MissingExtraError] = []
    differing: MadeArtifact | None = None
    kept = folder.with_name(f"{folder.name}.differs")
    for route in find_routes(job.export_format):
        try:
            if check := getattr(job.export_format, "check_backend", None):
                check(job.model, route.backend)
            check_packages(job.export_format, route)
            _check_products(job, route)
            result = route.export(job, folder, lambda stage: say(f"{format_name}: {stage}"))
            _check_entry(job.export_format, folder)
            verification, beside = _verify_off_ties(expected, result, job, route, folder)
            if verification.state != "failed":
                return MadeArtifact(f"{result.how}{beside}", verification, tuple(passed_over))
            passed_over.append(f"through {route.name}: {verification.reason}")
            say(f"{format_name}: {verification.reason}")
            if job.takes_differing and differing is None:
                differing = MadeArtifact(result.how, verification, tuple(passed_over[:-1]))
                folder.rename(kept)
        except InvalidInputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever was raised, the next route is tried.
            reason = failure_reason(error)
            _check_room(folder, reason)
            passed_over.append(f"through {route.name}: {reason}")
            if isinstance(error, MissingExtraError):
                missing.append(error)
            elif not isinstance(error, NotSupportedError):
                say(f"{format_name}: {reason}")
        _empty(folder)
    if differing is not None:
        folder.rmdir()
        kept.rename(folder)
        return differing
    raise ExportError(_failure(job, passed_over, missing))


def check_artifact(job: ExportJob, folder: Path) -> Verification:
    """Returns whether an artifact that exists computes what the model computes.

    Args:
        job: Which model, and the format and the precision of the artifact.
        folder: Where the artifact stands.
    """
    running = keras.backend.backend()
    runtime = getattr(job.export_format, "runtime", running)
    route: Route = InProcess(running) if runtime == running else InChild(runtime)
    job, expected = _compute_expected(job)
    try:
        result = route.run(job, folder)
    except Exception as error:  # noqa: BLE001 - of whichever runtime
        return Verification("failed", f"it can't be run: {failure_reason(error)}")
    return _verify(expected, result, job)


def _compute_expected(job: ExportJob) -> tuple[ExportJob, _Expected]:
    """Returns the job with the batches that the model takes, and its outputs for them."""
    infer = backend.current().inference.plain_inference(job.model.in_precision(None))
    samples, usual = _infer_first(infer, [job.samples, *job.other_samples])
    further, of_further = _infer_taken(infer, job.further_samples)
    wide, of_wide = _infer_taken(infer, job.wide_samples)
    known = replace(
        job,
        samples=samples + further,
        wide_samples=wide,
        further_samples=(),
        other_samples=(),
    )
    extend = _extend(job)
    expected = ([extend(outputs) for outputs in each] for each in (usual + of_further, of_wide))
    return known, _Expected(*expected)


def _infer_taken(
    infer: InferenceFunction, samples: Sequence[dict[str, Array]]
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Returns the batches that a model takes and gives finite values for, and these."""
    taken, given = [], []
    for sample in samples:
        with contextlib.suppress(Exception):  # Of whichever backend: it takes no such batch.
            outputs = infer(sample)
            if all(np.isfinite(array.astype("float64")).all() for array in outputs.values()):
                taken.append(sample)
                given.append(outputs)
    return taken, given


def _infer_first(
    infer: InferenceFunction, lists: list[list[dict[str, Array]]]
) -> tuple[list[dict[str, Array]], list[dict[str, Array]]]:
    """Returns the first list of batches that a model takes, and its outputs."""
    failures = []
    for samples in lists:
        try:
            return list(samples), [infer(sample) for sample in samples]
        except Exception as error:  # noqa: BLE001 - of whichever backend
            failures.append(error)
    shapes = {name: array.shape for name, array in lists[0][0].items()}
    raise InvalidInputError(
        f"The model itself fails on a batch that it is to be verified on, as one of {shapes}: "
        f"{failure_reason(failures[0])}. Pass samples=[...], batches that it takes."
    ) from failures[0]


def _failure(job: ExportJob, passed_over: list[str], missing: list[MissingExtraError]) -> str:
    name = f"{job.model.model.name!r} can't be exported as {job.export_format.name}"
    if len(missing) == len(passed_over):
        own = f"for the {keras.backend.backend()} backend"
        first = next((error for error in missing if own in str(error)), missing[0])
        return (
            f"{name} for want of `{first.package}`: pip install 'keras_deepseek[{first.extra}]' is "
            "enough."
        )
    routes: dict[str, list[str]] = {}
    for each in passed_over:  # What holds for several routes is said once.
        route, _, reason = each.removeprefix("through ").partition(": ")
        routes.setdefault(reason, []).append(route)
    told = [f"through {' and '.join(names)}: {reason}" for reason, names in routes.items()]
    message = f"{name}: {'; '.join(told).rstrip('.')}."
    extras = list(dict.fromkeys(error.extra for error in missing))
    for extra in extras:  # It is said once, at the end.
        message = message.replace(f" Install it with: pip install 'keras_deepseek[{extra}]'", "")
    if extras:
        commands = " or ".join(f"pip install 'keras_deepseek[{extra}]'" for extra in extras)
        message += f" A route is not there for want of a package: {commands}."
    return message


def _verify(expected: _Expected, result: RouteResult, job: ExportJob) -> Verification:
    if result.outputs is None:
        return Verification("unverified", result.reason)
    if not (expected.usual or expected.wide):
        return Verification("unverified", "there is no batch to compare on")
    precisions = _precisions(job, expected)
    num_usual = len(expected.usual)
    usual, of_wide = result.outputs[:num_usual], result.outputs[num_usual:]
    try:
        comparison = compare(expected.usual, usual, precisions)
        wide = compare(
            expected.wide,
            of_wide,
            {name: precision or _OF_WIDE for name, precision in precisions.items()},
            by_column=False,
        )
    except ExportError as error:
        return Verification("failed", str(error))
    agreement = {}
    if job.precision is not None:
        agreement = agreements(expected.usual + expected.wide, result.outputs)
    if not comparison.any_finite:
        return Verification(
            "unverified", "the model gives no finite value, so nothing was compared"
        )
    if comparison.untold:
        names = ", ".join(map(repr, comparison.untold))
        return Verification(
            "unverified",
            f"output {names} hardly moves from row to row of the samples, so that one which is the "
            "same for all would pass; pass samples=, rows like those of use, several of a shape",
            num_samples=comparison.num_samples,
            largest_difference=comparison.largest_difference,
            agreement=agreement,
        )
    return Verification(
        "verified",
        num_samples=comparison.num_samples + wide.num_samples,
        largest_difference=comparison.largest_difference,
        agreement=agreement,
        signatures=getattr(job.export_format, "signatures", ()),
    )


def _verify_off_ties(
    expected: _Expected, result: RouteResult, job: ExportJob, route: Route, folder: Path
) -> tuple[Verification, str]:
    """Returns the state of an artifact, and whether a batch was drawn anew for a tie in it."""
    found = _verify(expected, result, job)
    if found.state != "failed" or not job.is_drawn or job.precision is not None:
        return found, ""
    infer, extend = (
        backend.current().inference.plain_inference(job.model.in_precision(None)),
        _extend(job),
    )

    def infer_all(sample: dict[str, Array]) -> dict[str, Array]:
        return extend(infer(sample))

    precisions = _precisions(job, expected)
    with contextlib.suppress(Exception):  # Of whichever backend: then it stays failed.
        redrawn = redraw_tie(job, infer_all, expected.usual, result, precisions, route, folder)
        if redrawn is not None:
            usual, result = redrawn
            found = _verify(expected._replace(usual=usual), result, job)
            return found, ", one batch drawn anew, at a tie of the model's"
    return found, ""


def _extend(job: ExportJob) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Returns what adds to a model's outputs those that its format makes of them."""
    further: Callable[[dict[str, Array]], dict[str, Array]] = getattr(
        job.export_format, "further_outputs", lambda _: {}
    )
    return lambda outputs: {**outputs, **further(outputs)}


def _precisions(job: ExportJob, expected: _Expected) -> dict[str, str | None]:
    """Returns by output name what it is computed in, where that is not its own dtype."""
    names = (expected.usual or expected.wide)[0].keys()
    if job.precision is not None:
        return dict.fromkeys(names, job.precision)
    layers = layers_by_output(job.model)
    known = {name: _least_precision(each) for name, each in layers.items()}
    # What a format makes of an output is as exact as the least exact of them at the least.
    least = next((one for one in _HALF_PRECISIONS if one in known.values()), None)
    return {name: known.get(name, least) for name in names}


def _least_precision(layers: list[keras.Layer]) -> str | None:
    """Returns the half precision that a layer computes in; the last one's is often another."""
    dtypes = {layer.compute_dtype for layer in layers}
    return next((dtype for dtype in _HALF_PRECISIONS if dtype in dtypes), None)


def _check_products(job: ExportJob, route: Route) -> None:
    """Raises where TensorFlow would compute in float32 what the model computes in integers."""
    if route.backend != "tensorflow" or keras.backend.backend() == "tensorflow":
        return
    if products := integer_products(job.model.model):
        raise NotSupportedError(
            f"TensorFlow computes the integers of {', '.join(products)} in float32, which has no "
            "other than even numbers beyond 2**24"
        )


def _check_entry(export_format: ExportFormat, folder: Path) -> None:
    """Raises where a format wrote nothing at the place that a runtime is to load."""
    entry = folder / export_format.entry
    if not entry.exists() or (entry.is_dir() and not any(entry.iterdir())):
        raise ExportError(
            f"the format {export_format.name!r} wrote nothing at its entry, {export_format.entry!r}"
        )


def _check_room(folder: Path, reason: str) -> None:
    """Raises where a route failed of a full disk, as all others would."""
    places = [str(folder.parent.parent), tempfile.gettempdir()]
    full = [place for place in places if shutil.disk_usage(place).free < _LEAST_ROOM]
    if full or DISK_IS_FULL in reason:
        raise ExportError(
            f"The disk of {' or '.join(map(repr, full or places))} is full: {reason}. Make room, "
            "or use another."
        )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
