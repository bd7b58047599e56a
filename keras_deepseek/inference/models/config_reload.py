"""Replaces the followed folders of models by others: all of them, or none on an error.

`ConfigReload` finds what stays, what is loaded and what is closed for `ModelRepository`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from keras_deepseek.inference.errors import LoadFailedError
from keras_deepseek.inference.models.model_folder import ModelFolder
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import ServedModel, ServedModels

_logger = logging.getLogger(__name__)

Open = Callable[[Path, str, int, ModelOptions], ModelVersion]


class ConfigReload:
    """The change from one set of followed folders to another. Only `finish` changes what is served.

    The current `folders` are paused. `labels` maps each model's name to versions by label.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        folders: Sequence[ModelFolder],
        new_folders: Sequence[ModelFolder],
        labels: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._old_models = models
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
        """Loads and warms up the versions in folders that are new, or followed in another way.

        If a version fails, the loaded ones are closed and it raises `LoadFailedError`.
        """
        loaded: list[ModelVersion] = []
        for folder in self.changed:
            served = ServedModel(folder.name)
            try:
                for number, path in folder.find_versions_to_serve().items():
                    folder.mark_loaded(number, path)
                    loaded.append(open_version(path, folder.name, number, folder.options))
                    loaded[-1].start()
                    served.add(loaded[-1])
                served.set_labels(self._labels[folder.name])
            # No fault of a bundle may harm the served versions.
            except Exception as error:
                for version in loaded:  # The failed one, too: it may have processes.
                    version.close()
                _logger.exception("The folder %r could not be loaded.", str(folder.folder))
                raise LoadFailedError(folder.name) from error
            self.models[folder.name] = served

    def finish(self) -> None:
        """Applies the new labels, and closes the models that are no longer served."""
        for name, served in self.models.items():
            served.set_labels(self._labels[name])
        for name, old_model in self._old_models.items():
            if old_model is not self.models.get(name):
                for version in list(old_model.versions.values()):
                    version.close()


def _has_labelled_versions(served: ServedModel | None, labels: Mapping[str, int]) -> bool:
    """Returns true if a model is served and all versions with labels are available."""
    return served is not None and all(
        number in served.versions and served.versions[number].state == "AVAILABLE"
        for number in labels.values()
    )


def _find_same(folder: ModelFolder, candidates: Sequence[ModelFolder]) -> ModelFolder | None:
    return next((other for other in candidates if folder.follows_same_folder_as(other)), None)
