"""Weights of a model from the checkpoints of a training, with or without its `Trainer`."""

import os
from collections.abc import Mapping
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.artifacts.divided_array import StoredArray
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.layers import seed_states
from keras_deepseek.errors import InvalidInputError

ADVICE = (
    "Build and compile the model as it was, with its optimizer and the trainer's precision, or "
    "train without resume."
)

_MOST_NAMES = 3  # The most variables that an error names.
_AVERAGE = "_average"
"""The ending of the name of a weight's moving average in Keras's optimizers."""


def load_best(
    model: keras.Model, checkpoint_dir: str | os.PathLike[str], *, use_ema: bool = False
) -> int:
    """Gives a built model the weights of the best checkpoint in the folder of a training.

    Choose it where there is no `Trainer`, for example to export or to serve the model. The folder
    may be of a training on another backend.

    Args:
        model: `keras.Model`. It has the layers of the trained one.
        checkpoint_dir: string or path. The folder, of a `Trainer` with `keep_best`.
        use_ema: boolean. Loads the moving averages of the weights, of an optimizer with
            `use_ema=True`. Defaults to `False`.

    Returns:
        The number of steps that were trained before the checkpoint.

    Raises:
        InvalidInputError: No checkpoint was kept as the best, the model is not built, its layers
            are others, or the training had no moving averages.
        CheckpointError: The best checkpoint is damaged.

    Example:

    >>> import keras, numpy as np, tempfile
    >>> from keras_deepseek.training import Trainer
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> options = {"checkpoint_dir": tempfile.mkdtemp(), "keep_best": ("loss", "min")}
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse", **options)
    >>> history = trainer.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=4, verbose=0)
    >>> load_best(keras.models.clone_model(model), options["checkpoint_dir"])
    2
    """
    checkpoint = CheckpointFolder(checkpoint_dir).best()
    write_weights(model, checkpoint.state["variables"], use_ema=use_ema)
    return checkpoint.step


def write_weights(model: keras.Model, state: Mapping[str, Any], *, use_ema: bool = False) -> None:
    """Restores the weights of a built model from the variables of a checkpoint, but no seeds.

    With `use_ema`, trainable weights get their moving averages.
    """
    if not model.built:
        raise InvalidInputError(
            f"Model {model.name!r} is not built yet and has no weights: call it on a batch first."
        )
    variables, stored = model.variables, state["model"]
    values = _with_averages(state) if use_ema else stored["values"]
    if len(variables) == len(values):  # The seeds of dropout differ in dtype between backends.
        seeds = {id(variable) for variable in seed_states(model)}
        chosen = [i for i, variable in enumerate(variables) if id(variable) not in seeds]
        variables, values = ([group[i] for i in chosen] for group in (variables, values))
        stored = {key: [stored[key][i] for i in chosen] for key in ("names", "dtypes")}
    check_variables("model", variables, {**stored, "values": values})
    for variable, value in zip(variables, values, strict=True):
        assign(variable, value)
    backend.current().step.write_buffers(model, state["buffers"])


def _with_averages(state: Mapping[str, Any]) -> list[Any]:
    """Returns the values of a model's variables, with moving averages in place of weights."""
    averages: dict[str, list[Any]] = {}
    for path, value in zip(*(state["optimizer"][key] for key in ("names", "values")), strict=True):
        name = path.rpartition("/")[2]
        if name.endswith(_AVERAGE):
            averages.setdefault(name.removesuffix(_AVERAGE), []).append(value)
    if not averages:
        raise InvalidInputError(
            "use_ema=True asks for moving averages, and the optimizer of this training had "
            "none: load the weights without it, or train with Adam(use_ema=True) or the like."
        )
    values = []
    for path, value in zip(*(state["model"][key] for key in ("names", "values")), strict=True):
        waiting = averages.get(path.replace("/", "_"), [])  # Layers may have the same name.
        values.append(waiting.pop(0) if waiting else value)
    return values


def assign(variable: keras.Variable, value: Array | StoredArray) -> None:
    """Assigns a value of a checkpoint to a variable, which may be divided among processes."""
    if isinstance(value, StoredArray):
        backend.current().distribution.assign_stored(variable, value)
    else:
        variable.assign(value)


def check_variables(group: str, variables: list[keras.Variable], state: Mapping[str, Any]) -> None:
    """Raises an error if variables differ from those of a checkpoint in number, shape or dtype."""
    if len(variables) != len(state["values"]):
        old_names, names = state["names"], [variable.path for variable in variables]
        raise InvalidInputError(
            f"The checkpoint holds {len(old_names)} variables of the {group}, and this training "
            f"has {len(names)}{_describe_others('the checkpoint', old_names, names)}"
            f"{_describe_others('this training', names, old_names)}. {ADVICE}"
        )
    for variable, name, dtype, value in zip(
        variables, state["names"], state["dtypes"], state["values"], strict=True
    ):
        if tuple(variable.shape) != value.shape or variable.dtype != dtype:
            raise InvalidInputError(
                f"{group} variable {variable.path!r} is {variable.dtype} {tuple(variable.shape)}; "
                f"the checkpoint has {name!r} there, {dtype} {value.shape}. {ADVICE}"
            )


def _describe_others(owner: str, names: list[str], other_names: list[str]) -> str:
    """Returns a text with the names that are not among other names, or an empty text."""
    alone = sorted(set(names) - set(other_names))
    if not alone:
        return ""
    first, remaining = alone[:_MOST_NAMES], alone[_MOST_NAMES:]
    more = f" and {len(remaining)} more" if remaining else ""
    return f"; only {owner} has {', '.join(first)}{more}"
