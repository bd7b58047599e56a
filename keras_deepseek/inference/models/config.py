"""TF Serving's model config: a file that lists models and their folders.

An engine starts with such a file, or receives a config over gRPC (`control.replace_models`).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.arguments import check_name
from keras_deepseek.inference.models.model_folder import Loader, ModelFolder, Policy
from keras_deepseek.inference.protocols.tf_serving_model_service import (
    ModelConfig,
    parse_config_text,
)


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
