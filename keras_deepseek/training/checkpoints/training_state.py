"""Reading and writing of all variables that a training changes: model, optimizer, metrics."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.divided_array import ArrayPieces
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.checkpoint_weights import ADVICE, assign, check_variables
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.optimizers import optimized_variables, plain_optimizer
from keras_deepseek.backend.tensor_values import read_values
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.optimizer_parts import OptimizerParts
from keras_deepseek.training.step.step_guard import GuardMetric


def read_variables(model: keras.Model, parts: OptimizerParts | None = None) -> dict[str, Any]:
    """Returns copies of all values that a training of a model changes.

    These are the weights, states and seeds of the layers; the optimizer's variables, with moving
    averages, accumulated gradients and the loss scale; the variables of further optimizers that
    the model holds; and the sums of the metrics. Where this process has pieces of a value,
    they are `ArrayPieces`.
    """
    groups = _groups(model)
    state: dict[str, Any] = {
        group: {
            "names": [variable.path for variable in groups[group]],
            "dtypes": [variable.dtype for variable in groups[group]],
            "values": list(values),
        }
        for group, values in _read_groups(model, groups, parts, reads_whole=True)
    }
    state["optimizer_class"] = _optimizer_class(model)
    state["trained by own optimizers"] = trained_positions(model)
    state["buffers"] = backend.current().step.read_buffers(model)
    return state


def read_pieces(model: keras.Model, parts: OptimizerParts | None = None) -> list[ArrayPieces]:
    """Returns only this process's `ArrayPieces` among the values of `read_variables`."""
    groups = _read_groups(model, _groups(model), parts, reads_whole=False)
    return [value for _, values in groups for value in values if isinstance(value, ArrayPieces)]


def is_divided(model: keras.Model, parts: OptimizerParts | None = None) -> bool:
    """Returns True if no process has the whole state of a training."""
    local_pieces = backend.current().distribution.local_pieces
    variables = [variable for group in _groups(model).values() for variable in group]
    return parts is not None or any(local_pieces(variable.value) for variable in variables)


def _read_groups(
    model: keras.Model,
    groups: dict[str, list[keras.Variable]],
    parts: OptimizerParts | None,
    *,
    reads_whole: bool,
) -> Iterator[tuple[str, Iterator[Any]]]:
    """Yields the values of each group, which are read one by one."""
    for group, variables in groups.items():
        if parts is not None and group == "optimizer":
            yield group, parts.read_state(model)
        else:
            yield group, (_read(variable, reads_whole=reads_whole) for variable in variables)


def _read(variable: keras.Variable, *, reads_whole: bool) -> Array | ArrayPieces | None:
    pieces = backend.current().distribution.local_pieces(variable.value)
    if pieces is None:
        return read_values([variable])[0] if reads_whole else None
    copies = [(box, np.array(piece)) for box, piece in pieces]
    return ArrayPieces(tuple(variable.shape), variable.dtype, copies)


def write_variables(
    model: keras.Model, state: dict[str, Any], parts: OptimizerParts | None = None
) -> None:
    """Restores the variables' values that `read_variables` returned."""
    _check_optimizer(model, state)
    check_variables("model", model.variables, state["model"])
    state = _cut(model, state, parts)
    build_own_optimizers(model, state["trained by own optimizers"])
    groups = _groups(model)
    if len(groups["guard"]) != len(state["guard"]["values"]):
        del groups["guard"]  # Only one of the two trainings has a guard.
    for group, variables in groups.items():
        check_variables(group, variables, state[group])
    for group, variables in groups.items():
        for variable, value in zip(variables, state[group]["values"], strict=True):
            assign(variable, value)
    backend.current().step.write_buffers(model, state["buffers"])


def write_model_and_optimizers(
    model: keras.Model, state: dict[str, Any], parts: OptimizerParts | None = None
) -> None:
    """Restores a model and its optimizers, but not its metrics, from `read_variables`."""
    state = _cut(model, state, parts)
    for group in ("model", "optimizer", "own optimizers"):
        for variable, value in zip(_groups(model)[group], state[group]["values"], strict=True):
            assign(variable, value)
    backend.current().step.write_buffers(model, state["buffers"])


def _cut(model: keras.Model, state: dict[str, Any], parts: OptimizerParts | None) -> dict[str, Any]:
    """Returns a state with this process's parts of the optimizer's variables."""
    if parts is None or len(state["optimizer"]["values"]) != len(model.optimizer.variables):
        return state
    values = parts.cut_state(model, state["optimizer"]["values"])
    return {**state, "optimizer": {**state["optimizer"], "values": values}}


