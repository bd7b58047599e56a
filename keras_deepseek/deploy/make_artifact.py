"""Export by the first route whose artifact gives the same outputs as the model.

A format with a `source` is built from the verified artifact of that format instead.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import keras

from keras_deepseek.artifacts.bundle import Verification
from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.backend.export.random_batch import draw_batch
from keras_deepseek.backend.keras_private.functional_graphs import integer_products
from keras_deepseek.deploy.export_job import ExportJob, MadeArtifact
from keras_deepseek.deploy.failure_reason import DISK_IS_FULL, failure_reason
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.registry import ChosenFormat
from keras_deepseek.deploy.routes.route import (
    InChild,
    InProcess,
    Route,
    check_packages,
    find_routes,
)
from keras_deepseek.deploy.verification import (
    Expected,
    Run,
    compare_nonfinite,
    compute_expected,
    expect_at,
    verify,
    verify_resampling_ties,
)
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    KerasDeepSeekError,
    MissingExtraError,
    NotSupportedError,
)
from keras_deepseek.graph.known_code import CannotOpenError, protected_attributes
from keras_deepseek.graph.size_expressions import OneSizeError

_LEAST_FREE_BYTES = 2**13
"""Bytes. With less free space than this, a route's error is taken for that of a full disk."""


def make_artifact(job: ExportJob, folder: Path, say: Callable[[str], None]) -> MadeArtifact:
    """Makes an artifact by the first route whose outputs are verified.

    `folder` is empty; a source goes into a folder beside it. `say` shows each stage as it begins.
    If all routes fail, the `ExportError` names each with its reason. A model whose optimized form
    can't be exported is exported as it is.
    """
    job.export_format.check_signature(job.model.signature)
    job.export_format.check_precision(job.precision)
    if job.source is not None:
        return _make_from_source(job, job.source, folder, say)
    if job.reference is None:
        return _make_by_routes(job, folder, say)
    try:
        return _make_by_routes(job, folder, say)
    except ExportError as error:
        say(f"{job.export_format.name}: leaving the graph as it is")
        artifact = _make_by_routes(replace(job, model=job.reference, reference=None), folder, say)
        return replace(artifact, passed_over=(f"optimized: {error}", *artifact.passed_over))


def check_artifact(job: ExportJob, folder: Path) -> Verification:
    """Verifies the artifact in a folder against the outputs of the job's model."""
    route = _running_route(job.export_format)
    job, expected = compute_expected(job)
    try:
        result = route.run(job, folder)
    except Exception as error:  # noqa: BLE001 - of any runtime
        return Verification("failed", f"it can't be run: {failure_reason(error)}")
    verification = verify(expected, result, job)
    return compare_nonfinite(verification, expected, job, folder, _runner(route, job, folder))


def _running_route(export_format: ExportFormat) -> Route:
    """Returns the route that runs an existing artifact, in this process if that has its runtime."""
    running = keras.backend.backend()
    runtime = export_format.runtime or running
    return InProcess(running) if runtime == running else InChild(runtime)


def _runner(route: Route, job: ExportJob, folder: Path) -> Run:
    return lambda samples: (
        route.run(replace(job, samples=samples, extreme_samples=()), folder).outputs
    )


def fit_samples(job: ExportJob) -> tuple[ExportJob, str]:
    """Drops samples that the job's format can't take, and returns a note on those left out.

    Random samples are drawn anew if the format says which shapes it takes.
    """
    export_format, signature = job.export_format, job.model.signature
    shapes = export_format.sample_shapes(signature)
    if job.has_random_samples and shapes:
        drawn = [
            draw_batch(job.expected_model.model, signature, input_shapes) for input_shapes in shapes
        ]
        # Optional, since the model may not take every size.
        job = replace(
            job,
            samples=[],
            optional_samples=[[batch] for batch in drawn],
            extreme_samples=(),
            alternative_samples=(),
        )
        return job, ""

    def that_fit(samples: Sequence[Batch]) -> list[Batch]:
        return [
            sample
            for sample in samples
            if export_format.takes(signature, {name: array.shape for name, array in sample.items()})
        ]

    fitting = replace(
        job,
        samples=that_fit(job.samples),
        optional_samples=[that_fit(samples) for samples in job.optional_samples],
        extreme_samples=that_fit(job.extreme_samples),
        alternative_samples=[that_fit(samples) for samples in job.alternative_samples],
    )
    num_left_out, num_samples = len(job.samples) - len(fitting.samples), len(job.samples)
    note = f", {num_left_out} of the {num_samples} batches left out, whose sizes it does not take"
    return fitting, note if num_left_out else ""


