"""The routes of an export: from the traced program, or by each backend that can write the format.

A format that writes programs needs no backend's exporter. Else the running backend writes the
artifact in this process. Another backend loads the saved model in a process of its own
(`child.py`), since not every backend's exporter is right for every model. Each route writes the
artifact and runs it on the samples. `make_artifact.py` compares the outputs.
"""

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile

import keras

from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.backend import DISPLAY_NAMES
from keras_deepseek.backend.keras_private.layers import without_new_nodes
from keras_deepseek.deploy.export_job import ExportJob, RouteResult
from keras_deepseek.deploy.failure_reason import whole_tracebacks
from keras_deepseek.deploy.formats.export_format import ExportFormat, run_format
from keras_deepseek.deploy.routes.child import load_batches, save_batches
from keras_deepseek.deploy.routes.child_process import Say, run_in_child
from keras_deepseek.deploy.routes.config_check import check_configs
from keras_deepseek.deploy.routes.custom_objects import find_custom_objects, save_objects, send
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)
from keras_deepseek.graph.portable_model import make_portable


class Route(Protocol):
    """One way to make an artifact from a model: by a given backend, in a given process."""

    @property
    def backend(self) -> str:
        """The name of the backend that writes the artifact."""

    @property
    def writer(self) -> str:
        """The backend's name, or `"program"`, for the packages and checks of a format."""

    @property
    def name(self) -> str:
        """The name of the route in reports, such as the backend's."""

    def export(self, job: ExportJob, folder: Path, say: Say) -> RouteResult:
        """Writes the artifact, runs it on the job's batches, and returns a `RouteResult`.

        It reports each stage to `say`.
        """

    def run(self, job: ExportJob, folder: Path) -> RouteResult:
        """Runs an existing artifact on the job's batches, and returns a `RouteResult`."""

    def build(self, job: ExportJob, source_file: Path, folder: Path) -> str:
        """Builds the artifact from the file of another format, and says how it was made."""


@dataclass(frozen=True)
class InProcess:
    """The route by the running backend, in this process."""

    backend: str

    @property
    def writer(self) -> str:
        """The name of the backend."""
        return self.backend

    @property
    def name(self) -> str:
        """The name of the route in reports."""
        return f"the {self.backend} backend"

    def export(self, job: ExportJob, folder: Path, say: Say) -> RouteResult:
        """Writes the artifact and runs it, in this process."""
        say(f"writing through {self.name}")
        with whole_tracebacks():
            how = self._write(job, folder)
        say(f"running it on {len(job.batches)} batches")
        return replace(self.run(job, folder), how=how)

    def run(self, job: ExportJob, folder: Path) -> RouteResult:
        """Runs an existing artifact in this process."""
        try:
            outputs = run_format(job.export_format, folder, list(job.batches))
        except NotSupportedError as error:
            return RouteResult("", None, str(error))
        return RouteResult("", outputs)

    def build(self, job: ExportJob, source_file: Path, folder: Path) -> str:
        """Builds the artifact in this process."""
        return job.export_format.build(source_file, folder, job.model.signature, job.precision)

    def _write(self, job: ExportJob, folder: Path) -> str:
        return job.export_format.write(job.model, folder)


@dataclass(frozen=True)
class FromProgram(InProcess):
    """The route from the model's traced operations, in this process, by no backend's exporter."""

    @property
    def writer(self) -> str:
        """The word by which formats know this route."""
        return "program"

    @property
    def name(self) -> str:
        """The name of the route in reports."""
        return "the traced program"

    def _write(self, job: ExportJob, folder: Path) -> str:
        several = (batch for batch in job.samples if min(map(len, batch.values())) > 1)
        example = next(several, job.samples[0])  # Of one row, a size is like that of no axis.
        how = job.export_format.write_program(job.model, example, folder)
        return f"{how}, {self.name}"


