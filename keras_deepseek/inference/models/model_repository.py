"""The models of an engine by name: loaded, followed in their folders, replaced, found, closed.

`served_model` holds the versions of one model. `dispatcher` sends requests to them.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

from keras_deepseek.checks import check_integer, check_path
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_name, check_version
from keras_deepseek.inference.batching.delivery import LoopDelivery
from keras_deepseek.inference.batching.fair_scheduler import FairScheduler
from keras_deepseek.inference.errors import ClosedError, LoadFailedError, ModelNotFoundError
from keras_deepseek.inference.models.model_config import ConfigReload, make_folders
from keras_deepseek.inference.models.model_folder import ModelFolder, Policy, find_versions
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.open_version import open_version
from keras_deepseek.inference.models.served_model import ServedModel, ServedModels
from keras_deepseek.inference.models.signature_change import check_signature
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.monitoring.engine_monitor import EngineMonitor
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig

LEAST_SECONDS = 0.5
"""The least time that a version gets to close: its threads must be woken, though nothing runs."""


class ModelRepository:
    """The models that an engine serves, and their life from loading to the end.

    `options` also apply to models that are loaded without options.
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
            check_integer("max_concurrent_batches", max_concurrent_batches)
        self._scheduler = (
            None if max_concurrent_batches is None else FairScheduler(max_concurrent_batches)
        )
        self.name = model[0].name if _is_config(model) else name
        self.options = options
        self.monitor = EngineMonitor(self._is_served)
        self.delivery = LoopDelivery()
        self.models = ServedModels()
        """The served models by name. It is replaced, not changed: reading it needs no lock."""
        self.folders: Sequence[ModelFolder] = []
        """The folders that are followed."""
        self.state: Literal["new", "ready", "closed"] = "new"
        self._lock = threading.Lock()
        """Held while `state` changes."""
        self._loading = threading.Lock()
        """Held while `models` or their versions change."""
        self._replacing = threading.Lock()
        """Held while `folders` changes. It is acquired before `_loading`."""
        self._first_labels: dict[str, Mapping[str, int]] = {}
        """The version labels of each model in a config file, which `start` sets."""
        try:
            self._open_first(model, version)
        except BaseException:
            self.close_models()  # Models that are loaded already may have processes.
            raise

    def start(self) -> None:
        """Warms the models up, starts their threads, and follows their folders. Starts once."""
        with self._lock:
            if self.state == "ready":
                return
            self.check_open()
            for served in self.models.values():
                for version in served.versions.values():
                    if version.state != "AVAILABLE":  # A previous start may have failed halfway.
                        with self.monitor.loading(served.name):
                            version.start()
                served.set_labels(self._first_labels.get(served.name, {}))
            self.state = "ready"
            for folder in self.folders:
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
        keeps_signature: bool = False,
    ) -> Version:
        """Loads a version and serves it, as `ServingEngine.load` says.

        With `keeps_signature` it raises `SignatureChangedError`, and serves what it has served, if
        the requests of clients would become wrong.
        """
        if keep is not None:
            check_integer("keep", keep)
        options = self._check_options(options)
        self.start()
        name = self.name if name is None else name
        check_name(name)
        with self._loading, self.monitor.loading(name):
            served = self.models.get(name) or ServedModel(name)
            number = max(served.states, default=0) + 1 if version is None else version
            number = check_version(number, model)
            if share is not None:
                served.check_share(number, share)
            if name not in self.models:
                self.models = ServedModels({**self.models, name: served})
            replaced = served.versions.get(number)
            loaded = self._load(served, number, model, options, share, keeps_signature)
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
        """Follows a folder: serves its versions, and loads and closes them as it changes."""
        check_name(name)
        follower = ModelFolder(
            self,
            Path(check_path("folder", folder)),
            name,
            self._check_options(options),
            versions=versions,
            poll_seconds=poll_seconds,
        )
        follower.check_not_empty()
        self.start()
        with self._replacing:
            follower.look(at_once=True)
            self.folders = [*self.folders, follower]
            follower.start()

    def replace_folders(
        self, folders: Sequence[ModelFolder], labels: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Serves the models of these folders and no others, or changes nothing on an error."""
        self.start()
        with self._replacing:
            paused = [folder for folder in self.folders if folder.pause()]
            try:
                with self._loading:
                    self.check_open()
                    reload = ConfigReload(self.models, self.folders, folders, labels)
                    reload.load(self._open)
                    self.models, self.folders = reload.models, reload.folders
                    reload.finish()
            finally:
                for folder in paused:
                    folder.resume()
            for folder in reload.dropped:
                folder.stop()
            for folder in reload.changed:
                folder.start()

    def replace_models(self, models: Sequence[ModelConfig]) -> None:
        """Serves these models and no others. On an error nothing changes."""
        labels = {model.name: model.labels for model in models}
        self.replace_folders(make_folders(self, models), labels)

    def load_folder(self, name: str) -> None:
        """Loads the versions in a model's folder. A model without a folder must be served already.

        Raises:
            ModelNotFoundError: No folder is followed for the name, and no such model is served.
            LoadFailedError: No version could be loaded.
        """
        for folder in self.folders:
            if folder.name == name:
                folder.resume(from_scratch=not self._is_available(name))
                folder.look(at_once=True)
        if name not in self.models and all(folder.name != name for folder in self.folders):
            raise ModelNotFoundError(
                f"There is no model {name!r}, and no folder is followed for it."
            )
        if not self._is_available(name):
            raise LoadFailedError(name)

    def unload(self, name: str | None = None, version: int | None = None) -> None:
        """Closes a version, or a whole model, when its accepted requests are answered."""
        served = self.find_model(name)
        if version is None:
            # A new version in the model's folder would bring the model back.
            for folder in self.folders:
                if folder.name == served.name:
                    folder.pause()
        with self._loading:
            served = self.find_model(name)
            if version is None:
                self.models = ServedModels(
                    {key: model for key, model in self.models.items() if model is not served}
                )
            elif version in served.failed and version not in served.versions:
                served.forget_failure(version)
                return
            versions = served.versions.values() if version is None else [served.find(version)]
            for model_version in list(versions):
                served.remove(model_version)
                model_version.close()

    def find(self, name: str | None = None, version: int | None = None, label: str = "") -> Version:
        """Returns the version of a model, by number or label.

        Without a number and a label: the newest that is not on trial.
        """
        served = self.find_model(name)
        if version is None and not label:
            return served.newest()
        return served.find(version, label)

    def find_model(self, name: str | None) -> ServedModel:
        """Returns the model of a name, or the engine's own model for `None`."""
        return self.models[self.name if name is None else name]

    def check_open(self) -> None:
        """Raises a `ClosedError` if the engine was closed."""
        if self.state == "closed":
            raise ClosedError(f"The engine of the model {self.name!r} is closed. Make a new one.")

    def begin_to_close(self) -> bool:
        """Refuses further requests. Returns False if they were refused already."""
        with self._lock:
            was_open = self.state != "closed"
            self.state = "closed"
        return was_open

    def close_models(self, seconds: float | None = None) -> None:
        """Stops following folders, and closes all versions when their requests are answered.

        Requests that are not answered within `seconds` get a `ClosedError`.
        """
        until = None if seconds is None else time.monotonic() + seconds
        for folder in self.folders:
            folder.stop()
        with self._loading:
            for served in self.models.values():
                for version in served.versions.values():
                    version.close(
                        None if until is None else max(until - time.monotonic(), LEAST_SECONDS)
                    )

    def _check_options(self, options: ModelOptions | None) -> ModelOptions:
        if not isinstance(options, ModelOptions | None):
            raise InvalidInputError(
                "`options` must be a `ModelOptions`, as in ModelOptions(max_batch_size=8), or "
                f"None; received {options!r}."
            )
        return self.options if options is None else options

    def _is_available(self, name: str) -> bool:
        versions = self.models[name].versions.values() if name in self.models else ()
        return any(version.state == "AVAILABLE" for version in versions)

    def _is_served(self, model: str, version: str) -> bool:
        """Returns true if a version of a model is served, or any if `version` is empty."""
        served = self.models.get(model)
        if served is None or not version:
            return served is not None
        return any(str(number) == version for number in served.versions)

    def _open_first(self, model: Any, version: int) -> None:
        if _is_config(model):
            for folder in make_folders(self, model):
                self._open_folder(folder)
            self._first_labels = {config.name: config.labels for config in model}
        elif isinstance(model, str | os.PathLike) and find_versions(Path(model)):
            self._open_folder(ModelFolder(self, Path(model), self.name, self.options))
        else:
            opened = self._open(model, self.name, version, self.options)
            self._add_model(self.name).add(opened)

    def _open_folder(self, folder: ModelFolder) -> None:
        served = self._add_model(folder.name)
        for number, path in folder.find_versions_to_serve().items():
            folder.mark_loaded(number, path)
            served.add(self._open(path, folder.name, number, folder.options))
        self.folders = [*self.folders, folder]

    def _load(
        self,
        served: ServedModel,
        number: int,
        model: Any,
        options: ModelOptions,
        share: float | None,
        keeps_signature: bool,
    ) -> Version:
        """Loads, warms up and adds a version of a model. If it fails, only the reason is kept."""
        loaded = None
        replaced = served.find_replaced(number)
        try:
            loaded = self._open(model, served.name, number, options)
            if replaced is not None:
                if keeps_signature:
                    check_signature(replaced, loaded)
                loaded.accept_names_of(replaced)
            if number not in served.versions:
                served.add(loaded, share)  # Clients may ask for its status from now on.
            loaded.start()
            served.add(loaded, share)
        except BaseException as error:
            served.fail(number, error, loaded)
            if loaded is not None:
                if loaded.state != "END":
                    loaded.close()
                loaded.error = None  # The traceback would keep the version and its model alive.
            raise
        return loaded

    def _open(self, model: Any, name: str, number: int, options: ModelOptions) -> Version:
        check_name(name)
        number = check_version(number, model)
        return open_version(name, number, model, options, self.delivery.flush, self._scheduler)

    def _add_model(self, name: str) -> ServedModel:
        served = ServedModel(name)
        self.models = ServedModels({**self.models, name: served})
        return served


def _is_config(model: Any) -> TypeGuard[Sequence[ModelConfig]]:
    """Returns True for the models of a config file, in place of one model or its path."""
    is_list = isinstance(model, list | tuple) and len(model) > 0
    return is_list and all(isinstance(config, ModelConfig) for config in model)
