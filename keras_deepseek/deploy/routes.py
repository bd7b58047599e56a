"""The ways from a model to an artifact that was seen to compute the same.

A route writes the artifact and runs it on the samples; the exporter compares. The first route goes
through the backend that runs. The second saves the model and reloads it under TensorFlow in a
process of its own, since from there the exporters are right: see `child.py`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)
from keras_deepseek.artifacts.manifest import Verification
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_internals import flatten_layers
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy.child import load_batches, save_batches
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.verify import compare


@dataclass(frozen=True)
class ExportJob:
    """What a route is asked to do.

    Args:
        model: `NamedModel`.
        export_format: `ExportFormat`.
        options: dict. The arguments that the format was made with.
        samples: For each batch its arrays by input name.
        custom_objects_from: Modules, by name or by file, that define the model's custom layers.
    """

    model: NamedModel
    export_format: ExportFormat
    options: dict[str, Any]
    samples: list[dict[str, Array]]
    custom_objects_from: Sequence[str | os.PathLike[str]] = ()


@dataclass(frozen=True)
class RouteResult:
    """What a route gives back.

    Args:
        how: string. How the artifact was made.
        outputs: For each sample the artifact's arrays by output name; `None` where it can't be run
        here.
        reason: string. Why it can't be run.
    """

    how: str
    outputs: list[dict[str, Array]] | None
    reason: str = ""


@dataclass(frozen=True)
class MadeArtifact:
    """An artifact that a route made.

    Args:
        route: string. How it was made.
        verification: `Verification`.
        passed_over: tuple of strings. The routes that were tried before, each with its reason.
    """

    route: str
    verification: Verification
    passed_over: tuple[str, ...] = ()


class Route(Protocol):
    """A way from a model to an artifact and its outputs."""

    name: str

    def export(self, job: ExportJob, folder: Path) -> RouteResult:
        """Writes the artifact into `folder` and runs it on the job's samples."""


class InProcessRoute:
    """Through the backend that runs."""

    name = f"the {keras.backend.backend()} backend"

    def export(self, job: ExportJob, folder: Path) -> RouteResult:
        """Writes the artifact into `folder` and runs it on the job's samples."""
        how = job.export_format.write(job.model, folder)
        try:
            return RouteResult(how, job.export_format.run(folder, job.samples))
        except NotSupportedError as error:
            return RouteResult(how, None, str(error))


class TensorFlowProcessRoute:
    """Through TensorFlow, in a process of its own."""

    name = "a TensorFlow process"

    def export(self, job: ExportJob, folder: Path) -> RouteResult:
        """Writes the artifact into `folder` and runs it on the job's samples."""
        if importlib.util.find_spec("tensorflow") is None:
            raise MissingExtraError(
                "tensorflow",
                "tensorflow",
                f"to export {job.export_format.name} from the {keras.backend.backend()} backend",
            )
        with tempfile.TemporaryDirectory(prefix="keras_deepseek_export_") as work:
            self._write_job(job, folder, Path(work))
            _run_child(Path(work))
            result = json.loads((Path(work) / "result.json").read_text(encoding="utf-8"))
            if "error" in result:
                raise ExportError(result["error"])
            outputs = load_batches(Path(work) / "outputs.npz") if result["ran"] else None
        return RouteResult(f"{result['how']}, {self.name}", outputs, result["reason"])

    def _write_job(self, job: ExportJob, folder: Path, work: Path) -> None:
        model = job.model.model
        model.save(work / "model.keras")
        with ZipFile(work / "model.keras") as archive:
            config = archive.read("config.json").decode("utf-8")
        sources = _custom_object_sources(model, config, job.custom_objects_from)
        save_batches(work / "samples.npz", job.samples)
        description = {
            "format": job.export_format.name,
            "options": job.options,
            "folder": str(folder.resolve()),
            "custom_objects_from": sources,
        }
        (work / "job.json").write_text(json.dumps(description), encoding="utf-8")


def make_artifact(job: ExportJob, folder: Path, say: Callable[[str], None]) -> MadeArtifact:
    """Goes through the routes until one gives an artifact that computes what the model computes.

    Args:
        job: What to export.
        folder: An empty folder for the artifact.
        say: Function that shows a line of progress.

    Returns:
        A `MadeArtifact`.

    Raises:
        ExportError: No route did; the message names each with its reason.
        InvalidInputError: The model's custom layers can't be found from another process.
    """
    infer = backend.current().compile_inference(job.model)
    expected = [infer(sample) for sample in job.samples]
    passed_over: list[str] = []
    for route in _routes():
        say(f"{job.export_format.name}: trying {route.name}")
        try:
            result = route.export(job, folder)
            return MadeArtifact(result.how, _verify(expected, result), tuple(passed_over))
        except InvalidInputError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever was raised, the next route is tried.
            passed_over.append(f"through {route.name}: {error}")
            if not isinstance(error, NotSupportedError):
                say(f"{job.export_format.name}: {error}")
            _empty(folder)
    reasons = "; ".join(passed_over)
    raise ExportError(
        f"{job.model.model.name!r} can't be exported as {job.export_format.name}: {reasons}"
    )


def _routes() -> list[Route]:
    in_tensorflow = keras.backend.backend() == "tensorflow"
    return [InProcessRoute(), *([] if in_tensorflow else [TensorFlowProcessRoute()])]


def _verify(expected: list[dict[str, Array]], result: RouteResult) -> Verification:
    if result.outputs is None:
        return Verification("unverified", result.reason)
    comparison = compare(expected, result.outputs)
    if not comparison.any_finite:
        return Verification(
            "unverified", "the model gives no finite value, so nothing was compared"
        )
    return Verification(
        "verified",
        num_samples=comparison.num_samples,
        largest_difference=comparison.largest_difference,
    )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _custom_object_sources(
    model: keras.Model, config: str, given: Sequence[str | os.PathLike[str]]
) -> list[str]:
    """Returns the modules, by name or by file, that the model's classes and functions are from."""
    registered = keras.saving.get_custom_objects().values()
    named = {
        value for value in registered if f'"{keras.saving.get_registered_name(value)}"' in config
    }
    classes = {*(type(layer) for layer in flatten_layers(model)), *named}
    modules = {
        cls.__module__
        for cls in classes
        if cls.__module__.split(".")[0] not in ("keras", "builtins")
    }
    if "__main__" in modules and not given:
        names = sorted(cls.__name__ for cls in classes if cls.__module__ == "__main__")
        raise InvalidInputError(
            f"{', '.join(names)}: defined in the running script or notebook, where another "
            "process can't find them. Move them to a file and pass "
            "Exporter(..., custom_objects_from=['FILE.py'])."
        )
    files = [Path(source).resolve() for source in given if str(source).endswith(".py")]
    modules_given = [str(source) for source in given if not str(source).endswith(".py")]
    found = modules - {"__main__", *(file.stem for file in files)}
    return [*sorted(found), *modules_given, *map(str, files)]


def _run_child(work: Path) -> None:
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
    }
    finished = subprocess.run(
        [sys.executable, "-m", "keras_deepseek.deploy.child", str(work)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        last_lines = "\n".join(finished.stderr.strip().splitlines()[-5:])
        raise ExportError(f"the process ended with code {finished.returncode}: {last_lines}")
