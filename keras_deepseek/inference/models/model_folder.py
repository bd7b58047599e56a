"""Follows a folder of versions in TF Serving's layout: `digits/1`, `digits/2`, ...

It polls the folder, and calls `ModelRepository` to load new versions and to close removed ones.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from keras_deepseek.artifacts.bundle import is_bundle
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, KerasDeepSeekError
from keras_deepseek.inference.arguments import check_seconds
from keras_deepseek.inference.errors import ClosedError, SignatureChangedError
from keras_deepseek.inference.executors.open_executor import kind_of_model, stamp_of
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.poller import Poller
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.models.version import Version

_logger = logging.getLogger(__name__)

Policy = int | Literal["all"] | Sequence[int]
"""The number of newest versions, `"all"`, or the numbers of the versions."""


def find_versions(folder: Path) -> dict[int, Path]:
    """Returns the version folders in a model's folder, by ascending version number.

    Each is a folder: a bundle, a SavedModel, or one with `model.onnx`. A folder that can't be read
    is included: it may be any of these.
    """
    try:
        children = list(folder.iterdir())
    except OSError:
        return {}
    children_by_number = {int(child.name): child for child in children if child.name.isdecimal()}
    return {
        number: children_by_number[number]
        for number in sorted(children_by_number)
        if children_by_number[number].is_dir() and _may_be_model(children_by_number[number])
    }


def _may_be_model(path: Path) -> bool:
    try:
        next(path.iterdir(), None)  # `kind_of_model` may treat an unreadable folder as empty.
        return kind_of_model(path) is not None
    except OSError:
        return True


class Loader(Protocol):
    """The part of `ModelRepository` that loads and unloads the versions of a folder."""

    options: ModelOptions

    @property
    def models(self) -> Mapping[str, ServedModel]: ...

    def load(
        self,
        model: Path,
        *,
        name: str,
        version: int,
        keep: None,
        options: ModelOptions,
        keeps_signature: bool,
    ) -> Version: ...

    def unload(self, name: str, version: int) -> None: ...


class ModelFolder:
    """Serves the versions in a folder, and loads and closes versions as the folder changes.

    A version that fails is logged, and tried again when a file of its model changes. The last
    served version stays when its folder is removed: a server without a model helps nobody.
    `versions` is the number of newest ones, `"all"`, or a sequence of numbers.
    """

    def __init__(
        self,
        repository: Loader,
        folder: Path,
        name: str,
        options: ModelOptions,
        *,
        versions: Policy = 1,
        poll_seconds: float = 1.0,
    ) -> None:
        _check_policy(versions)
        check_seconds("poll_seconds", poll_seconds)
        self.name = name
        self.folder = folder
        self.options = options
        self._repository = repository
        self._versions = versions
        self._poll_seconds = poll_seconds
        self._loaded_stamps: dict[int, object] = {}
        self._pending_stamps: dict[int, object] = {}
        self._failed: set[int] = set()
        self._looking = threading.Lock()
        self._is_paused = False
        self._poller: Poller | None = None

    def find_versions_to_serve(self) -> dict[int, Path]:
        """Returns the paths of the versions that should be served, by ascending number."""
        present = find_versions(self.folder)
        if self._versions == "all":
            return present
        if isinstance(self._versions, int):
            return {number: present[number] for number in list(present)[-self._versions :]}
        return {number: path for number, path in present.items() if number in self._versions}

    def mark_loaded(self, number: int, path: Path) -> None:
        """Marks a version as loaded, so that polling does not load it again."""
        self._loaded_stamps[number] = stamp_of(path)

    def has_loaded(self, number: int, path: Path) -> bool:
        """Returns true if a version was loaded, and no file of its model has changed since."""
        return number in self._loaded_stamps and self._loaded_stamps[number] == stamp_of(path)

    def check_not_empty(self) -> None:
        """Raises an `InvalidInputError` if the folder holds none of the wanted versions."""
        if not self.find_versions_to_serve():
            raise InvalidInputError(
                f"The folder {str(self.folder)!r} holds none of the versions to serve. Expected "
                f"bundles or SavedModels named by numbers, as {str(self.folder / '1')!r}."
            )

    def follows_same_folder_as(self, other: "ModelFolder") -> bool:
        """Returns true if another follower has the same folder, settings and model."""
        mine, its = (
            (follower.name, follower.folder, follower._versions, follower.options)  # noqa: SLF001
            for follower in (self, other)
        )
        return mine == its

    def loads_alike(self, other: "ModelFolder") -> bool:
        """Returns true if another follower loads the same versions in the same way.

        It may serve others of them.
        """
        return (self.folder, self.options) == (other.folder, other.options)

    def pause(self) -> bool:
        """Waits for a running poll of the folder to end, and ignores the folder until `resume`.

        Returns True if it was not paused before.
        """
        with self._looking:
            was_paused, self._is_paused = self._is_paused, True
        return not was_paused

    def resume(self, *, from_scratch: bool = False) -> None:
        """Resumes polling; `from_scratch` loads versions again that were loaded before."""
        with self._looking:
            self._is_paused = False
            if from_scratch:
                self._loaded_stamps.clear()

    def look(self, *, at_once: bool = False) -> None:
        """Polls the folder: loads new and changed versions, and closes removed ones.

        Does nothing during a pause.

        A changed version that is no bundle, or has failed before, may still be incomplete: files
        are being copied. `at_once` loads it now, instead of waiting until two looks find the same
        files.
        """
        with self._looking:
            if not self._is_paused:
                self._look(self.find_versions_to_serve() if at_once else self._settled())

    def start(self) -> None:
        """Starts a thread that polls the folder regularly."""
        subject = f"the folder {str(self.folder)!r}"
        self._poller = Poller(self.look, self._poll_seconds, subject)
        self._poller.start()

    def stop(self) -> None:
        """Ends the polling thread. Returns when a running poll has ended."""
        if self._poller is not None:
            self._poller.stop()

    def _settled(self) -> dict[int, Path]:
        """Returns the versions to serve, without those whose files are still being copied."""
        versions, previous_stamps = self.find_versions_to_serve(), self._pending_stamps
        self._pending_stamps = {number: stamp_of(path) for number, path in versions.items()}
        return {
            number: path
            for number, path in versions.items()
            if self._appears_complete(number, path)
            or (
                number in previous_stamps
                and self._pending_stamps[number] == previous_stamps[number]
            )
        }

    def _appears_complete(self, number: int, path: Path) -> bool:
        """Returns true for a bundle, unless it failed to load and may be only partly copied."""
        try:
            return number not in self._failed and is_bundle(path)
        except OSError:  # Loading it will report the error.
            return True

    def _look(self, ready: dict[int, Path]) -> None:
        for number, path in ready.items():
            if self.has_loaded(number, path):
                continue
            self.mark_loaded(number, path)
            self._failed.discard(number)
            try:
                self._repository.load(
                    path,
                    name=self.name,
                    version=number,
                    keep=None,
                    options=self.options,
                    keeps_signature=not self.options.accept_changed_signature,
                )
            except ClosedError:
                return
            except SignatureChangedError as error:
                _logger.warning("%s", error)
            # No fault of a model may harm the served versions.
            except Exception as error:
                self._failed.add(number)
                _logger.log(
                    logging.ERROR,
                    "Version %d of the model %r failed: %s",
                    *(number, self.name, error),
                    exc_info=not isinstance(error, KerasDeepSeekError),
                )
            else:
                _logger.info("Version %d of the model %r is served.", number, self.name)
        self._close_removed(self.find_versions_to_serve())

    def _close_removed(self, versions: dict[int, Path]) -> None:
        served = self._repository.models.get(self.name)
        if served is None:
            return
        available = {
            number for number, version in served.versions.items() if version.state == "AVAILABLE"
        }
        if not available & set(versions):
            return
        for number in self._loaded_stamps.keys() - versions.keys():
            del self._loaded_stamps[number]
            failed = served.failed.get(number)
            if failed is not None and failed.is_waiting:
                _logger.info("Version %d of %r was removed while it waited.", number, self.name)
            if number in served.states:
                self._repository.unload(self.name, number)


def _check_policy(versions: Policy) -> None:
    if versions == "all":
        return
    if isinstance(versions, Sequence) and not isinstance(versions, str) and versions:
        for number in versions:
            check_integer("versions", number)
        return
    if isinstance(versions, int):
        check_integer("versions", versions)
        return
    raise InvalidInputError(
        f"Received versions={versions!r}. Expected the number of newest versions, 'all', or a list "
        "of version numbers."
    )
