"""Opening of an existing artifact, to verify or measure it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.manifest import Manifest
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.errors import ExportError


@contextlib.contextmanager
def open_artifact(
    target: Path, export_format: ExportFormat, signature: Signature
) -> Iterator[tuple[Path, Manifest | None]]:
    """A context manager that opens an artifact, and yields its folder and manifest.

    It checks the artifact's format and signature. The manifest of a file alone is `None`.
    """
    if export_format.suffix and target.is_file():
        with temporary_folder("keras_deepseek_check") as folder:
            shutil.copyfile(target, folder / export_format.entry)
            yield folder, None
        return
    bundle = Bundle.open(target)
    manifest = bundle.manifest
    if manifest.format != export_format.name:
        raise ExportError(
            f"The bundle at {str(target)!r} holds {manifest.format!r}; "
            f"expected {export_format.name!r}. Pass backend={manifest.format!r}."
        )
    if manifest.signature != signature:
        raise ExportError(
            f"The bundle at {str(target)!r} belongs to another model: it has "
            f"{_describe(manifest.signature)}; expected {_describe(signature)}."
        )
    yield bundle.path, manifest


def _describe(signature: Signature) -> str:
    inputs, outputs = (
        "; ".join(map(str, specs)) for specs in (signature.inputs, signature.outputs)
    )
    return f"inputs {inputs} and outputs {outputs}"
