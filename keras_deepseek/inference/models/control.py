"""The calls by which clients load and replace models.

They wait for models to load, so the servers make them on threads.
"""

from collections.abc import Sequence

from keras_deepseek.inference.errors import LoadFailedError, ModelNotFoundError
from keras_deepseek.inference.models.config import make_folders
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig


def load(repository: ModelRepository, name: str) -> None:
    """Loads the versions in a model's folder. A model without a folder must be served already.

    Raises:
        ModelNotFoundError: No folder is followed for the name, and no such model is served.
        LoadFailedError: No version could be loaded.
    """
    for folder in repository.folders:
        if folder.name == name:
            folder.resume(from_scratch=not _is_available(repository, name))
            folder.look(at_once=True)
    if name not in repository.models and all(folder.name != name for folder in repository.folders):
        raise ModelNotFoundError(f"There is no model {name!r}, and no folder is followed for it.")
    if not _is_available(repository, name):
        raise LoadFailedError(name)


def replace_models(repository: ModelRepository, models: Sequence[ModelConfig]) -> None:
    """Serves these models and no others. On an error nothing changes."""
    labels = {model.name: model.labels for model in models}
    repository.replace_folders(make_folders(repository, models), labels)


def _is_available(repository: ModelRepository, name: str) -> bool:
    served = repository.models.get(name)
    versions = served.versions.values() if served is not None else ()
    return any(version.state == "AVAILABLE" for version in versions)
