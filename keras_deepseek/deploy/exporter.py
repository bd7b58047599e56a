"""The `Exporter`, which writes a Keras model as a verified artifact.

It stands between training and serving. It writes a bundle, which `inference` serves.
"""

import inspect
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import keras

from keras_deepseek.artifacts.bundle import Manifest
from keras_deepseek.artifacts.export_arguments import (
    INT8,
    PRECISIONS,
    check_artifact_path,
    check_custom_sources,
    check_model_name,
    check_precision,
    check_samples,
)
from keras_deepseek.artifacts.signature import InferenceFunction
from keras_deepseek.artifacts.staging_folder import staging_folder
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.layers import unchanged_state
from keras_deepseek.checks import check_boolean
from keras_deepseek.deploy.artifact_files import (
    installed_versions,
    is_one_file,
    open_artifact,
    publish,
)
from keras_deepseek.deploy.export_job import ExportJob, ExportReport, MadeArtifact, optimize_job
from keras_deepseek.deploy.failure_reason import failure_reason
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.format_list import INT8_FORMATS
from keras_deepseek.deploy.formats.registry import (
    ChosenFormat,
    check_no_options,
    check_suffix,
    choose_format,
    format_for_suffix,
)
from keras_deepseek.deploy.input_signature import with_input_signature
from keras_deepseek.deploy.make_artifact import check_artifact, fit_samples, make_artifact
from keras_deepseek.deploy.samples import choose_data
from keras_deepseek.deploy.stage_display import StageDisplay, check_verbose
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    KerasDeepSeekError,
    unknown_name_message,
)


