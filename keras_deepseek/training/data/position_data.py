"""Checks the data arguments of `fit`, and wraps the data so that their position is known."""

from collections.abc import Collection, Mapping
from typing import Any

import keras

from keras_deepseek.backend.data.batch_source import open_batch_source
from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.datasets import set_aside_validation
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError

_OF_THE_DATA = ("x", "y", "sample_weight", "batch_size", "steps_per_epoch", "class_weight")


def no_data_error(what: str = "training data") -> InvalidInputError:
    """Returns the error for data that yield no batch."""
    return InvalidInputError(f"The {what} hold no batch. Pass data with at least one row.")


def check_data(x: Any, batch_size: int | None, what: str = "training data") -> None:
    """Raises an error if data are missing, or if batched data are given a `batch_size`.

    `what` names the data in the error.
    """
    if x is None:
        raise InvalidInputError(f"There are no {what}: `x` is None. Pass `x`.")
    if not _is_in_arrays(x):
        if _count_batches(x) == 0:
            raise no_data_error(what)
        if batch_size is not None:
            raise InvalidInputError(
                f"`batch_size` is for arrays, but a {type(x).__name__} already comes in batches; "
                f"received {batch_size!r}. Leave it out."
            )
        return
    arrays = keras.tree.flatten(x)
    if not arrays:
        raise no_data_error(what)
    for array in arrays:
        if len(getattr(array, "shape", ())) and array.shape[0] == 0:
            raise no_data_error(what)


def check_options(options: Mapping[str, Any], *, resume: bool) -> None:
    """Raises an error if a numeric argument of `fit` is out of range."""
    epochs = check_integer("epochs", options["epochs"], minimum=0)
    for name in ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"):
        check_integer(name, options.get(name), default=1)
    frequency = options.get("validation_freq", 1)
    if not isinstance(frequency, Collection):  # A collection lists the epochs.
        check_integer("validation_freq", frequency)
    check_number("validation_split", options.get("validation_split", 0.0), minimum=0, below=1)
    class_weight = options.get("class_weight")
    if class_weight is not None and not isinstance(class_weight, Mapping):
        raise InvalidInputError(
            "`class_weight` must be a dict of weights by class, as in {0: 1.0, 1: 3.0}; "
            f"received {class_weight!r}."
        )
    validation = options.get("validation_data")
    if isinstance(validation, tuple) and validation:
        check_data(validation[0], None, "validation data")
    first = check_integer("initial_epoch", options.get("initial_epoch", 0), minimum=0)
    if first and resume:
        raise InvalidInputError(
            f"Received initial_epoch={first} for a training that resumes from a checkpoint, which "
            "has the epoch itself. Leave it out."
        )
    if first >= epochs > 0:
        raise InvalidInputError(
            f"initial_epoch={first}, counted from 0, leaves no epoch of epochs={epochs}: `epochs` "
            "is the number of the last epoch, not how many are made. Pass a larger `epochs`."
        )


def check_targets(x: Any, y: Any) -> None:
    """Raises an error if the data are arrays and the loss would get no targets."""
    if y is None and _is_in_arrays(x):
        hint = ""
        if isinstance(x, tuple):
            hint = " A tuple as `x` means several inputs, not inputs and targets."
        raise InvalidInputError(f"The loss needs targets, and `y` is None: pass x and y.{hint}")


def check_validation_targets(validation_data: Any) -> None:
    """Raises an error if the validation data are one array without targets."""
    if hasattr(validation_data, "shape"):
        raise InvalidInputError(
            "The loss needs targets: use validation_data=(x, y); received only a "
            f"{type(validation_data).__name__}."
        )


def _is_in_arrays(x: Any) -> bool:
    return isinstance(x, dict | list | tuple) or hasattr(x, "shape")


def _count_batches(x: Any) -> int | None:
    try:
        return len(x)
    except (TypeError, NotImplementedError):  # The length is unknown.
        return None


def position_data(
    arguments: Mapping[str, Any], seed: int, share: tuple[int, int] = (0, 1)
) -> tuple[dict[str, Any], PositionedData]:
    """Wraps the data in the arguments of `fit`, so that their position is known.

    The seed is that of the order of shuffled arrays. `share` is the first row of each batch that
    this process takes, and the distance to its next one. Returns the arguments with the wrapped
    data as `x`, and the wrapped data.
    """
    options = set_aside_validation(arguments)
    data_arguments = {name: options.pop(name, None) for name in _OF_THE_DATA}
    shuffle = options.pop("shuffle", None)
    source = open_batch_source(**data_arguments, shuffle=shuffle, seed=seed, share=share)
    data = PositionedData(BatchStream(source, data_arguments["steps_per_epoch"]))
    return {**options, "x": data}, data
