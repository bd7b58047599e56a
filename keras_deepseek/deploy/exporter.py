"""The exporter: from a Keras model to an artifact that was seen to compute the same.

It stands between training and serving. What it writes is a bundle, which `inference` serves.
"""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras

from keras_deepseek import __version__
from keras_deepseek.artifacts.bundle import check_target, publish_bundle, staging_folder
from keras_deepseek.artifacts.errors import ExportError, InvalidInputError
from keras_deepseek.artifacts.manifest import Manifest, Verification
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy.export_report import ExportReport
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat
from keras_deepseek.deploy.registry import create_format, format_for_suffix
from keras_deepseek.deploy.routes import ExportJob, MadeArtifact, make_artifact
from keras_deepseek.deploy.samples import make_samples

_PACKAGES = (
    "keras",
    "numpy",
    "tensorflow",
    "jax",
    "torch",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "tensorrt-rtx-cu12",
)


class Exporter:
    """Writes a model in a form that runs without it, and checks that it computes the same.

    An export is `verified`, or it fails and leaves nothing on disk. Where an artifact can't be run
    on this machine, as a TensorRT engine, it is `unverified` and says why. The
    artifact is run on batches of several sizes and lengths, and its outputs are compared by name
    with the model's.

    Args:
        model: `keras.Model`, built. It is exported as it computes now.
        backend: string. `"onnx"`, `"savedmodel"`, `"tensorrt"`, the name of a registered format, or
            `"custom"`: the registered format that the path's suffix names.
        name: string. The model's name in the bundle. Defaults to `None`, the model's own.
        samples: list of inputs to verify on, each as `model.predict` takes them (several inputs by
            name). Use several batch sizes and lengths. Defaults to `None`, random ones.
        custom_objects_from: sequence of module names or files that define the model's custom
            layers, for an export that takes another process. Modules that were imported are found
            without it. Defaults to `()`.
        verbose: boolean. Prints a line for each stage. Defaults to `True`.
        **options: Arguments of the format: `opset` (integer, 18) for ONNX.

    Raises:
        InvalidInputError: The backend or an option is unknown, or the model is not built.
        MissingExtraError: A package for this format is not installed.

    Example:

    >>> import keras
    >>> from keras_deepseek.deploy import Exporter
    >>> model = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3)])
    >>> Exporter(model, backend="onnx", verbose=False).signature.inputs[0].name
    'features'
    """

    def __init__(
        self,
        model: keras.Model,
        backend: str,
        *,
        name: str | None = None,
        samples: Sequence[Any] | None = None,
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
        verbose: bool = True,
        **options: Any,
    ) -> None:
        self.backend = backend
        self.name = str(name or getattr(model, "name", "model"))
        self._verbose = verbose
        self._options = options
        self._custom_objects_from = custom_objects_from
        self._format = self._choose_format()
        self._model = NamedModel(model)
        self.signature = self._model.signature
        self._samples = (
            make_samples(model, self.signature)
            if samples is None
            else [self.signature.bind(sample) for sample in samples]
        )
        if not self._samples:
            raise InvalidInputError("`samples` is empty: expected at least one batch to verify on.")

    def export(self, path: str | os.PathLike[str]) -> ExportReport:
        """Writes the artifact and verifies it.

        Args:
            path: Where the bundle, a folder, will stand; an older bundle there is replaced. A path
                with the suffix of the format (`"model.onnx"`) asks for the one file alone. A
                SavedModel bundle whose folder is named by a number (`"digits/1"`) is what TF
                Serving loads.

        Returns:
            An `ExportReport`.

        Raises:
            ExportError: No route gave an artifact that computes the same. The message names each
                route with its reason, and nothing is left on disk.
            BundleError: Something that is not a bundle stands at `path`.
        """
        started = time.monotonic()
        target = Path(path)
        export_format = self._format or format_for_suffix(target)
        as_file = bool(export_format.suffix) and target.name.endswith(export_format.suffix)
        _check_file(target) if as_file else check_target(target)
        with staging_folder(target) as work:
            folder = work / "artifact"
            folder.mkdir()
            made = self._make(export_format, folder)
            if as_file:
                (folder / export_format.entry).replace(target)
            else:
                publish_bundle(folder, target, self._manifest(export_format, made))
        report = ExportReport(
            path=target,
            format=export_format.name,
            route=made.route,
            verification=made.verification,
            passed_over=made.passed_over,
            seconds=time.monotonic() - started,
        )
        self._say(str(report))
        return report

    def _choose_format(self) -> ExportFormat | TensorRTFormat | None:
        """Returns the format; `None` where the path will say which."""
        if self.backend == "custom":
            return None
        if self.backend == "tensorrt":
            create_format("onnx", self._options)
            return TensorRTFormat()
        return create_format(self.backend, self._options)

    def _make(self, export_format: ExportFormat | TensorRTFormat, folder: Path) -> MadeArtifact:
        if isinstance(export_format, TensorRTFormat):
            return self._make_engine(export_format, folder)
        job = ExportJob(
            self._model, export_format, self._options, self._samples, self._custom_objects_from
        )
        return make_artifact(job, folder, self._say)

    def _make_engine(self, tensorrt: TensorRTFormat, folder: Path) -> MadeArtifact:
        onnx_folder = folder.parent / "onnx"
        onnx_folder.mkdir()
        onnx = create_format("onnx", self._options)
        made = self._make(onnx, onnx_folder)
        self._say("tensorrt: building the engine")
        how = tensorrt.build(onnx_folder / onnx.entry, self.signature, folder)
        reason = (
            "this release runs no TensorRT engine; the ONNX that it was built from is "
            f"{made.verification.state}, largest difference "
            f"{made.verification.largest_difference:.2g}"
        )
        return MadeArtifact(
            f"{made.route}, {how}", Verification("unverified", reason), made.passed_over
        )

    def _manifest(
        self, export_format: ExportFormat | TensorRTFormat, made: MadeArtifact
    ) -> Manifest:
        return Manifest(
            name=self.name,
            format=export_format.name,
            entry=export_format.entry,
            signature=self.signature,
            precision=self._model.model.compute_dtype,
            route=made.route,
            versions=_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            verification=made.verification,
        )

    def _say(self, line: str) -> None:
        if self._verbose:
            print(line, flush=True)


def _check_file(target: Path) -> None:
    if target.is_dir():
        raise ExportError(f"{str(target)!r} is a folder, where a file is to be written.")


def _versions() -> dict[str, str]:
    """Returns the release of each package on this machine that an export may go through."""
    installed = {"keras_deepseek": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
