"""The files of an artifact: a bundle with its manifest, or one file."""

import contextlib
import importlib.metadata
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from keras_deepseek import __version__
from keras_deepseek.artifacts.bundle import (
    Bundle,
    Manifest,
    check_target,
    publish_bundle,
    publish_file,
)
from keras_deepseek.artifacts.export_arguments import check_target_file
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.artifacts.staging_folder import temporary_folder
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.errors import ExportError

_PACKAGES = (
    "keras",
    "numpy",
    "tensorflow",
    "jax",
    "torch",
    "onnx",
    "tf2onnx",
    "onnxscript",
    "onnxruntime",
)


def is_one_file(target: Path, export_format: ExportFormat) -> bool:
    """Returns True if a path asks for the file alone, and checks that one can be written there."""
    is_file = bool(export_format.suffix) and target.name.endswith(export_format.suffix)
    check_target_file(target) if is_file else check_target(target)
    return is_file


def publish(folder: Path, target: Path, manifest: Manifest, *, as_file: bool) -> None:
    """Moves an artifact from its folder to its target, as one file or as a bundle."""
    if not as_file:
        publish_bundle(folder, target, manifest)
        return
    other_files = sorted(path.name for path in folder.iterdir() if path.name != manifest.entry)
    if other_files:
        raise ExportError(
            f"One file, {target.name!r}, can't hold this model: its weights are in "
            f"{', '.join(other_files)}. Pass a folder, as in export({target.stem!r}), for all "
            "files."
        )
    publish_file(folder / manifest.entry, target)


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


def installed_versions(further: Iterable[str] = ()) -> dict[str, str]:
    """Returns the versions of Keras, NumPy, the frameworks, ONNX's packages and further ones.

    Packages that are not installed are left out.
    """
    installed = {"keras_deepseek": __version__, "python": platform.python_version()}
    for package in (*_PACKAGES, *further):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
