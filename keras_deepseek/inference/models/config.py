"""TF Serving's words for what a server has: its file of models, and the folders that they stand in.

An engine begins with such a file, or is sent one over gRPC, which `control` answers.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_name
from keras_deepseek.inference.models.model_folder import ModelFolder, Policy
from keras_deepseek.inference.protocols.tf_serving_model_service import (
    ModelConfig,
    parse_config_text,
)

if TYPE_CHECKING:
    from keras_deepseek.inference.models.model_host import ModelHost


def read_model_config(path: str | os.PathLike[str]) -> tuple[ModelConfig, ...]:
    """Returns the models of a file that TF Serving takes as `--model_config_file`.

    Args:
        path: The path of a text file: a `ModelServerConfig` with a `model_config_list`.

    Returns:
        A tuple of `ModelConfig`, for `ServingEngine`.

    Raises:
        InvalidInputError: It can't be read, or holds no such message, or no model.
        MissingExtraError: `protobuf` is not installed.
    """
    try:
        models = parse_config_text(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidInputError) as error:
        raise InvalidInputError(f"Can't read models of {os.fspath(path)!r}: {error}") from error
    if not models:
        raise InvalidInputError(f"The list of models in {os.fspath(path)!r} is empty.")
    return models


def follow_configs(engine: "ModelHost", models: Sequence[ModelConfig]) -> list[ModelFolder]:
    """Returns the folders of models, none of which is followed yet.

    Args:
        engine: `ModelHost`, as an engine is one.
        models: sequence of `ModelConfig`.

    Raises:
        InvalidInputError: A folder holds none of the versions that are wanted, or a label stands
            for one that is not, or a name can't stand in a URL.
    """
    return [_follow(engine, model) for model in models]


def _follow(engine: "ModelHost", model: ModelConfig) -> ModelFolder:
    check_name(model.name)
    policies: dict[str, Policy] = {
        "latest": model.num_versions,
        "all": "all",
        "specific": model.versions,
    }
    folder = ModelFolder(
        engine,
        Path(model.base_path),
        model.name,
        engine.options,
        versions=policies[model.policy],
    )
    folder.check_not_empty()
    present = folder.wanted()
    for label, number in model.labels.items():
        if number not in present:
            raise InvalidInputError(
                f"The label {label!r} of the model {model.name!r} stands for version {number}; "
                f"those wanted are {list(present)}."
            )
    return folder
