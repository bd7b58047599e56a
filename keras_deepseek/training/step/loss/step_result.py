"""Reads the result of `Trainer.train_step`: a loss, or a dict with loss, weight and logs."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_deepseek.errors import InvalidInputError


def read_result(result: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the loss, its weight or `None`, and further logs from the result of a step."""
    if result is None:
        raise InvalidInputError("`train_step` must return the loss; it returned nothing.")
    if not isinstance(result, dict):
        return _check_loss(result), None, {}
    if "loss" not in result:
        raise InvalidInputError(
            "`train_step` must return the loss, or a dict with 'loss'; received a dict with "
            f"{', '.join(map(repr, result)) or 'nothing'}."
        )
    further_results = {name: value for name, value in result.items() if name != "loss"}
    weight = further_results.get("weight")
    for name, value in further_results.items():
        if isinstance(value, str):
            raise InvalidInputError(f"`train_step` must return scalars; {name!r} is {value!r}.")
        shape = () if value is None else tuple(ops.convert_to_tensor(value).shape)
        if shape:
            raise InvalidInputError(
                f"`train_step` must return scalars; {name!r} has the shape {shape}. Return its "
                "mean, or several scalars with different names."
            )
    logs = {name: value for name, value in further_results.items() if name != "weight"}
    return _check_loss(result["loss"]), weight, logs


def check_log_names(logs: Iterable[str], used_names: Iterable[str]) -> None:
    """Raises an error if `train_step` returned a log with the name of another log."""
    for name in logs:
        if name in set(used_names):
            raise InvalidInputError(
                f"`train_step` returns {name!r}, which is also the name of a metric of the model, "
                "or of a log of the trainer. Give it another name."
            )


def _check_loss(loss: Any) -> Any:
    tensor = ops.convert_to_tensor(loss)
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if len(tensor.shape) or not keras.backend.is_float_dtype(dtype):
        raise InvalidInputError(
            "`train_step` must return one floating-point number as the loss, such as the mean over "
            f"the batch; it returned {dtype} of shape {tuple(tensor.shape)}."
        )
    return tensor