def _make_by_routes(job: ExportJob, folder: Path, say: Callable[[str], None]) -> MadeArtifact:
    """Returns the first artifact that is right, else the first wrong one if that is allowed."""
    format_name = job.export_format.name
    job, left_out = fit_samples(job)
    say(f"{format_name}: computing what the model gives")
    job, expected = compute_expected(job)
    passed_over: list[str] = []
    errors: list[Exception] = []
    differing: MadeArtifact | None = None  # The first wrong artifact; its files are moved away.
    differing_folder = folder.with_name(f"{folder.name}.differs")
    for route in find_routes(job.export_format):
        result = _try_route(job, route, expected, folder, say)
        if isinstance(result, Exception):
            reason = failure_reason(result)
            _check_free_space(folder, reason)
            errors.append(result)
            if isinstance(result, OneSizeError):
                job, expected = expect_at(job, expected, result.shapes)
        else:
            reason = result.verification.reason
            artifact = replace(
                result, route=f"{result.route}{left_out}", passed_over=tuple(passed_over)
            )
            if artifact.verification.state != "failed":
                return artifact
            if job.allows_difference and differing is None:
                differing = artifact
                folder.rename(differing_folder)
        if not isinstance(result, MissingExtraError | NotSupportedError):
            say(f"{format_name}: {reason}")
        passed_over.append(f"through {route.name}: {reason}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    if differing is not None:
        folder.rmdir()
        differing_folder.rename(folder)
        return differing
    # The traceback of an error from outside this package shows the line in the user's own code.
    cause = next((error for error in errors if not isinstance(error, KerasDeepSeekError)), None)
    raise ExportError(_failure(job, passed_over, errors)) from cause


def _try_route(
    job: ExportJob, route: Route, expected: Expected, folder: Path, say: Callable[[str], None]
) -> MadeArtifact | Exception:
    """Returns the artifact of a route, verified or not, or the error with which the route failed.

    An `InvalidInputError` is raised, since all routes would fail with it. Layers of users keep the
    attributes that they have: a trace would leave symbols there.
    """
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(CannotOpenError):  # One can't be copied.
                stack.enter_context(protected_attributes(job.expected_model.model))
            return _run_route(job, route, expected, folder, say)
    except InvalidInputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever was raised, the next route is tried.
        return error


def _run_route(
    job: ExportJob, route: Route, expected: Expected, folder: Path, say: Callable[[str], None]
) -> MadeArtifact:
    export_format = job.export_format
    export_format.check_backend(job.model, route.writer)
    check_packages(export_format, route)
    _check_products(job, route)
    result = route.export(job, folder, lambda stage: say(f"{export_format.name}: {stage}"))
    _check_entry(export_format, folder)

    run = _runner(route, job, folder)
    verification, note = verify_resampling_ties(expected, result, job, run)
    run = _runner(_running_route(export_format), job, folder)
    verification = compare_nonfinite(verification, expected, job, folder, run)
    return MadeArtifact(f"{result.how}{note}", verification)


def _make_from_source(
    job: ExportJob, source: ChosenFormat, folder: Path, say: Callable[[str], None]
) -> MadeArtifact:
    """Makes and verifies a source artifact, then builds and verifies the artifact from it.

    The artifact is unverified if it can't be run on this machine.
    """
    export_format, source_format = job.export_format, source.export_format
    source_folder = folder.with_name(source_format.name)
    source_folder.mkdir()
    route, source_job = find_routes(export_format)[0], job.in_format(source)
    check_packages(export_format, route)
    if job.precision in export_format.own_precisions:
        source_job = replace(source_job, precision=job.model.precision, calibration=None)
    source_artifact = make_artifact(source_job, source_folder, say)
    say(f"{export_format.name}: building it from {source_format.name}")
    try:
        how = route.build(job, source_folder / source_format.entry, folder)
    except ExportError as error:
        if not source_artifact.passed_over:
            raise
        raise ExportError(
            f"{str(error).rstrip('.')}; the {source_format.name} artifact is by "
            f"{source_artifact.route}, after {'; '.join(source_artifact.passed_over)}"
        ) from error
    job, note = fit_samples(job)
    verification = _verify_built(job, source_format.name, folder, source_artifact.verification)
    return MadeArtifact(
        f"{source_artifact.route}, {how}{note}", verification, source_artifact.passed_over
    )


def _verify_built(
    job: ExportJob, source_name: str, folder: Path, of_source: Verification
) -> Verification:
    """Verifies an artifact built from a source; a failure also tells the state of the source."""
    verified = f"verified, largest difference {of_source.largest_difference:.2g}"
    state = verified if of_source.state == "verified" else f"{of_source.state}: {of_source.reason}"
    origin = f"the {source_name} artifact that it was built from is {state}"
    if of_source.state == "failed":
        return Verification("failed", origin)
    try:
        job.export_format.check_runnable()
    except NotSupportedError as error:
        return Verification("unverified", f"{error}; {origin}")
    verification = check_artifact(job, folder)
    if verification.state == "failed" and not job.allows_difference:
        raise ExportError(
            f"The {job.export_format.name} artifact of {job.model.model.name!r} does not compute "
            f"what the model computes: {verification.reason.rstrip('.')}; {origin}."
        )
    return (
        verification
        if verification.state == "verified"
        else replace(verification, reason=f"{verification.reason}; {origin}")
    )


def _failure(job: ExportJob, passed_over: list[str], errors: list[Exception]) -> str:
    """Returns the message of the error after which no route is left, with the reason of each."""
    missing = [error for error in errors if isinstance(error, MissingExtraError)]
    name = f"{job.model.model.name!r} can't be exported as {job.export_format.name}"
    if len(missing) == len(passed_over):
        of_backend = f"for the {keras.backend.backend()} backend"
        first = next((error for error in missing if of_backend in str(error)), missing[0])
        return (
            f"{name}: `{first.package}` is not installed. Install it with: pip install "
            f"'keras_deepseek[{first.extra}]'"
        )
    routes: dict[str, list[str]] = {}
    for failure in passed_over:  # A reason that several routes share is told once.
        route, _, reason = failure.removeprefix("through ").partition(": ")
        routes.setdefault(reason, []).append(route)
    sentences = [f"through {' and '.join(names)}: {reason}" for reason, names in routes.items()]
    message = f"{name}: {'; '.join(sentences).rstrip('.')}."
    extras = list(dict.fromkeys(error.extra for error in missing))
    for extra in extras:  # The hint is given once, at the end.
        message = message.replace(f". Install it with: pip install 'keras_deepseek[{extra}]'", "")
    if extras:
        commands = " or ".join(f"pip install 'keras_deepseek[{extra}]'" for extra in extras)
        message += f" A route was skipped because a package is missing: {commands}."
    return message


def _check_products(job: ExportJob, route: Route) -> None:
    """Rejects TensorFlow as a route for models of other backends with integer products.

    TensorFlow computes these in float32.
    """
    if route.backend != "tensorflow" or keras.backend.backend() == "tensorflow":
        return
    if products := integer_products(job.model.model):
        raise NotSupportedError(
            f"TensorFlow computes the integers of {', '.join(products)} in float32, which holds "
            "only even numbers beyond 2**24"
        )


def _check_entry(export_format: ExportFormat, folder: Path) -> None:
    entry = folder / export_format.entry
    if not entry.exists() or (entry.is_dir() and not any(entry.iterdir())):
        raise ExportError(
            f"the format {export_format.name!r} wrote nothing at its entry, {export_format.entry!r}"
        )


def _check_free_space(folder: Path, reason: str) -> None:
    """Raises an error if a route failed because the disk is full: other routes would fail, too."""
    folders = [str(folder.parent.parent), tempfile.gettempdir()]
    full = [path for path in folders if shutil.disk_usage(path).free < _LEAST_FREE_BYTES]
    if full or DISK_IS_FULL in reason:
        raise ExportError(
            f"The disk of {' or '.join(map(repr, full or folders))} is full: {reason}. Free some "
            "space, or use another disk."
        )
