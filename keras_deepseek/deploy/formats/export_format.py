"""The abstract base class of export formats, which write artifacts and run them."""

# ruff: noqa: B027 - the checks are hooks, and pass by default.

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, InferenceFunction, Signature
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.errors import ExportError, NotSupportedError

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each input of one batch, by input name."""


class ExportFormat(ABC):
    """A way to write a model to disk, and to run the written artifact.

    A subclass sets `name`, `suffix` and `entry` and defines `write` and `run`. All other members
    have defaults. An object that is no subclass, but has these five members, may be registered as
    well: `register_exporter` gives it the defaults.

    Attributes:
        name: string. The name that users pass to `Exporter`. The manifest holds it, too.
        suffix: string. The ending of a path that asks for the file alone, as in `".onnx"`; empty
            where an artifact is a folder.
        entry: string. The file inside the bundle that a runtime loads; `"."` for the whole folder.
        backends: tuple of strings. The Keras backends that can write the format, in the order in
            which they are tried. A backend other than the running one loads the model in a process
            of its own, to which a registered format is sent by `cloudpickle`. Defaults to `()`: the
            running backend alone.
        writes_programs: boolean. Whether `write_program` is defined: the format can be written from
            the traced operations of a model, by no backend's exporter. That is tried first, in this
            process; then the running backend, or the first of `backends` if it is none of them.
            Defaults to `False`.
        packages: dict. For each backend the modules that writing needs, each with the extra that
            brings it; for `"program"` those of `write_program`. Where a module is missing, that way
            is skipped. Defaults to `{}`.
        distributions: tuple of strings. Packages whose versions the manifest records, beside those
            of Keras, the frameworks and ONNX. Defaults to `()`.
        runtime: string. The backend that `run` needs. Defaults to `""`: any.
        signatures: tuple of strings. The names of all signatures that `run` compares, for the
            report. Defaults to `()`.
        source: string. The built-in format that this one is built from, as `"onnx"`. The source is
            exported and verified first; `build` then makes the artifact from its file, and `write`
            is not called. Options that are no arguments of this format go to the source. Defaults
            to `""`: a backend writes the format itself.
        source_options: dict. Options that the source is made with in any case. Defaults to `{}`.
        own_precisions: tuple of strings. The precisions that `build` makes from a source in the
            model's own; with `"int8"` the class takes `calibration`. Defaults to `()`: the source
            is made in the requested precision.

    Example:

    >>> from keras_deepseek.deploy import ExportFormat, register_exporter
    >>> class WeightCount(ExportFormat):
    ...     name, suffix, entry = "weight_count", ".txt", "weights.txt"
    ...
    ...     def write(self, model, folder):
    ...         (folder / self.entry).write_text(str(model.model.count_params()))
    ...         return "counting"
    ...
    ...     def run(self, folder, samples):
    ...         raise NotSupportedError("A number can't be run.")
    >>> register_exporter(WeightCount())
    """

    name: str
    suffix: str
    entry: str
    backends: tuple[str, ...] = ()
    writes_programs: bool = False
    packages: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    distributions: tuple[str, ...] = ()
    runtime: str = ""
    signatures: tuple[str, ...] = ()
    source: str = ""
    source_options: Mapping[str, Any] = MappingProxyType({})
    own_precisions: tuple[str, ...] = ()

    @abstractmethod
    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes the artifact into an empty folder.

        Args:
            model: The model by the names of its inputs and outputs, on the running backend.
            folder: The folder in which the artifact goes under `entry`.

        Returns:
            A string that says how it was made, as in `"tf2onnx"`.

        Raises:
            NotSupportedError: This backend can't write the format; another is tried.
            MissingExtraError: A package for it is not installed; another backend is tried.
        """

    def write_program(self, model: NamedModel, batch: dict[str, Array], folder: Path) -> str:
        """Writes the artifact from the traced operations of the model, if `writes_programs` is set.

        Args:
            model: The model by the names of its inputs and outputs, on the running backend.
            batch: Arrays by input name, like which the model is traced.
            folder: The empty folder in which the artifact goes under `entry`.

        Returns:
            A string that says how it was made.

        Raises:
            NotSupportedError: The model has an operation that the format can't write; a backend's
                exporter is tried.
        """
        raise NotSupportedError(f"The format {self.name!r} is not written from operations.")

    @abstractmethod
    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the artifact on batches.

        `write` must put all that `run` needs into the folder, such as the precision. A format that
        Keras runs can use `backend.current().inference.plain_inference(named_model)`.

        Args:
            folder: The folder that `write` filled.
            samples: For each batch its arrays by input name.

        Returns:
            For each batch the arrays by output name.

        Raises:
            NotSupportedError: It can't be run on this machine; the export is then `unverified` with
                the error's message as the reason.
        """

    def load(self, folder: Path) -> InferenceFunction:
        """Loads the artifact as a function of one batch, which `Exporter.load` returns.

        Args:
            folder: The folder that `write` filled.

        Returns:
            A function from a dict of arrays by input name to one by output name.

        Raises:
            NotSupportedError: The format defines no `load`, as by default.
        """
        raise NotSupportedError(f"The format {self.name!r} has no `load`.")

    def build(
        self, source_file: Path, folder: Path, signature: Signature, precision: str | None
    ) -> str:
        """Builds the artifact from that of `source`; called only for a format that has one.

        It runs by the first of `backends`: if that is not the running one, in its own process.

        Args:
            source_file: The verified file of the source.
            folder: The empty folder in which the artifact goes under `entry`.
            signature: `Signature` of the model.
            precision: string. The artifact's, or `None` for the model's own.

        Returns:
            A string that says how it was made.

        Raises:
            ExportError: The artifact can't be built from this file.
        """
        raise NotSupportedError(f"The format {self.name!r} has no `build`, which `source` needs.")

    def check_signature(self, signature: Signature) -> None:
        """Checks the model's inputs and outputs, before any work is done; all pass by default.

        Args:
            signature: `Signature` of the model.

        Raises:
            InvalidInputError: The format has no such names, shapes or dtypes.
        """

    def check_precision(self, precision: str | None) -> None:
        """Checks the requested precision, before any work is done; all pass by default.

        Args:
            precision: string. One of `"float16"`, `"bfloat16"` and `"int8"`, or `None` for the
                model's own.

        Raises:
            InvalidInputError: The format, as it was made, has no such precision.
        """

    def check_backend(self, model: NamedModel, name: str) -> None:
        """Checks that a backend can write a model; all can by default.

        Args:
            model: The model by the names of its inputs and outputs.
            name: string. The name of the backend, or `"program"` for `write_program`.

        Raises:
            NotSupportedError: This backend can't; the next one is tried.
            InvalidInputError: No backend can.
        """

    def check_runnable(self) -> None:
        """Checks that this machine can run artifacts of the format; it can by default.

        Raises:
            NotSupportedError: It can't. An export is then `unverified`, and a check is refused.
        """

    def further_outputs(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """Computes the expected values of the outputs that `run` adds to the model's own.

        Args:
            outputs: The model's outputs of one batch, by name.

        Returns:
            A dict of arrays by the names that `run` gives them. Empty by default.
        """
        return {}

    def operators_losing_nan(self, folder: Path) -> Sequence[str]:
        """Returns the artifact's operators that may turn NaN or infinity into other numbers.

        Args:
            folder: The folder that `write` or `build` filled.

        Returns:
            Their names, for the report of an artifact that differs there. Empty by default.
        """
        return ()

    def sample_shapes(self, signature: Signature) -> Sequence[Shapes]:
        """Returns the shapes of the random batches that an artifact is to be verified on.

        Args:
            signature: `Signature` of the model.

        Returns:
            For each batch its shapes by input name. Empty by default: the exporter chooses.
        """
        return ()

    def takes(self, signature: Signature, shapes: Shapes) -> bool:
        """Returns whether an artifact takes a batch; batches that it doesn't are left out.

        Args:
            signature: `Signature` of the model.
            shapes: The batch's shapes by input name.

        Returns:
            A boolean. `True` by default.
        """
        return True


def run_format(
    export_format: ExportFormat, folder: Path, samples: list[dict[str, Array]]
) -> list[dict[str, Array]]:
    """Runs an artifact; raises an `ExportError` if a user's `run` returns something else."""
    outputs = export_format.run(folder, samples)
    received = type(outputs).__name__
    if isinstance(outputs, list):
        wrong = [batch for batch in outputs if not _is_array_dict(batch)]
        if not wrong and len(outputs) == len(samples):
            return outputs
        received = f"a list with {wrong[0]!r:.100}" if wrong else f"{len(outputs)} batches"
    raise ExportError(
        f"`run` of the format {export_format.name!r} returned {received}; expected a list with a "
        f"dict of NumPy arrays by output name for each of the {len(samples)} batches"
    )


def _is_array_dict(outputs: Any) -> bool:
    return isinstance(outputs, dict) and all(
        isinstance(value, np.ndarray | np.generic) for value in outputs.values()
    )
