"""TF Serving's model config, which lists models and their folders, and the change to another one.

An engine starts with such a file, or receives a config over gRPC.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_name
from keras_deepseek.inference.errors import LoadFailedError
from keras_deepseek.inference.models.model_folder import Loader, ModelFolder, Policy
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.served_model import ServedModel, ServedModels
from keras_deepseek.inference.models.version import Version
from keras_deepseek.inference.protocols.tf_serving_model_service import (
    ModelConfig,
    parse_config_text,
)

_logger = logging.getLogger(__name__)

Open = Callable[[Path, str, int, ModelOptions], Version]


def read_model_config(path: str | os.PathLike[str]) -> tuple[ModelConfig, ...]:
    """Reads a model config: the file that TF Serving takes as `--model_config_file`.

    Args:
        path: The path of a text file: a `ModelServerConfig` with a `model_config_list`.

    Returns:
        A tuple of `ModelConfig`, for `ServingEngine`.

    Raises:
        InvalidInputError: The file can't be read, is no such message, or lists no model.
        MissingExtraError: `protobuf` is not installed.

    Example:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from keras_deepseek.inference import read_model_config
    >>> text = 'model_config_list { config { name: "digits" base_path: "/models/digits" } }'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "models.config"
    ...     number = path.write_text(text)
    ...     [config] = read_model_config(path)
    >>> config.name
    'digits'
    """
    try:
        models = parse_config_text(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidInputError) as error:
        raise InvalidInputError(
            f"Can't read the model config {os.fspath(path)!r}: {error}"
        ) from error
    if not models:
        raise InvalidInputError(
            f"The model config {os.fspath(path)!r} lists no model. Expected at least one."
        )
    return models


class ModelConfigFile:
    """The file of a model config that is served, for a `Poller`.

    Args:
        path: The path of the file.
        models: The models that it listed.
        replace: Function that serves the models of a changed file, and no others. If it raises an
            error, it is called again at the next look.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        models: Sequence[ModelConfig],
        replace: Callable[[Sequence[ModelConfig]], None],
    ) -> None:
        self._path = path
        self._models = models
        self._replace = replace

    def look(self) -> None:
        """Reads the file again. If it lists other models, these are served."""
        models = read_model_config(self._path)
        if models != self._models:
            self._replace(models)
            self._models = models
            _logger.info("The models of the changed config %r are served.", os.fspath(self._path))


def make_folders(repository: Loader, models: Sequence[ModelConfig]) -> list[ModelFolder]:
    """Returns a `ModelFolder` for each model. It does not begin to follow them."""
    return [_make_folder(repository, model) for model in models]


def _make_folder(repository: Loader, model: ModelConfig) -> ModelFolder:
    check_name(model.name)
    policies: dict[str, Policy] = {
        "latest": model.num_versions,
        "all": "all",
        "specific": model.versions,
    }
    folder = ModelFolder(
        repository,
        Path(model.base_path),
        model.name,
        repository.options,
        versions=policies[model.policy],
    )
    folder.check_not_empty()
    present = folder.find_versions_to_serve()
    for label, number in model.labels.items():
        if number not in present:
            raise InvalidInputError(
                f"The label {label!r} of the model {model.name!r} names version {number}. Expected "
                f"one of the wanted versions {list(present)}."
            )
    return folder


class ConfigReload:
    """The change from one set of followed folders to another. Only `finish` changes what is served.

    The current `folders` are paused. `labels` maps each model's name to versions by label. Versions
    that are served already, and whose files have not changed, are not loaded again.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        folders: Sequence[ModelFolder],
        new_folders: Sequence[ModelFolder],
        labels: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._old_models = models
        self._old_folders = {folder.name: folder for folder in folders}
        self._labels = labels
        reusable = [
            folder
            for folder in folders
            if _has_labelled_versions(models.get(folder.name), labels.get(folder.name, {}))
        ]
        like = {folder.name: _find_same(folder, reusable) for folder in new_folders}
        self.changed = [folder for folder in new_folders if like[folder.name] is None]
        self.folders = [like[folder.name] or folder for folder in new_folders]
        self.dropped = [folder for folder in folders if folder not in self.folders]
        self.models = ServedModels(
            {
                folder.name: models[folder.name]
                for folder in self.folders
                if folder not in self.changed
            }
        )

    def load(self, open_version: Open) -> None:
        """Loads and warms up the new versions in folders that are followed in another way.

        If a version fails, closes those that are loaded and raises `LoadFailedError`.
        """
        loaded: list[Version] = []
        for folder in self.changed:
            served = ServedModel(folder.name)
            try:
                for number, path in folder.find_versions_to_serve().items():
                    folder.mark_loaded(number, path)
                    version = self._find_served(folder, number, path)
                    if version is None:
                        version = open_version(path, folder.name, number, folder.options)
                        loaded.append(version)
                        if folder.name in self._old_models:
                            version.accept_names_of(self._old_models[folder.name].newest())
                        version.start()
                    served.add(version)
                served.set_labels(self._labels[folder.name])
            # No fault of a bundle may harm the served versions.
            except Exception as error:
                for version in loaded:  # The failed one, too: it may have processes.
                    version.close()
                _logger.exception("The folder %r could not be loaded.", str(folder.folder))
                raise LoadFailedError(folder.name) from error
            self.models[folder.name] = served

    def _find_served(self, folder: ModelFolder, number: int, path: Path) -> Version | None:
        """Returns the version of a new folder that is served already, if there is one."""
        old, served = self._old_folders.get(folder.name), self._old_models.get(folder.name)
        if old is None or served is None or not folder.loads_alike(old):
            return None
        version = served.versions.get(number)
        is_usable = version is not None and version.state == "AVAILABLE"
        return version if is_usable and old.has_loaded(number, path) else None

    def finish(self) -> None:
        """Applies the new labels, and closes the versions that are no longer served."""
        for name, served in self.models.items():
            served.set_labels(self._labels[name])
        for name, old_model in self._old_models.items():
            model = self.models.get(name)
            stays = [] if model is None else list(model.versions.values())
            for version in list(old_model.versions.values()):
                if version not in stays:
                    version.close()


def _has_labelled_versions(served: ServedModel | None, labels: Mapping[str, int]) -> bool:
    return served is not None and all(
        number in served.versions and served.versions[number].state == "AVAILABLE"
        for number in labels.values()
    )


def _find_same(folder: ModelFolder, candidates: Sequence[ModelFolder]) -> ModelFolder | None:
    return next((other for other in candidates if folder.follows_same_folder_as(other)), None)
