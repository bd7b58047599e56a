"""Follows a folder of versions, laid out as TF Serving has them: `digits/1`, `digits/2`, ...

A version is served when its model has come, in place of an older one, and one whose model has
gone is closed. `ModelRepository` does both; a `ModelFolder` polls the folder to find what to do.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from keras_deepseek.artifacts.bundle import is_bundle
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_count, check_seconds
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.executors.model_path import kind_of_model, stamp_of
from keras_deepseek.inference.models.model_options import ModelOptions

if TYPE_CHECKING:
    from keras_deepseek.inference.models.model_repository import ModelRepository

_logger = logging.getLogger(__name__)

Policy = int | Literal["all"] | Sequence[int]
"""The newest so many versions, all that there are, or those of these numbers."""


def find_versions(folder: Path) -> dict[int, Path]:
    """Returns the models in a folder whose names are numbers, by rising number.

    Each is a folder: a bundle, a SavedModel, or one with `model.onnx`; or one that can't be read,
    since it may be any of these.
    """
    try:
        children = list(folder.iterdir())
    except OSError:
        return {}
    found = {int(child.name): child for child in children if child.name.isdecimal()}
    return {
        number: found[number]
        for number in sorted(found)
        if found[number].is_dir() and _may_be_model(found[number])
    }


def _may_be_model(path: Path) -> bool:
    try:
        next(path.iterdir(), None)  # `kind_of_model` alone may take what it can't read for empty.
        return kind_of_model(path) is not None
    except OSError:
        return True


class ModelFolder:
    """Serves the versions that a folder holds, as they come and go.

    A version that fails is logged, and tried again when any file of its model has changed. The last
    one that is served stays, though its folder has gone: a server without a model helps nobody.

    Args:
        repository: `ModelRepository`.
        folder: `pathlib.Path`.
        name: string. The model's name.
        options: `ModelOptions` of each version.
        versions: integer: the newest so many; `"all"`; or a sequence of numbers. Defaults to `1`.
        poll_seconds: float. How long it waits between two looks. Defaults to `1.0`.

    Raises:
        InvalidInputError: `versions` is none of these.
    """

    def __init__(
        self,
        repository: "ModelRepository",
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
        self._seen: dict[int, object] = {}
        self._coming: dict[int, object] = {}
        self._failed: set[int] = set()
        self._trouble = ""
        self._stop = threading.Event()
        self._looking = threading.Lock()
        self._is_paused = False
        self._thread: threading.Thread | None = None

    def wanted(self) -> dict[int, Path]:
        """Returns the models that should be served, by rising number."""
        present = find_versions(self.folder)
        if self._versions == "all":
            return present
        if isinstance(self._versions, int):
            return {number: present[number] for number in list(present)[-self._versions :]}
        return {number: path for number, path in present.items() if number in self._versions}

    def note(self, number: int, path: Path) -> None:
        """Remembers a version that is served already.

        Args:
            number: integer.
            path: `pathlib.Path` of its model.
        """
        self._seen[number] = stamp_of(path)

    def check_not_empty(self) -> None:
        """Refuses a folder that has nothing to serve.

        Raises:
            InvalidInputError: It holds none of the versions that are wanted.
        """
        if not self.wanted():
            raise InvalidInputError(
                f"The folder {str(self.folder)!r} holds no version that is wanted: expected "
                f"bundles or SavedModels named by numbers, as {str(self.folder / '1')!r}."
            )

    def is_like(self, other: "ModelFolder") -> bool:
        """Returns whether two follow the same folder in the same way, for the same model."""
        mine, its = (
            (one.name, one.folder, one._versions, one.options)  # noqa: SLF001
            for one in (self, other)
        )
        return mine == its

    def pause(self) -> bool:
        """Changes nothing until `resume`; returns, when a look that goes on has ended, if it did.

        Returns:
            Whether it was not paused before.
        """
        with self._looking:
            was_paused, self._is_paused = self._is_paused, True
        return not was_paused

    def resume(self, *, from_scratch: bool = False) -> None:
        """Ends a pause.

        Args:
            from_scratch: boolean. Whether to load what was loaded before. Defaults to `False`.
        """
        with self._looking:
            self._is_paused = False
            if from_scratch:
                self._seen.clear()

    def look(self, *, at_once: bool = False) -> None:
        """Loads what has come or changed, and closes what has gone; nothing in a pause.

        Args:
            at_once: boolean. Whether to load also what is another than in the look before, and is
                no bundle or has failed: files of it may still be on their way, where a bundle comes
                as a whole. Defaults to `False`.
        """
        with self._looking:
            if not self._is_paused:
                self._look(self.wanted() if at_once else self._settled())

    def start(self) -> None:
        """Looks from now on, on a thread of its own."""
        self._thread = threading.Thread(target=self._work, name="model-folder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Looks no more; returns when a look that goes on has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.look()
            # Whatever a look meets, a disk that is away among it, the next one may find it mended.
            except Exception as error:
                trouble = f"{type(error).__name__}: {error}"
                if trouble != self._trouble:
                    _logger.exception("Can't look at the folder %r.", str(self.folder))
                self._trouble = trouble
            else:
                self._trouble = ""

    def _settled(self) -> dict[int, Path]:
        """Returns the models that should be served, without those that still come."""
        wanted, before = self.wanted(), self._coming
        self._coming = {number: stamp_of(path) for number, path in wanted.items()}
        return {
            number: path
            for number, path in wanted.items()
            if self._comes_whole(number, path)
            or (number in before and self._coming[number] == before[number])
        }

    def _comes_whole(self, number: int, path: Path) -> bool:
        """Whether it can be loaded at once; a bundle that has failed may have come in parts."""
        try:
            return number not in self._failed and is_bundle(path)
        except OSError:  # Then loading it says so.
            return True

    def _look(self, ready: dict[int, Path]) -> None:
        for number, path in ready.items():
            stamp = stamp_of(path)
            if number in self._seen and self._seen[number] == stamp:
                continue
            self._seen[number] = stamp
            self._failed.discard(number)
            try:
                self._repository.load(
                    path, name=self.name, version=number, keep=None, options=self.options
                )
            except ClosedError:
                return
            # Whatever a model does, the versions that are served go on.
            except Exception:
                self._failed.add(number)
                _logger.exception("Version %d of the model %r failed.", number, self.name)
            else:
                _logger.info("Version %d of the model %r is served.", number, self.name)
        self._close_others(self.wanted())

    def _close_others(self, wanted: dict[int, Path]) -> None:
        served = self._repository.models.get(self.name)
        if served is None:
            return
        available = {
            number for number, version in served.versions.items() if version.state == "AVAILABLE"
        }
        if not available & set(wanted):
            return
        for number in self._seen.keys() - wanted.keys():
            del self._seen[number]
            if number in served.states:
                self._repository.unload(self.name, number)
                _logger.info("Version %d of the model %r is closed.", number, self.name)


def _check_policy(versions: Policy) -> None:
    if versions == "all":
        return
    if isinstance(versions, Sequence) and not isinstance(versions, str) and versions:
        for number in versions:
            check_count("versions", number)
        return
    if isinstance(versions, int):
        check_count("versions", versions)
        return
    raise InvalidInputError(
        f"Received versions={versions!r}. Expected how many of the newest, 'all', or a list of "
        "numbers."
    )
