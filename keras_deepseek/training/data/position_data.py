"""The data among the arguments of `fit`, in a form that knows how far a training has come."""

from collections.abc import Collection, Mapping
from typing import Any

import keras

from keras_deepseek.backend.data.batch_source import open_batch_source
from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.backend.data.positioned_data import PositionedData
from keras_deepseek.backend.keras_private.datasets import split_validation
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError

_OF_THE_DATA = ("x", "y", "sample_weight", "batch_size", "steps_per_epoch", "class_weight")


def no_data_error(what: str = "training data") -> InvalidInputError:
    """Returns the error of data without a batch.

    Args:
        what: string. What they are. Defaults to `"training data"`.
    """
    return InvalidInputError(f"The {what} hold no batch. Give some that do.")


def check_data(x: Any, batch_size: int | None, what: str = "training data") -> None:
    """Raises an error where there are no data, or those of another batch size.

    Args:
        x: Data as `keras.Model.fit` takes it.
        batch_size: integer, or `None`: what was asked for.
        what: string. What they are. Defaults to `"training data"`.

    Raises:
        InvalidInputError: There is no row or no batch, or data that come in batches are given a
            `batch_size`.
    """
    if x is None:
        raise no_data_error(what)
    if not _is_in_arrays(x):
        if _count_batches(x) == 0:
            raise no_data_error(what)
        if batch_size is not None:
            raise InvalidInputError(
                f"`batch_size` is for arrays, and a {type(x).__name__} comes in batches of its "
                f"own; received {batch_size!r}. Leave it out."
            )
        return
    arrays = keras.tree.flatten(x)
    if not arrays:
        raise no_data_error(what)
    for array in arrays:
        if len(getattr(array, "shape", ())) and array.shape[0] == 0:
            raise no_data_error(what)


def check_options(options: Mapping[str, Any], *, resume: bool) -> None:
    """Raises an error where a number among the arguments of `fit` does not fit.

    Args:
        options: dict. The arguments.
        resume: boolean. Whether the training goes on from a checkpoint.

    Raises:
        InvalidInputError: One does not.
    """
    epochs = check_integer("epochs", options["epochs"], least=0)
    for name in ("batch_size", "steps_per_epoch", "validation_steps", "validation_batch_size"):
        check_integer(name, options.get(name), default=1)
    frequency = options.get("validation_freq", 1)
    if not isinstance(frequency, Collection):  # Else it is of the epochs themselves.
        check_integer("validation_freq", frequency)
    check_number("validation_split", options.get("validation_split", 0.0), least=0, below=1)
    class_weight = options.get("class_weight")
    if class_weight is not None and not isinstance(class_weight, Mapping):
        raise InvalidInputError(
            "`class_weight` is a dict from classes to their weights, as in {0: 1.0, 1: 3.0}; "
            f"received {class_weight!r}."
        )
    validation = options.get("validation_data")
    if isinstance(validation, tuple) and validation:
        check_data(validation[0], None, "validation data")
    first = check_integer("initial_epoch", options.get("initial_epoch", 0), least=0)
    if first and resume:
        raise InvalidInputError(
            f"initial_epoch={first} is given to a training that goes on from a checkpoint, which "
            "says itself in which epoch. Leave it out."
        )
    if first >= epochs > 0:
        raise InvalidInputError(
            f"initial_epoch={first}, counted from 0, leaves none of epochs={epochs}: `epochs` is "
            "the last one, counted from 1, and not how many are made. Give a larger one."
        )


def check_targets(x: Any, y: Any) -> None:
    """Raises an error where a loss is to compare outputs with targets, and arrays have none.

    Args:
        x: Training data as `keras.Model.fit` takes it.
        y: Targets, or `None`.

    Raises:
        InvalidInputError: There are none beside arrays.
    """
    if y is None and _is_in_arrays(x):
        hint = ""
        if isinstance(x, tuple):
            hint = " A tuple as `x` is one of several inputs: give fit(x, y), not fit((x, y))."
        raise InvalidInputError(f"The loss needs targets: give fit(x, y); `y` is None.{hint}")


def check_validation_targets(validation_data: Any) -> None:
    """Raises an error where a loss is to compare outputs with targets, and there are none.

    Args:
        validation_data: Validation data as `keras.Model.fit` takes it.

    Raises:
        InvalidInputError: It is one array alone.
    """
    if hasattr(validation_data, "shape"):
        raise InvalidInputError(
            "The loss needs targets: give validation_data=(x, y); received a "
            f"{type(validation_data).__name__} alone."
        )


def _is_in_arrays(x: Any) -> bool:
    return isinstance(x, dict | list | tuple) or hasattr(x, "shape")


def _count_batches(x: Any) -> int | None:
    try:
        return len(x)
    except (TypeError, NotImplementedError):  # It does not know.
        return None


def position_data(
    arguments: Mapping[str, Any], seed: int, share: tuple[int, int] = (0, 1)
) -> tuple[dict[str, Any], PositionedData]:
    """Returns the arguments of `fit` with its data in one that knows its position, and that one.

    Args:
        arguments: Those that a user gave.
        seed: integer. What the order of shuffled arrays is drawn by.
        share: tuple of integers. Which row of each batch is the first that this process takes, and
            of how many it takes one. Defaults to `(0, 1)`, all rows.

    Raises:
        NotSupportedError: It is no kind of data whose position is known.
    """
    options = dict(arguments)
    split = options.pop("validation_split", 0.0)
    if split and options.get("validation_data") is None:
        arrays = tuple(options.get(name) for name in ("x", "y", "sample_weight"))
        train, options["validation_data"] = split_validation(arrays, split)
        options.update(zip(("x", "y", "sample_weight"), train, strict=True))
    given = {name: options.pop(name, None) for name in _OF_THE_DATA}
    shuffle = options.pop("shuffle", None)
    source = open_batch_source(**given, shuffle=shuffle, seed=seed, share=share)
    data = PositionedData(BatchStream(source, given["steps_per_epoch"]))
    if given["batch_size"] is not None:
        options.setdefault("validation_batch_size", given["batch_size"])
    return {**options, "x": data}, data
