"""The bundle that `deploy` writes and `inference` serves.

A bundle is a folder with the exported files and `bundle.json`, the manifest. It is filled in a
`staging_folder` beside its place, hashed, and renamed, so that the folder at its path is always
complete. TF Serving can load a SavedModel bundle whose folder is named by a number (`digits/1`).
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from keras_deepseek.artifacts.exchange import flush_to_disk, replace_folder
from keras_deepseek.artifacts.lfs_pointer import check_not_pointer
from keras_deepseek.artifacts.manifest import EXPORT_AGAIN, Manifest
from keras_deepseek.checks import check_path
from keras_deepseek.errors import BundleError

MANIFEST_NAME = "bundle.json"
_LONGEST_POINTER = 1024
"""Bytes of a file that are read to find out whether it is a pointer of Git LFS."""


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
    """Raises a `BundleError` if a bundle can't be written at `path`, before any work is done.

    The path must not be inside a bundle, and hold nothing but an older bundle without foreign
    files.
    """
    target = Path(path)
    outer = next((parent for parent in target.absolute().parents if is_bundle(parent)), None)
    if outer is not None:
        raise BundleError(
            f"{str(target)!r} is inside the bundle {str(outer)!r}. Name a place outside of it."
        )
    if not target.exists() or _is_empty_folder(target):
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


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


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
        raise BundleError(f"Its entry {manifest.entry!r} is outside of it. {EXPORT_AGAIN}")
    present = set(_files(folder))
    missing = sorted(set(manifest.files) - present)
    added = sorted(present - set(manifest.files))
    if missing:
        note = f", and there are others: {added}" if added else ""
        raise BundleError(f"Files are missing: {missing}{note}. {EXPORT_AGAIN}")
    if added:
        raise BundleError(f"It holds files that are not in its manifest: {added}. Remove them.")
    for name, expected in manifest.files.items():
        received = _describe(folder / name)
        if received["bytes"] != expected["bytes"]:
            with (folder / name).open("rb") as file:
                check_not_pointer(folder / name, file.read(_LONGEST_POINTER), BundleError)
            raise BundleError(
                f"{name!r} has {received['bytes']} bytes where {expected['bytes']} were written. "
                f"{EXPORT_AGAIN}"
            )
        if received != dict(expected):
            raise BundleError(f"{name!r} was altered after it was written. {EXPORT_AGAIN}")
