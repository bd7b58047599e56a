"""The bundle that `deploy` writes and `inference` serves.

A bundle is a folder with the exported files and `bundle.json`, its manifest. It is filled in a
`staging_folder` beside its place, hashed, and renamed, so that the folder at its path is always
complete. TF Serving can load a SavedModel bundle whose folder is named by a number (`digits/1`).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from keras_deepseek.artifacts.lfs_pointer import check_not_pointer
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.artifacts.staging_folder import flush_to_disk, replace_folder
from keras_deepseek.checks import check_path
from keras_deepseek.errors import BundleError

MANIFEST_NAME = "bundle.json"
_LONGEST_POINTER = 1024
"""Bytes of a file that are read to find out whether it is a pointer of Git LFS."""

_EXPORT_AGAIN = "Export it again, or copy the whole folder again."

FORM = 4
"""The version of the manifest that this release writes. A higher version is refused."""

ALIKE = "alike"
"""The value of `Verification.nonfinite` for an artifact that does as the model."""


@dataclass(frozen=True)
class Verification:
    """The state of an artifact: whether it was seen to compute what its model computes.

    Args:
        state: `"verified"`, or `"unverified"` or `"failed"` with a reason. A failed artifact is
            written only with `verify="warn"`.
        reason: string. Why it is not verified. Defaults to `""`: it is.
        num_samples: integer. The number of compared batches. Defaults to `0`.
        largest_difference: float. The largest absolute difference of any output of any sample.
            Defaults to `0.0`.
        agreement: dict. For an artifact of less precision, how close each output is to the model's,
            by output name: its relative error, and the share of rows with the same largest value.
            Defaults to an empty dict.
        signatures: tuple of strings. The compared signatures of a SavedModel, as in
            `("serving_default", "serving_classify")`. Defaults to `()`: the artifact is one
            function.
        nonfinite: string. The comparison of outputs for NaN and infinities in the inputs:
            `"alike"`, or the difference, which fails no export. Defaults to `""`: not compared.
    """

    state: Literal["verified", "unverified", "failed"]
    reason: str = ""
    num_samples: int = 0
    largest_difference: float = 0.0
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    signatures: tuple[str, ...] = ()
    nonfinite: str = ""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Verification":
        """Returns the verification that a manifest holds."""
        fields = {**content}
        return cls(**{**fields, "signatures": tuple(fields.get("signatures", ()))})


@dataclass(frozen=True)
class Manifest:
    """The names, shapes, origin and state of the content of a bundle.

    Args:
        name: string. The model's name.
        format: string. The name of the export format, as in `"onnx"`.
        entry: string. The file to load, relative to the bundle; `"."` for the whole folder.
        signature: `Signature`.
        precision: string. The dtype that the artifact computes in.
        route: string. How it was made, as in `"tf2onnx in a TensorFlow process"`.
        versions: dict. The versions of the packages that were installed, by name.
        created: string. When it was made: ISO 8601, UTC.
        verification: `Verification`.
        files: dict. For each file its `sha256` and its size in `bytes`; filled in when it is
            written. Defaults to an empty dict.
    """

    name: str
    format: str
    entry: str
    signature: Signature
    precision: str
    route: str
    versions: Mapping[str, str]
    created: str
    verification: Verification
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the text of `bundle.json`, which includes a hash of its own content."""
        content = {
            "form": FORM,
            "name": self.name,
            "format": self.format,
            "entry": self.entry,
            "signature": self.signature.to_dict(),
            "precision": self.precision,
            "route": self.route,
            "versions": dict(self.versions),
            "created": self.created,
            "verification": vars(self.verification),
            "files": {name: dict(self.files[name]) for name in sorted(self.files)},
        }
        return json.dumps({**content, "sha256": _seal(content)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads the text that `to_json` returned.

        Args:
            text: string. The content of a `bundle.json`.

        Returns:
            A `Manifest`.

        Raises:
            BundleError: The text is incomplete, was changed, or is of a newer version.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise BundleError(
                f"The manifest is incomplete, or not JSON: {error}. {_EXPORT_AGAIN}"
            ) from error
        if not isinstance(content, dict) or not {"sha256", "form"} <= content.keys():
            raise BundleError(
                "The manifest is not one of keras_deepseek, which have the fields `form` and "
                f"`sha256`. {_EXPORT_AGAIN}"
            )
        seal, form = content.pop("sha256"), content.pop("form")
        if not isinstance(form, int) or form > FORM:
            raise BundleError(
                f"The manifest has version {form}; this release reads versions up to {FORM}. "
                "Upgrade keras_deepseek."
            )
        if seal != _seal({"form": form, **content}):
            raise BundleError(f"The manifest was altered after it was written. {_EXPORT_AGAIN}")
        try:
            return cls(
                **{
                    **content,
                    "signature": Signature.from_dict(content["signature"]),
                    "verification": Verification.from_dict(content["verification"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise BundleError(
                f"A field of the manifest is missing or wrong: {error}. {_EXPORT_AGAIN}"
            ) from error


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were checked against its manifest.

    Args:
        path: `pathlib.Path` of the folder.
        manifest: `Manifest`.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Opens the bundle at `path`, and checks all of its files against the manifest.

        Args:
            path: The folder.

        Returns:
            A `Bundle`.

        Raises:
            BundleError: There is no bundle, or a file of it is missing or was changed or added. The
                message names the file.
        """
        folder = Path(check_path("path", path))
        try:
            text = (folder / MANIFEST_NAME).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = f"it has no {MANIFEST_NAME} that can be read"
            if not folder.is_dir():
                reason = "that is a file" if folder.exists() else "nothing is there"
            raise BundleError(
                f"No bundle at {str(folder)!r}: {reason}. Expected the folder that an export wrote."
            ) from error
        try:
            manifest = Manifest.from_json(text)
            _check_files(folder, manifest)
        except BundleError as error:
            raise BundleError(f"The bundle at {str(folder)!r} is refused. {error}") from error
        return cls(folder, manifest)

    @property
    def entry(self) -> Path:
        """The file or folder that a runtime loads."""
        return self.path / self.manifest.entry


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Returns whether the folder at `path` has the manifest of a bundle.

    Args:
        path: A folder; it may be missing.
    """
    return (Path(path) / MANIFEST_NAME).is_file()


def check_target(path: str | os.PathLike[str]) -> None:
    """Raises a `BundleError` if a bundle can't be written at `path`. Call it before any work.

    The path must not be inside a bundle, and hold nothing but an older bundle without foreign
    files.
    """
    target = Path(path)
    outer = next((parent for parent in target.absolute().parents if is_bundle(parent)), None)
    if outer is not None:
        raise BundleError(
            f"{str(target)!r} is inside the bundle {str(outer)!r}. Name a place outside of it."
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    foreign = _foreign_files(target)
    if foreign is None:
        raise BundleError(
            f"{str(target)!r} exists and is not a bundle, so it is not replaced. "
            "Name a new folder, or remove it first."
        )
    if foreign:
        raise BundleError(
            f"The bundle at {str(target)!r} holds files that are not its own, so it is not "
            f"replaced: {foreign}. Move them, or name a new folder."
        )


def publish_bundle(folder: Path, path: str | os.PathLike[str], manifest: Manifest) -> Bundle:
    """Writes the manifest into a staging folder and moves it to `path`, replacing an older bundle.

    Fills in the manifest's `files`.
    """
    target = Path(path)
    check_target(target)
    sealed = replace(manifest, files={name: _describe(folder / name) for name in _files(folder)})
    try:
        (folder / MANIFEST_NAME).write_text(sealed.to_json(), encoding="utf-8")
        for name in (*sealed.files, MANIFEST_NAME):
            flush_to_disk(folder / name)
        replace_folder(folder, target)
        flush_to_disk(target.parent)
    except OSError as error:
        raise BundleError(f"The bundle {str(target)!r} can't be written: {error}.") from error
    return Bundle(target, sealed)


def publish_file(file: Path, path: str | os.PathLike[str]) -> None:
    """Flushes a file of `staging_folder(path)` to the disk, then moves it to `path`."""
    target = Path(path)
    try:
        flush_to_disk(file)
        file.replace(target)
        flush_to_disk(target.parent)
    except OSError as error:
        raise BundleError(f"The file {str(target)!r} can't be written: {error}.") from error


def _foreign_files(folder: Path) -> list[str] | None:
    """Returns the files that a bundle's manifest does not name; `None` if there is no bundle."""
    try:
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BundleError):
        return None
    return sorted(set(_files(folder, hidden=True)) - set(manifest.files))


def _files(folder: Path, hidden: bool = False) -> list[str]:
    """Returns the names of all files below `folder` except the manifest, with forward slashes."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [
        name.as_posix()
        for name in names
        if name.as_posix() != MANIFEST_NAME
        and (hidden or not any(part.startswith(".") for part in name.parts))
    ]


def _describe(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


def _check_files(folder: Path, manifest: Manifest) -> None:
    if not (folder / manifest.entry).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"Its entry {manifest.entry!r} is outside of it. {_EXPORT_AGAIN}")
    present = set(_files(folder))
    missing = sorted(set(manifest.files) - present)
    added = sorted(present - set(manifest.files))
    if missing:
        note = f", and there are others: {added}" if added else ""
        raise BundleError(f"Files are missing: {missing}{note}. {_EXPORT_AGAIN}")
    if added:
        raise BundleError(f"It holds files that are not in its manifest: {added}. Remove them.")
    for name, expected in manifest.files.items():
        received = _describe(folder / name)
        if received["bytes"] != expected["bytes"]:
            with (folder / name).open("rb") as file:
                check_not_pointer(folder / name, file.read(_LONGEST_POINTER), BundleError)
            raise BundleError(
                f"{name!r} has {received['bytes']} bytes where {expected['bytes']} were written. "
                f"{_EXPORT_AGAIN}"
            )
        if received != dict(expected):
            raise BundleError(f"{name!r} was altered after it was written. {_EXPORT_AGAIN}")
