"""What a client of gRPC may ask about which models are served: to load, to unload, to replace all.

These calls wait for models to load, so the server makes them on threads of their own.
"""

from collections.abc import Sequence

from keras_deepseek.inference.errors import LoadFailedError, ModelNotFoundError
from keras_deepseek.inference.models.config import make_folders
from keras_deepseek.inference.models.model_repository import ModelRepository
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig


def load(repository: ModelRepository, name: str) -> None:
    """Serves what the model's folder holds now; a model that has no folder and is served is so.

    Raises:
        ModelNotFoundError: No folder of this name is followed, and no such model served.
        LoadFailedError: None of its versions could be loaded.
    """
    for folder in repository.folders:
        if folder.name == name:
            folder.resume(from_scratch=not _is_available(repository, name))
            folder.look(at_once=True)
    if name not in repository.models and all(folder.name != name for folder in repository.folders):
        raise ModelNotFoundError(f"There is no folder that the model {name!r} could come from.")
    if not _is_available(repository, name):
        raise LoadFailedError(name)


def unload(repository: ModelRepository, name: str) -> None:
    """Closes a model, and looks no more at its folder until it is loaded again.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    repository.unload(name)


def replace_models(repository: ModelRepository, models: Sequence[ModelConfig]) -> None:
    """Serves these models and no others; an error leaves all as it was.

    Args:
        repository: `ModelRepository`.
        models: sequence of `ModelConfig`, as a `ReloadConfigRequest` has them.

    Raises:
        InvalidInputError: A folder holds none of the versions that are wanted, or a label stands
            for one that is not.
        LoadFailedError: A version could not be loaded, or did not warm up.
    """
    labels = {model.name: model.labels for model in models}
    repository.replace_folders(make_folders(repository, models), labels)


def _is_available(repository: ModelRepository, name: str) -> bool:
    served = repository.models.get(name)
    versions = served.versions.values() if served is not None else ()
    return any(version.state == "AVAILABLE" for version in versions)
