"""Opens versions of models of both kinds: those that take tensors, and language models.

Other modules know a `Version`, and ask here for one of the kind that they need.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference.batching.fair_scheduler import FairScheduler
from keras_deepseek.inference.executors.open_executor import is_language_model
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.models.version import Version


def open_version(
    name: str,
    number: int,
    model: Any,
    options: ModelOptions,
    after_batch: Callable[[], None],
    scheduler: FairScheduler | None,
) -> Version:
    """Returns a version that is not started yet, of the kind of its model."""
    if is_language_model(model):
        take_turn = None if scheduler is None else partial(scheduler.take, name)
        return TextVersion(name, number, model, options, take_turn)
    return ModelVersion(name, number, model, options, after_batch, scheduler)


def as_tensor_version(version: Version) -> ModelVersion:
    """Returns the version if it takes tensors, and raises an `InvalidInputError` if not."""
    if isinstance(version, ModelVersion):
        return version
    raise InvalidInputError(
        f"The model {version.name!r} is a language model, which takes no tensors. Send a request "
        "to /v1/chat/completions or /v1/completions, or call `engine.text`."
    )


def as_text_version(version: Version) -> TextVersion:
    """Returns the version if it is a language model, and raises an `InvalidInputError` if not."""
    if isinstance(version, TextVersion):
        return version
    raise InvalidInputError(
        f"The model {version.name!r} is no language model that is served for texts: it takes "
        f"tensors ({version.signature}). Send them to /v1/models/{version.name}:predict. To serve "
        "a language model, serve the folder that `save_to_preset` wrote."
    )
