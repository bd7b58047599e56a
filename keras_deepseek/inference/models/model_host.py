"""The models of an engine: loaded, followed in their folders, replaced, found, closed.

`served_model` holds the versions of one, `in_process_engine` sends requests to them.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.inference.arguments import check_count, check_name, check_version
from keras_deepseek.inference.batching.batch_totals import BatchStatistics
from keras_deepseek.inference.batching.loop_delivery import LoopDelivery
from keras_deepseek.inference.batching.turns import Turns
from keras_deepseek.inference.errors import ClosedError, ModelNotFoundError
from keras_deepseek.inference.models.config import follow_configs
from keras_deepseek.inference.models.folder_exchange import FolderExchange
from keras_deepseek.inference.models.model_folder import ModelFolder, Policy, find_versions
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel
from keras_deepseek.inference.monitoring.engine_monitor import EngineMonitor
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig

LEAST_SECONDS = 0.5
"""What each version gets to end: its threads are woken for it, though nothing runs."""


class ModelHost:
    """Holds models by name, and their life: the part of a `ServingEngine` that no request sees.

    Args:
        model: As `ServingEngine` takes it.
        name: string. The name of this model; of several, the first one's is taken.
        version: integer. Its version.
        options: `ModelOptions` of this model, and of others that come without.
        max_concurrent_batches: integer or `None`. Batches that run at the same time.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        version: int,
        options: ModelOptions,
        max_concurrent_batches: int | None,
    ) -> None:
        if max_concurrent_batches is not None:
            check_count("max_concurrent_batches", max_concurrent_batches)
        self._turns = None if max_concurrent_batches is None else Turns(max_concurrent_batches)
        self.name = model[0].name if _is_config(model) else name
        self.options = options
        self.monitor = EngineMonitor(self._is_served)
        self._delivery = LoopDelivery()
        self._models: Mapping[str, ServedModel] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._replacing = threading.Lock()
        self._state: Literal["new", "ready", "closed"] = "new"
        self._folders: list[ModelFolder] = []
        self._first_labels: dict[str, Mapping[str, int]] = {}
        try:
            self._open_first(model, version)
        except BaseException:
            self._close_models()  # What was loaded before may have processes of its own.
            raise

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name."""
        return self._models

    @property
    def folders(self) -> Sequence[ModelFolder]:
        """The folders that are followed."""
        return self._folders

    @property
    def signature(self) -> Signature:
        """The names, shapes and dtypes of the inputs and outputs of the engine's own model."""
        return self.find().signature

    @property
    def ready(self) -> bool:
        """Whether requests are answered: the engine is started and not closing."""
        return self._state == "ready"

    def start(self) -> None:
        """Warms the models up and starts the threads that run it. Nothing is done the second time.

        Raises:
            ClosedError: The engine was closed.
        """
        with self._lock:
            if self._state == "ready":
                return
            self._check_open()
            for served in self._models.values():
                for version in served.versions.values():
                    if version.state != "AVAILABLE":  # Another one may have failed the last time.
                        with self.monitor.loading(served.name):
                            version.start()
                served.set_labels(self._first_labels.get(served.name, {}))
            self._state = "ready"
            for folder in self._folders:
                folder.start()

    def load(
        self,
        model: Any,
        *,
        name: str | None = None,
        version: int | None = None,
        share: float | None = None,
        keep: int | None = 1,
        options: ModelOptions | None = None,
    ) -> ModelVersion:
        """Serves another model, or another version of one, when it is loaded and warm.

        Until then, requests go to the versions that there are, and where it fails nothing has
        changed for them: why is remembered in `ServedModel.failed`, and nothing of the model.
        Afterwards the oldest versions, beyond `keep` others, answer what they have accepted and
        are closed.

        Args:
            model: As in the constructor.
            name: string. Defaults to `None`: the engine's own model.
            version: integer. One that is there is replaced. Defaults to `None`: one more than the
                newest, of those that failed, too.
            share: float from 0 to 1. The part of the requests for this model that go to this
                version while it is on trial (`ServedModel.set_share`). Defaults to `None`: it is
                not on trial, and takes all of them if it is the newest.
            keep: integer. How many versions stay, this one among them and those on trial not.
                Defaults to `1`; `None`: all.
            options: `ModelOptions`. Defaults to `None`: those of the engine.

        Returns:
            The `ModelVersion`.

        Raises:
            InvalidInputError: The model is nothing that can be served, or an argument does not fit.
            ClosedError: The engine was closed.
        """
        if keep is not None:
            check_count("keep", keep)
        self.start()
        name = self.name if name is None else name
        check_name(name)
        with self._loading, self.monitor.loading(name):
            served = self._models.get(name) or ServedModel(name)
            number = max(served.states, default=0) + 1 if version is None else version
            check_version(number, model)
            if share is not None:
                served.check_share(number, share)
            if name not in self._models:
                self._models = {**self._models, name: served}
            replaced = served.versions.get(number)
            loaded = self._load(served, number, model, options or self.options, share)
            if replaced is not None:
                replaced.close()
            for surplus in [] if keep is None else served.surplus(loaded, keep):
                served.remove(surplus)
                surplus.close()
        return loaded

    def follow(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str,
        versions: Policy = 1,
        poll_seconds: float = 1.0,
        options: ModelOptions | None = None,
    ) -> None:
        """Serves the versions that a folder holds, as they come and go.

        Args:
            folder: A path, as `"models/digits"` with the bundles or SavedModels `"models/digits/1"`
                and so on.
            name: string. The model's name.
            versions: integer: the newest so many; `"all"`; or a sequence of numbers. Defaults to
                `1`.
            poll_seconds: float. How long it waits between two looks. Defaults to `1.0`.
            options: `ModelOptions`. Defaults to `None`: those of the engine.

        Raises:
            InvalidInputError: The folder holds none of these versions, or an argument does not fit.
        """
        check_name(name)
        follower = ModelFolder(
            self,
            Path(folder),
            name,
            options or self.options,
            versions=versions,
            poll_seconds=poll_seconds,
        )
        follower.check_not_empty()
        self.start()
        with self._replacing:
            follower.look(at_once=True)
            self._folders = [*self._folders, follower]
            follower.start()

    def replace_folders(
        self, folders: Sequence[ModelFolder], labels: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Serves what these folders hold, and no other model.

        All of it is loaded and warm before anything changes for requests; where that fails,
        nothing does. A folder that is followed already, in the same way, is not loaded again.

        Args:
            folders: sequence of `ModelFolder`, each of a name of its own, none of them empty.
            labels: mapping from each name to versions by label, all of them among those wanted.

        Raises:
            LoadFailedError: A version could not be loaded, or did not warm up. Why is logged.
            ClosedError: The engine was closed.
        """
        self.start()
        with self._replacing:
            paused = [folder for folder in self._folders if folder.pause()]
            try:
                with self._loading:
                    self._check_open()
                    exchange = FolderExchange(self._models, self._folders, folders, labels)
                    exchange.load(self._open)
                    self._models, self._folders = exchange.models, exchange.folders
                    exchange.finish()
            finally:
                for folder in paused:
                    folder.resume()
            for folder in exchange.dropped:
                folder.stop()
            for folder in exchange.changed:
                folder.start()

    def unload(self, name: str | None = None, version: int | None = None) -> None:
        """Closes a version, or all of a model, when what was accepted is answered.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: all of them, and the model with them.

        Raises:
            ModelNotFoundError: There is no such model or version.
        """
        served = self._find_model(name)
        if version is None:
            # Else a new version in its folder would bring it back.
            for folder in self._folders:
                if folder.name == served.name:
                    folder.pause()
        with self._loading:
            served = self._find_model(name)
            if version is None:
                self._models = {key: one for key, one in self._models.items() if one is not served}
            elif version in served.failed and version not in served.versions:
                served.forget_failure(version)
                return
            wanted = served.versions.values() if version is None else [served.find(version)]
            for one in list(wanted):
                served.remove(one)
                one.close()

    def find(
        self, name: str | None = None, version: int | None = None, label: str = ""
    ) -> ModelVersion:
        """Returns the version that a question is about: what it takes, how it does.

        Args:
            name: string. Defaults to `None`: the engine's own model.
            version: integer. Defaults to `None`: the newest that is not on trial. Where a request
                goes, which may be one on trial, `ServedModel.find` says.
            label: string. In place of a version. Defaults to `""`.

        Raises:
            ModelNotFoundError: There is no such model, version or label.
        """
        served = self._find_model(name)
        if version is None and not label:
            return served.newest()
        return served.find(version, label)

    def statistics(self, model: str | None = None, version: int | None = None) -> BatchStatistics:
        """Returns how many batches and rows were run, and why the last batches left.

        Args:
            model: string. The model's name. Defaults to `None`: the engine's own.
            version: integer. Defaults to `None`: the newest that is not on trial.
        """
        return self.find(model, version).statistics()

    def _is_served(self, model: str, version: str) -> bool:
        """Returns whether there is such a version, or such a model where none is named."""
        served = self._models.get(model)
        if served is None or not version:
            return served is not None
        return any(str(number) == version for number in served.versions)

    def _check_open(self) -> None:
        if self._state == "closed":
            raise ClosedError(f"The engine of the model {self.name!r} is closed: make a new one.")

    def _begin_to_close(self) -> bool:
        """Becomes unready; returns whether it was not closed before."""
        with self._lock:
            was_open = self._state != "closed"
            self._state = "closed"
        return was_open

    def _close_models(self, seconds: float | None = None) -> None:
        """Answers what was accepted. No client may change any more which folders are followed.

        With `seconds`, what is not answered by then gets a `ClosedError`.
        """
        until = None if seconds is None else time.monotonic() + seconds
        for folder in self._folders:
            folder.stop()
        with self._loading:
            for served in self._models.values():
                for version in served.versions.values():
                    version.close(
                        None if until is None else max(until - time.monotonic(), LEAST_SECONDS)
                    )

    def _open_first(self, model: Any, version: int) -> None:
        """Loads what the constructor was given."""
        if _is_config(model):
            for folder in follow_configs(self, model):
                self._open_folder(folder)
            self._first_labels = {one.name: one.labels for one in model}
        elif isinstance(model, str | os.PathLike) and find_versions(Path(model)):
            self._open_folder(ModelFolder(self, Path(model), self.name, self.options))
        else:
            opened = self._open(model, self.name, version, self.options)
            self._add_model(self.name).add(opened)

    def _open_folder(self, folder: ModelFolder) -> None:
        served = self._add_model(folder.name)
        for number, path in folder.wanted().items():
            folder.note(number, path)
            served.add(self._open(path, folder.name, number, folder.options))
        self._folders.append(folder)

    def _load(
        self,
        served: ServedModel,
        number: int,
        model: Any,
        options: ModelOptions,
        share: float | None,
    ) -> ModelVersion:
        """Adds a version that is warm; of one that fails, the reason alone stays."""
        loaded = None
        try:
            loaded = self._open(model, served.name, number, options)
            if number not in served.versions:
                served.add(loaded, share)  # So that its status can be asked for.
            loaded.start()
            served.add(loaded, share)
        except BaseException as error:
            served.fail(number, error, loaded)
            if loaded is not None:
                if loaded.state != "END":
                    loaded.close()
                loaded.error = None  # Its traceback would hold the version, and the model with it.
            raise
        return loaded

    def _open(self, model: Any, name: str, number: int, options: ModelOptions) -> ModelVersion:
        check_name(name)
        check_version(number, model)
        return ModelVersion(name, number, model, options, self._delivery.flush, self._turns)

    def _add_model(self, name: str) -> ServedModel:
        served = ServedModel(name)
        self._models = {**self._models, name: served}
        return served

    def _find_model(self, name: str | None) -> ServedModel:
        served = self._models.get(self.name if name is None else name)
        if served is None:
            raise ModelNotFoundError(
                f"There is no model {name or self.name!r}; those served are {list(self._models)}."
            )
        return served


def _is_config(model: Any) -> TypeGuard[Sequence[ModelConfig]]:
    is_list = isinstance(model, list | tuple) and len(model) > 0
    return is_list and all(isinstance(one, ModelConfig) for one in model)