class Exporter:
    """Exports a model to a format that runs without Keras, and verifies the artifact.

    An export is `verified`, or it fails and leaves nothing on disk. If an artifact can't be run on
    this machine, as a TensorRT engine without a GPU, it is `unverified`, with the reason. The
    artifact is run on batches of several sizes and lengths, and its outputs are compared by name
    with the model's.

    Args:
        model: `keras.Model`, built. Its current weights and training state are exported.
        backend: string. The format: `"onnx"`, `"savedmodel"`, `"openvino"`, `"tensorrt"` or
            `"litert"`; the name of a registered format; or `"custom"`: the registered format whose
            suffix the path has.
        input_signature: list. For a subclassed model, the shapes and dtypes of the arguments of its
            `call`, as in `[keras.InputSpec(shape=(None, None), dtype="int32")]`; a size of `None`
            is free. Defaults to `None`: the sizes of the model's first call, with a free batch, in
            floats.
        name: string. The model's name in the bundle. Defaults to `None`, the model's own.
        precision: string. `"float16"` or `"bfloat16"`: the precision that layers compute in, as
            under Keras's mixed policies; inputs and outputs keep their dtypes. LiteRT keeps only
            weights in `"float16"`. Or `"int8"`, for ONNX, TensorRT and LiteRT: only products, for
            LiteRT whatever it can, compute in it; it requires `calibration`. Defaults to `None`,
            the model's own.
        calibration: inputs as `model.predict` takes them, a few hundred rows of real use. int8 is
            made for their ranges. Each fifth row is left out of that, and verifies the artifact.
            Fewer than 20 rows serve for both; if `samples` is given, it verifies the artifact.
            Defaults to `None`.
        samples: list of inputs to verify on, each as `model.predict` takes them (several inputs by
            name). Use several batch sizes and lengths. Defaults to `None`, random ones.
        custom_objects_from: sequence of module names or files that define the model's custom
            layers, for an export through another process; a single one needs no sequence. Imported
            modules are found without it; so are classes of a notebook if `cloudpickle` is
            installed. Defaults to `()`.
        optimize_graph: boolean. Writes the model as `graph.optimize` rewrites it to compute less,
            by cost alone, and compares the artifact with the model itself. Where that can't be
            exported, the model is written as it is. Defaults to `False`.
        verify: string. `"raise"`, or `"warn"`: if no route gives a right artifact, the first wrong
            one is written with the state `failed`, and a warning is issued. Defaults to `"raise"`.
        verbose: `"auto"` or `1` for each stage, on a terminal with its time; `2` for plain lines;
            `0` for nothing. Defaults to `"auto"`.
        **options: Arguments of the format. Of ONNX: `opset` (integer from 18 to 25, 18),
            `simplified` (boolean, `True`), `fused` (boolean, `True`: fuses operators that ONNX has
            one operator for), `products_in_float16` and `rolled` (booleans, `False`). Of
            SavedModel: `classify` (boolean or names of classes), `regress` (boolean) and `warmup`
            (boolean, `True`). Of OpenVINO: `opset`. Of TensorRT: those of ONNX; `flavor` (`"auto"`,
            `"tensorrt"` or `"rtx"`); `compute_capabilities`, as in `("86", "89")`; and `profiles`,
            the smallest, usual and largest size by free axis, as in `{"batch": (1, 4, 32),
            "tokens_axis_1": (1, 16, 64)}`, or the three shapes by input.

    Raises:
        InvalidInputError: The format or an option is unknown or does not fit, an argument has a
            wrong type or value, or the model is not built.
        MissingExtraError: A package for this format is not installed.
        NotSupportedError: Plain TensorRT was requested and no GPU is visible.

    Example:

    >>> import keras
    >>> from keras_deepseek.deploy import Exporter
    >>> model = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3)])
    >>> Exporter(model, backend="onnx", verbose=0).signature.inputs[0].name
    'features'
    """

    def __init__(  # noqa: PLR0913 - all options of an export.
        self,
        model: keras.Model,
        backend: str,
        *,
        input_signature: Sequence[Any] | None = None,
        name: str | None = None,
        precision: str | None = None,
        calibration: Any = None,
        samples: Sequence[Any] | None = None,
        custom_objects_from: Sequence[str | os.PathLike[str]] = (),
        optimize_graph: bool = False,
        verify: Literal["raise", "warn"] = "raise",
        verbose: int | str = "auto",
        **options: Any,
    ) -> None:
        self.backend = backend
        self.name = str(getattr(model, "name", "model")) if name is None else check_model_name(name)
        self._verbose = check_verbose(verbose)
        self._custom_objects_from = check_custom_sources(custom_objects_from)
        if verify not in ("raise", "warn"):
            raise InvalidInputError(
                unknown_name_message("value of verify", verify, ("raise", "warn"))
            )
        self._allows_difference = verify == "warn"
        self._optimize_graph = check_boolean("optimize_graph", optimize_graph)
        check_precision(
            backend, precision, has_calibration=calibration is not None, int8_formats=INT8_FORMATS
        )
        if samples is not None:
            check_samples(samples)
        # Wrong options are refused before the model is called. The format is made again below if
        # there is calibration data, which needs the model.
        self._chosen = _choose_format(backend, options)
        self._precision = precision
        if input_signature is not None:
            model = with_input_signature(model, input_signature)
        of_format = self._chosen.export_format.own_precisions if self._chosen else ()
        of_layers = None if precision in (INT8, *of_format) else precision
        self._model = NamedModel(model, of_layers)
        self.signature = self._model.signature
        self._data = choose_data(self._model, samples, calibration)
        if self._data.calibration is not None:
            self._chosen = choose_format(backend, options, self._data.calibration)
        if self._chosen is not None:
            self._chosen.export_format.check_signature(self.signature)
            self._chosen.export_format.check_precision(precision)

    def export(self, path: str | os.PathLike[str]) -> ExportReport:
        """Writes the artifact and verifies it.

        Args:
            path: The bundle, a folder; an older bundle there is replaced. A path with the suffix of
                the format (`"model.onnx"`) asks for the file alone. TF Serving loads a SavedModel
                bundle whose folder is named by a number (`"digits/1"`).

        Returns:
            An `ExportReport`.

        Raises:
            ExportError: No route gave an artifact that computes the same. The message names each
                route with its reason, and nothing is left on disk.
            BundleError: Something that is not a bundle stands at `path`, or nothing can be written
                there.
            InvalidInputError: `path` is not a path, or has the suffix of another format.
        """
        started = time.monotonic()
        target = check_artifact_path(path)
        chosen = self._chosen_for(target)
        export_format = chosen.export_format
        as_file = is_one_file(target, export_format)
        with staging_folder(target) as work, StageDisplay(self._verbose) as say:
            folder = work / "artifact"
            folder.mkdir()
            with unchanged_state(self._model.model):
                job = self._job(chosen)
                artifact = make_artifact(
                    optimize_job(job, say) if self._optimize_graph else job, folder, say
                )
            publish(folder, target, self._manifest(export_format, artifact), as_file=as_file)
        report = ExportReport(
            path=target,
            format=export_format.name,
            route=artifact.route,
            verification=artifact.verification,
            passed_over=artifact.passed_over,
            seconds=time.monotonic() - started,
        )
        self._say(str(report))
        if report.verification.state == "failed":
            warnings.warn(f"{report}. Do not serve it.", stacklevel=2)
        return report

    def check(self, path: str | os.PathLike[str]) -> ExportReport:
        """Verifies an existing artifact against the model.

        Args:
            path: The bundle, or the file, that an export wrote.

        Returns:
            An `ExportReport`.

        Raises:
            ExportError: The artifact computes something else (unless `verify="warn"`), or has other
                inputs and outputs than the model.
            BundleError: The bundle is missing or damaged.
            NotSupportedError: It is a TensorRT engine, and no GPU is visible.
        """
        started = time.monotonic()
        target = check_artifact_path(path)
        chosen = self._chosen_for(target)
        export_format = chosen.export_format
        export_format.check_runnable()
        with open_artifact(target, export_format, self.signature) as (folder, manifest):
            precision = self._precision
            if manifest is not None:
                precision = manifest.precision if manifest.precision in PRECISIONS else None
            if precision == INT8 and self._data.has_random_samples:
                raise InvalidInputError(
                    "An int8 artifact is right only for data like its calibration data, and not "
                    "for random batches: pass precision='int8' and calibration=, or samples=."
                )
            job, left_out = fit_samples(replace(self._job(chosen), precision=precision))
            with unchanged_state(self._model.model):
                verification = check_artifact(job, folder)
        report = ExportReport(
            path=target,
            format=export_format.name,
            route=f"checked{left_out}",
            verification=verification,
            passed_over=(),
            seconds=time.monotonic() - started,
        )
        if verification.state == "failed" and not self._allows_difference:
            raise ExportError(f"{report}. Export the model again.")
        self._say(str(report))
        return report

    def load(self, path: str | os.PathLike[str]) -> InferenceFunction:
        """Loads an artifact as a function of a batch's arrays, from and to dicts by name.

        Use it for measurements. To serve, use `ServingEngine`.

        Args:
            path: The bundle, or the file, that an export wrote.

        Returns:
            A function from a dict of arrays by input name to one by output name.

        Raises:
            BundleError: The bundle is missing or damaged.
            ExportError: The runtime does not load it.
            NotSupportedError: It can't be run on this machine, or the format has no `load`.
        """
        target = check_artifact_path(path)
        export_format = self._chosen_for(target).export_format
        with open_artifact(target, export_format, self.signature) as (folder, _):
            try:
                return export_format.load(folder)
            except KerasDeepSeekError:
                raise
            except Exception as error:  # Of any runtime.
                raise ExportError(
                    f"{str(target)!r} can't be loaded as {export_format.name}: "
                    f"{failure_reason(error)}. Export the model again."
                ) from error

    def _chosen_for(self, target: Path) -> ChosenFormat:
        """Returns the export format; for `backend="custom"`, found by the target's suffix."""
        if self._chosen is not None:
            check_suffix(target, self._chosen.export_format)
            return self._chosen
        return ChosenFormat(format_for_suffix(target), None)

    def _job(self, chosen: ChosenFormat) -> ExportJob:
        return ExportJob(
            self._model,
            chosen.export_format,
            chosen.options,
            custom_objects_from=self._custom_objects_from,
            allows_difference=self._allows_difference,
            precision=self._precision,
            source=chosen.source,
            **vars(self._data),
        )

    def _manifest(self, export_format: ExportFormat, artifact: MadeArtifact) -> Manifest:
        return Manifest(
            name=self.name,
            format=export_format.name,
            entry=export_format.entry,
            signature=self.signature,
            precision=self._precision or self._model.model.compute_dtype,
            route=artifact.route,
            versions=installed_versions(export_format.distributions),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            verification=artifact.verification,
        )

    def _say(self, line: str) -> None:
        if self._verbose:
            print(line, flush=True)


def _choose_format(backend: str, options: Mapping[str, Any]) -> ChosenFormat | None:
    """Returns the export format of a name; `None` for `"custom"`, which depends on the path."""
    if backend == "custom":
        check_no_options(backend, options)
        return None
    common_options = inspect.signature(Exporter).parameters.keys() - {"model", "options"}
    return choose_format(backend, options, common_options=common_options)
