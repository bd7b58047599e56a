"""What a format must offer."""

from pathlib import Path
from typing import Protocol

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.errors import ExportError


class ExportFormat(Protocol):
    """A way to write a model to disk, and to run what was written.

    Args:
        name: string. What users pass as `backend=` and the manifest says.
        suffix: string. The ending of a path that asks for the file alone, as in `".onnx"`; empty
            where an artifact is a folder.
        entry: string. The file inside the bundle that a runtime loads; `"."` for the whole folder.

    A format may have `backends`, a tuple of the names of those that can write it, in the order in
    which they are tried; without it the one that runs is. Others load the model in a process of
    their own, to which a format of the user's is sent by `cloudpickle`. `packages` has by backend
    the modules that it takes to write the format, each with the extra that brings it: where one is
    missing, nothing is begun. It may have a `runtime`, the name of the backend that its `run`
    takes, where not every one will do; `load`, which returns for a folder the function of a batch
    that `run` calls for each: with it latencies are compared; `further_outputs`, a function from
    the model's outputs of a batch to what `run` gives beside them, and `signatures`, the names of
    all that is compared so, for the report; `check_signature`, a function of the model's signature
    that raises an `InvalidInputError`, before any work is done, where the format has no such names
    or shapes; and `check_backend`, a function of the model and of the name of a backend that raises
    a `NotSupportedError` where that is known not to write it, an `InvalidInputError` where none
    does.
    """

    name: str
    suffix: str
    entry: str

    def write(self, model: NamedModel, folder: Path) -> str:
        """Writes the artifact into an empty folder.

        Args:
            model: The model by the names of its inputs and outputs, on the backend that runs.
            folder: Where the artifact goes, under `entry`.

        Returns:
            How it was made, as in `"tf2onnx"`.

        Raises:
            NotSupportedError: This backend can't write the format; another is tried.
            MissingExtraError: A package for it is not installed; another backend is tried.
        """

    def run(self, folder: Path, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Runs the artifact on batches.

        Args:
            folder: What `write` filled.
            samples: For each batch its arrays by input name.

        Returns:
            For each batch the arrays by output name.

        Raises:
            NotSupportedError: It can't be run on this machine; the export is then `unverified` with
                the error's message as the reason.
        """


def run_format(
    export_format: ExportFormat, folder: Path, samples: list[dict[str, Array]]
) -> list[dict[str, Array]]:
    """Returns what `run` gives, which a format of a user's may have forgotten to return.

    Args:
        export_format: `ExportFormat`.
        folder: As in its `run`.
        samples: As in its `run`.

    Raises:
        ExportError: It is no list.
    """
    outputs = export_format.run(folder, samples)
    if not isinstance(outputs, list):
        raise ExportError(
            f"`run` of the format {export_format.name!r} returned {type(outputs).__name__}; "
            "expected a list of outputs by name, one for each batch"
        )
    return outputs
