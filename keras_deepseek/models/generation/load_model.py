"""A language model from a folder, whatever its family."""

import os
from typing import Any

from keras_deepseek import models
from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.preset_folder import CONFIG_NAME, find_preset, read_json


def load_language_model(preset: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Returns the model of a preset, of the class that reads its architecture.

    Args:
        preset: A folder, or the name of one on the Hugging Face hub, as in `"hf://org/name"`.
        **kwargs: Those of the class's `from_preset`.

    Raises:
        InvalidInputError: There is no such preset, or no language model of this package reads it.
    """
    found = read_json(find_preset(preset), CONFIG_NAME).get("architectures") or []
    readers = {
        architecture: each
        for each in (getattr(models, name) for name in models.__all__)
        if isinstance(each, type) and issubclass(each, CausalLM)
        for architecture in each.architectures
    }
    for architecture in found:
        if architecture in readers:
            return readers[architecture].from_preset(preset, **kwargs)
    raise InvalidInputError(
        f"{os.fspath(preset)!r} is a checkpoint of {', '.join(map(str, found)) or 'no'} "
        f"architecture. Language models of this package read {', '.join(sorted(readers))}."
    )
