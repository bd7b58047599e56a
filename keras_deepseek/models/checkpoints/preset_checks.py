"""What `from_preset` is given, and finds, is checked here, before any weight is read."""

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
    """Returns a config with other values.

    Args:
        config: The config dataclass.
        overrides: dict of values by the names of its fields.

    Raises:
        InvalidInputError: It has no such field.
    """
    names = [field.name for field in fields(config)]
    for name in overrides:
        if name not in names:
            raise InvalidInputError(unknown_name_message("value of the config", name, names))
    return replace(config, **overrides)


def check_not_of_keras(folder: Path, checkpoint_config: Mapping[str, Any]) -> None:
    """Says where a `config.json` is that of Keras's own serialization, which KerasHub writes.

    Args:
        folder: `pathlib.Path`. Where it is from.
        checkpoint_config: dict. What it holds.

    Raises:
        InvalidInputError: It is.
    """
    found = checkpoint_config.get("registered_name") or checkpoint_config.get("class_name")
    if found is not None:
        raise InvalidInputError(
            f"{str(folder)!r} is a preset of KerasHub, of its class {found!r}: read it by "
            "`keras_hub`, or fetch the model in the form of Hugging Face, which is read here."
        )


def check_entries(entries: Sequence[CheckpointEntry], unset: Sequence[keras.Variable]) -> None:
    """Says where a checkpoint map leaves a variable out, or fills one twice: a fault of the map.

    Args:
        entries: `CheckpointEntry`s of a model.
        unset: The variables of the model that have no values yet.

    Raises:
        InvalidInputError: It does.
    """
    filled = [variable for entry in entries for variable in entry.variables]
    counts = {id(variable): 0 for variable in (*unset, *filled)}
    for variable in filled:
        counts[id(variable)] += 1
    wrong = [each.path for each in (*unset, *filled) if counts[id(each)] != 1]
    if wrong:
        raise InvalidInputError(
            f"The checkpoint map must have an entry for each variable: {sorted(set(wrong))} have "
            "none or several."
        )
