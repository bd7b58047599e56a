"""Checks of the arguments and the config of `from_preset`, before any weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import keras

from keras_deepseek.errors import (
    InvalidInputError,
    unknown_name_message,
)
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry


def override_config(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Returns a config with some fields replaced by the values that the user passed."""
    names = [field.name for field in fields(config)]
    for name in overrides:
        if name not in names:
            raise InvalidInputError(unknown_name_message("config value", name, names))
    return replace(config, **overrides)


def check_not_keras_hub(folder: Path, checkpoint_config: Mapping[str, Any]) -> None:
    """Raises an error if a preset's `config.json` was written by KerasHub.

    Its layout is that of Keras's own serialization.
    """
    class_name = checkpoint_config.get("registered_name") or checkpoint_config.get("class_name")
    if class_name is not None:
        raise InvalidInputError(
            f"{str(folder)!r} is a preset of KerasHub, of its class {class_name!r}. Read it with "
            "`keras_hub`, or fetch the model in the Hugging Face format, which is read here."
        )


def check_entries(entries: Sequence[CheckpointEntry], unset: Sequence[keras.Variable]) -> None:
    """Raises an error if a checkpoint map leaves a variable out or fills one twice.

    `unset` are the variables of the model that have no values yet.
    """
    filled = [variable for entry in entries for variable in entry.variables]
    counts = {id(variable): 0 for variable in (*unset, *filled)}
    for variable in filled:
        counts[id(variable)] += 1
    wrong = [variable.path for variable in (*unset, *filled) if counts[id(variable)] != 1]
    if wrong:
        raise InvalidInputError(
            "The checkpoint map must have exactly one entry for each variable. "
            f"{sorted(set(wrong))} have none or several."
        )
