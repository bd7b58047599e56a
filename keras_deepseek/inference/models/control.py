"""What a client of gRPC may ask about which models are served: to load, to unload, to replace all.

These calls wait for models to load, so the server makes them on threads of their own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_deepseek.inference.errors import LoadFailedError, ModelNotFoundError
from keras_deepseek.inference.models.config import follow_configs
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig

if TYPE_CHECKING:
    from keras_deepseek.inference.engine import ServingEngine


def load(engine: "ServingEngine", name: str) -> None:
    """Serves what the model's folder holds now; a model that has no folder and is served is so.

    Args:
        engine: `ServingEngine`.
        name: string.

    Raises:
        ModelNotFoundError: No folder of this name is followed, and no such model served.
        LoadFailedError: None of its versions could be loaded.
    """
    for folder in engine.folders:
        if folder.name == name:
            folder.resume(from_scratch=not _is_available(engine, name))
            folder.look(at_once=True)
    if name not in engine.models and all(folder.name != name for folder in engine.folders):
        raise ModelNotFoundError(f"There is no folder that the model {name!r} could come from.")
    if not _is_available(engine, name):
        raise LoadFailedError(name)


def unload(engine: "ServingEngine", name: str) -> None:
    """Closes a model, and looks no more at its folder until it is loaded again.

    Args:
        engine: `ServingEngine`.
        name: string.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    engine.unload(name)


def replace_models(engine: "ServingEngine", models: Sequence[ModelConfig]) -> None:
    """Serves these models and no others; an error leaves all as it was.

    Args:
        engine: `ServingEngine`.
        models: sequence of `ModelConfig`, as a `ReloadConfigRequest` has them.

    Raises:
        InvalidInputError: A folder holds none of the versions that are wanted, or a label stands
            for one that is not.
        LoadFailedError: A version could not be loaded, or did not warm up.
    """
    labels = {model.name: model.labels for model in models}
    engine.replace_folders(follow_configs(engine, models), labels)


def _is_available(engine: "ServingEngine", name: str) -> bool:
    served = engine.models.get(name)
    versions = served.versions.values() if served is not None else ()
    return any(version.state == "AVAILABLE" for version in versions)