@dataclass(frozen=True)
class InChild:
    """The route by another backend, in a child process that loads the saved model."""

    backend: str

    @property
    def writer(self) -> str:
        """The name of the backend."""
        return self.backend

    @property
    def name(self) -> str:
        """The name of the route in reports."""
        return f"a {DISPLAY_NAMES[self.backend]} process"

    def export(self, job: ExportJob, folder: Path, say: Say) -> RouteResult:
        """Writes the artifact and runs it, in the child process."""
        say(f"starting {self.name}")
        result = self._send(job, folder, say, is_written=False)
        return replace(result, how=f"{result.how}, {self.name}")

    def run(self, job: ExportJob, folder: Path) -> RouteResult:
        """Runs an existing artifact in the child process."""
        return self._send(job, folder, lambda _: None, is_written=True)

    def build(self, job: ExportJob, source_file: Path, folder: Path) -> str:
        """Builds the artifact in the child process."""
        unrun = replace(job, samples=[], extreme_samples=())
        build = {
            "source": str(source_file.resolve()),
            "signature": job.model.signature.to_dict(),
            "precision": job.precision,
        }
        return self._send(unrun, folder, lambda _: None, is_written=True, build=build).how

    def _send(
        self,
        job: ExportJob,
        folder: Path,
        say: Say,
        *,
        is_written: bool,
        build: dict[str, Any] | None = None,
    ) -> RouteResult:
        with temporary_folder("keras_deepseek_export") as work:
            _write_job(job, folder, work, is_written=is_written, build=build)
            run_in_child(work, self.backend, lambda stage: say(f"{stage}, in {self.name}"))
            result = json.loads((work / "result.json").read_text(encoding="utf-8"))
            if "refused" in result:
                raise InvalidInputError(result["refused"])
            if "error" in result:
                raise ExportError(result["error"])
            outputs = load_batches(work / "outputs.npz") if result["ran"] else None
        return RouteResult(result["how"], outputs, result["reason"])


def check_packages(export_format: ExportFormat, route: Route) -> None:
    """Raises a `MissingExtraError` before any work if a package of a route is not installed."""
    needed = {route.backend: route.backend}
    needed |= export_format.packages.get(route.writer, {})
    missing = {name: needed[name] for name in needed if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(sorted({*missing.values()}))
        raise MissingExtraError(next(iter(missing)), extra=extras, purpose=f"for {route.name}")


def _write_job(
    job: ExportJob, folder: Path, work: Path, *, is_written: bool, build: dict[str, Any] | None
) -> None:
    sources: tuple[str, ...] = ()
    if not is_written:
        model = job.model.model
        try:
            check_configs(model)
        except ExportError as error:
            model = _without_own_classes(job, error)
        model.save(work / "model.keras")
        with ZipFile(work / "model.keras") as archive:
            config = archive.read("config.json").decode("utf-8")
        objects = find_custom_objects(model, config, job.custom_objects_from)
        save_objects(work, objects.of_script)
        sources = objects.sources
    save_batches(work / "samples.npz", job.batches)
    if job.options is None:
        what = f"The format {job.export_format.name!r} is registered in the running process"
        send(work / "format.pickle", job.export_format, what)
    if job.calibration:
        save_batches(work / "calibration.npz", [*job.calibration])
    description = {
        "format": job.export_format.name,
        "options": job.options,
        "precision": job.model.precision,
        "folder": str(folder.resolve()),
        "custom_objects_from": sources,
        "is_written": is_written,
        **({"build": build} if build else {}),
    }
    (work / "job.json").write_text(json.dumps(description), encoding="utf-8")


def _without_own_classes(job: ExportJob, error: ExportError) -> keras.Model:
    """Returns the traced operations of a job's model, whose classes can't be recreated.

    Raises the given error if these operations can't replace the model.
    """
    named = job.model
    if named.precision is not None:  # It is that of layers, and operations have their own.
        raise error
    try:
        with without_new_nodes(named.model):
            inputs = named.pack_inputs(job.samples[0])
            model = make_portable(named.model, named.signature, inputs)
        check_configs(model)
    except Exception as reason:  # A layer may raise anything on symbols.
        error.add_note(f"Nor can it be replaced by its operations: {reason}")
        raise error from reason
    return model


def find_routes(export_format: ExportFormat) -> list[Route]:
    """Returns the routes to an export format, in the order in which they are tried."""
    running = keras.backend.backend()
    backends = export_format.backends or (running,)
    if export_format.writes_programs:
        fallback = running if running in backends else backends[0]
        first: list[Route] = [FromProgram(running)]
        backends = (fallback,)
    else:
        first = []
    return first + [InProcess(name) if name == running else InChild(name) for name in backends]
