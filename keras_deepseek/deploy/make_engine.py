"""From a model to a TensorRT engine: by way of its verified ONNX."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from keras_deepseek.artifacts.manifest import Verification
from keras_deepseek.deploy.export_job import ExportJob, MadeArtifact
from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat
from keras_deepseek.deploy.make_artifact import check_artifact, make_artifact
from keras_deepseek.deploy.samples.random_batches import draw_batch
from keras_deepseek.errors import ExportError, NotSupportedError


def make_engine(
    job: ExportJob,
    tensorrt: TensorRTFormat,
    folder: Path,
    say: Callable[[str], None],
    *,
    draws_samples: bool,
) -> MadeArtifact:
    """Exports a model as ONNX, and builds an engine of what is verified.

    Args:
        job: What to export, its format that of the ONNX file.
        tensorrt: How to build the engine.
        folder: An empty folder for the engine. The ONNX file stands beside it.
        say: Function that shows a stage as it begins.
        draws_samples: boolean. Whether the engine is verified on random batches of its profiles'
            sizes, in place of the job's.

    Returns:
        A `MadeArtifact`. The engine is unverified where it can't be run here.

    Raises:
        ExportError: No route gave a right ONNX file, or TensorRT can't take it, or the engine
            computes something else.
    """
    onnx_folder = folder.with_name("onnx")
    onnx_folder.mkdir()
    made = make_artifact(job, onnx_folder, say)
    say("tensorrt: building the engine")
    how = tensorrt.build(onnx_folder / job.export_format.entry, folder)
    of_engine = engine_job(job, tensorrt, draws_samples=draws_samples)
    if not draws_samples:
        num_given = len(job.samples)
        how += say_left_out(num_given - len(of_engine.samples), num_given)
    verification = _verify(of_engine, tensorrt, folder, made.verification)
    return MadeArtifact(f"{made.route}, {how}", verification, made.passed_over)


def engine_job(job: ExportJob, tensorrt: TensorRTFormat, *, draws_samples: bool) -> ExportJob:
    """Returns the job of verifying an engine: on batches that its profiles have room for.

    Args:
        job: The job of the model.
        tensorrt: The format of the engine.
        draws_samples: boolean. Whether the batches are drawn: of the smallest, the usual and the
            largest sizes of each profile, as far as the model itself takes them.
    """
    job = replace(job, export_format=tensorrt, wide_samples=())
    if not draws_samples:
        samples = [
            sample
            for sample in job.samples
            if any(
                profile.takes({name: array.shape for name, array in sample.items()})
                for profile in tensorrt.profiles
            )
        ]
        return replace(job, samples=samples, further_samples=())
    drawn = [
        draw_batch(job.model.model, job.model.signature, shapes) for shapes in _shapes(tensorrt)
    ]
    return replace(job, samples=[], further_samples=drawn)


def say_left_out(num_left_out: int, num_given: int) -> str:
    """Returns what a report says of given batches that no profile has room for.

    Args:
        num_left_out: integer. How many these are.
        num_given: integer. How many batches were given.
    """
    if not num_left_out:
        return ""
    return f", {num_left_out} of the {num_given} batches left out, which no profile has room for"


def _shapes(tensorrt: TensorRTFormat) -> list[dict[str, tuple[int, ...]]]:
    """Returns the shapes by input of each bound of each profile, once each."""
    found: list[dict[str, tuple[int, ...]]] = []
    for profile in tensorrt.profiles:
        names, ranges = profile.shapes.keys(), profile.shapes.values()
        for bound in zip(*ranges, strict=True):
            shapes = dict(zip(names, bound, strict=True))
            if shapes not in found:
                found.append(shapes)
    return found


def _verify(
    job: ExportJob, tensorrt: TensorRTFormat, folder: Path, parent: Verification
) -> Verification:
    """Returns the state of an engine, with that of the ONNX file that it was built from."""
    verified = f"verified, largest difference {parent.largest_difference:.2g}"
    state = verified if parent.state == "verified" else f"{parent.state}: {parent.reason}"
    origin = f"the ONNX that it was built from is {state}"
    if parent.state == "failed":
        return Verification("failed", origin)
    try:
        tensorrt.check_can_run()
    except NotSupportedError as error:
        return Verification("unverified", f"{error}; {origin}")
    found = check_artifact(job, folder)
    if found.state == "failed" and not job.takes_differing:
        raise ExportError(
            f"The engine of {job.model.model.name!r} does not compute what the model computes: "
            f"{found.reason.rstrip('.')}; {origin}."
        )
    return (
        found if found.state == "verified" else replace(found, reason=f"{found.reason}; {origin}")
    )