def find_not_finite(variables: Sequence[keras.Variable]) -> list[str]:
    """Returns the paths of the floating-point variables that hold NaN or infinity."""
    floats = [variable for variable in variables if keras.backend.is_float_dtype(variable.dtype)]
    are_finite = backend.current().step.find_finite([variable.value for variable in floats])
    return [
        variable.path
        for variable, is_finite in zip(floats, are_finite, strict=True)
        if not is_finite
    ]


def _groups(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """Returns all variables that a training changes, by what holds them."""
    guards = [metric for metric in model.metrics if isinstance(metric, GuardMetric)]
    guard = [variable for metric in guards for variable in metric.variables]
    guard_ids = {id(variable) for variable in guard}
    return {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "own optimizers": [
            variable
            for optimizer in find_own_optimizers(model).values()
            for variable in optimizer.variables
        ],
        "metrics": [
            variable for variable in model.metrics_variables if id(variable) not in guard_ids
        ],
        "guard": guard,
    }


def _optimizer_class(model: keras.Model) -> str:
    return type(plain_optimizer(model.optimizer)).__name__


def _check_optimizer(model: keras.Model, state: dict[str, Any]) -> None:
    checkpoint_class, now = state.get("optimizer_class"), _optimizer_class(model)
    if checkpoint_class not in (None, now):  # Checkpoints of earlier releases don't have it.
        raise InvalidInputError(
            f"The checkpoint was made with the optimizer {checkpoint_class}, and the model has "
            f"{now}, which can't use its variables. {ADVICE}"
        )


_NOT_IN_MODEL = -1
"""The position of a variable that is not in `model.variables`."""


def find_own_optimizers(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Finds a model's own optimizers: those in attributes of the model and its layers.

    The result is by attribute, without the optimizer that the model was compiled with.
    """
    listed_ids = {id(model.optimizer), id(plain_optimizer(model.optimizer))}
    optimizers = {}
    for layer in flatten_layers(model):
        owner = "" if layer is model else f"{layer.path}."
        for attribute, value in vars(layer).items():
            if attribute.startswith("_self_"):  # TensorFlow's own list of attributes.
                continue
            for path, optimizer in _optimizers_in(value):
                if id(optimizer) not in listed_ids:
                    listed_ids.add(id(optimizer))
                    optimizers[f"{owner}{attribute}{path}"] = optimizer
    return optimizers


def trained_positions(model: keras.Model) -> dict[str, list[int] | None]:
    """Returns the positions in `model.variables` of the variables of each own optimizer.

    The result is by the attribute that holds the optimizer, and has `None` for an optimizer that is
    not built yet.
    """
    positions = {id(variable): position for position, variable in enumerate(model.variables)}
    trained: dict[str, list[int] | None] = {}
    for name, optimizer in find_own_optimizers(model).items():
        variables = optimized_variables(optimizer)
        trained[name] = (
            None
            if variables is None
            else [positions.get(id(variable), _NOT_IN_MODEL) for variable in variables]
        )
    return trained


def build_own_optimizers(model: keras.Model, trained: Mapping[str, list[int] | None]) -> None:
    """Builds a model's own optimizers for the variables that they had in the checkpoint.

    `trained` is the result of `trained_positions` in the checkpoint.
    """
    optimizers = find_own_optimizers(model)
    if list(optimizers) != list(trained):
        raise InvalidInputError(
            f"The checkpoint holds the optimizers {list(trained)} beside the one of compile(), and "
            f"model {model.name!r} has {list(optimizers)}. Build and compile the model as before."
        )
    for name, optimizer in optimizers.items():
        positions = trained[name]
        if optimizer.built or positions is None:
            continue
        if _NOT_IN_MODEL in positions:
            raise InvalidInputError(
                f"The optimizer {name!r} trains variables that are not in model {model.name!r}: "
                "call its build(variables) before you resume the training."
            )
        optimizer.build([model.variables[position] for position in positions])


def _optimizers_in(value: Any, path: str = "") -> Iterator[tuple[str, keras.optimizers.Optimizer]]:
    """Yields the optimizers in a nested value, with their places in its lists and dicts."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield path, value
    elif isinstance(value, list | tuple):
        for index, nested in enumerate(value):
            yield from _optimizers_in(nested, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, nested in value.items():
            yield from _optimizers_in(nested, f"{path}[{key!r}]")
