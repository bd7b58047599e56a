"""Access to the variables, config and counters of an optimizer."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable] | None:
    """Returns the variables that an optimizer was built for, or `None` if it is not built."""
    optimizer = plain_optimizer(optimizer)
    return list(optimizer._trainable_variables) if optimizer.built else None


def plain_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns an optimizer without the one that scales the loss around it."""
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return optimizer.inner_optimizer if is_scaled else optimizer


def single_optimizers(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Returns an optimizer in a list, or those of a `MultiOptimizer`."""
    optimizer = plain_optimizer(optimizer)
    return list(getattr(optimizer, "optimizers", [optimizer]))


def find_schedule(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.schedules.LearningRateSchedule | None:
    """Returns the schedule object of an optimizer's learning rate, or `None`."""
    rate = optimizer._learning_rate
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return rate if is_schedule else None


@contextmanager
def averaging_updates(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Context manager in which the moving averages of weights change with each update.

    Keras's change with each batch, also where several batches make an update.
    """
    with ExitStack() as stack:
        for single in single_optimizers(optimizer):
            if single.use_ema and single.gradient_accumulation_steps:
                apply = functools.partial(_apply_and_average, single)
                stack.enter_context(own_attributes(single, _backend_apply_gradients=apply))
        yield


def _apply_and_average(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], variables: Sequence[Any]
) -> None:
    is_update = ops.equal((optimizer._iterations + 1) % optimizer.gradient_accumulation_steps, 0)
    frequency = optimizer.ema_overwrite_frequency
    momentum = ops.where(is_update, optimizer.ema_momentum, 1.0)
    with own_attributes(optimizer, ema_momentum=momentum, ema_overwrite_frequency=None):
        type(optimizer)._backend_apply_gradients(optimizer, gradients, variables)
    if frequency:
        is_due = ops.equal((optimizer.iterations + 1) % frequency, 0)
        is_due = ops.logical_and(is_update, is_due)
        for variable, average in zip(
            optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
        ):
            if average is not None:
                variable.assign(ops.where(is_due, average.value, variable.value))


def optimizer_recipe(optimizer: keras.optimizers.Optimizer) -> tuple[type, dict[str, Any]]:
    """Returns an optimizer's class and config, in which a schedule is an object."""
    config = dict(optimizer.get_config())
    if (schedule := find_schedule(optimizer)) is not None:
        config["learning_rate"] = schedule  # Its class may not be registered.
    return type(optimizer), config


def uses_decay(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Returns True if an optimizer's weight decay applies to a variable."""
    return bool(optimizer._use_weight_decay(variable))


def exclude_from_decay(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> None:
    """Excludes variables from the weight decay of an optimizer that is not built yet."""
    optimizer.exclude_from_weight_decay(var_list=list(variables))


def count_update(optimizer: keras.optimizers.Optimizer) -> None:
    """Counts an optimizer step in which no variable changes."""
    optimizer._iterations.assign(optimizer._iterations.value + 1)


def find_variables_again(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes a built TensorFlow optimizer find variables whose inner variables were replaced."""
    optimizer._trainable_variables_indices = {
        optimizer._var_key(variable): index
        for index, variable in enumerate(optimizer._trainable_variables)
    }


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the position of a variable among those that an optimizer was built for.

    On TensorFlow, an optimizer's `update_step` gets the inner variable.
    """
    return int(optimizer._get_variable_index(variable))


def current_learning_rate(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the learning rate of the next update, also if a schedule computes it."""
    return plain_optimizer(optimizer)._get_current_learning_rate()


def has_fused_adam_step(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns True if an optimizer on PyTorch makes the same update as Keras's Adam or AdamW."""
    from keras.src.backend.torch.optimizers import torch_adam

    update = getattr(type(optimizer), "_parallel_update_step", None)
    return update is torch_adam.Adam._parallel_update_step


def adam_slots(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> tuple[list[keras.Variable], list[keras.Variable], list[keras.Variable]]:
    """Returns Adam's momentums, velocities and maximal velocities for some weights.

    The last ones are empty without `amsgrad`.
    """
    indices = [optimizer._get_variable_index(variable) for variable in variables]
    slots = [optimizer._momentums, optimizer._velocities]
    slots.append(optimizer._velocity_hats if optimizer.amsgrad else [])
    momentums, velocities, hats = ([group[i] for i in indices] if group else [] for group in slots)
    return momentums, velocities, hats


def clipping_by(
    optimizer: keras.optimizers.Optimizer, clip: Callable[[Sequence[Any]], Sequence[Any]]
) -> AbstractContextManager[None]:
    """Returns a context manager in which an optimizer clips accumulated gradients by a function.

    `clip` takes and returns the gradients of all variables but those that Keras overwrites by their
    gradients.
    """
    return own_attributes(optimizer, _clip_gradients=clip)


@contextmanager
def temporary_update(
    optimizer: keras.optimizers.Optimizer,
    update: Callable[..., None],
    *,
    clip: Callable[[Any, Sequence[Any]], Any] | None = None,
) -> Iterator[None]:
    """Context manager that replaces an optimizer's update on PyTorch, with its weight decay.

    `update` takes gradients, variables and the learning rate, once a step. `clip` takes the
    optimizer's own clipping and the gradients; `None` clips as the optimizer does.
    """
    methods: dict[str, Any] = {
        "_backend_update_step": update,
        "_apply_weight_decay": lambda _: None,
    }
    if clip is not None:
        methods["_clip_gradients"] = functools.partial(clip, optimizer._clip_gradients)
    with own_attributes(optimizer, **methods):
        yield


@contextmanager
def temporary_update_parts(
    optimizer: keras.optimizers.Optimizer,
    change: Callable[[Callable[..., None]], Callable[..., None]],
    change_single: Callable[[Callable[..., None]], Callable[..., None]],
    *,
    clip: Callable[[Any, Sequence[Any]], Any],
) -> Iterator[None]:
    """Context manager that changes the functions with which an optimizer updates weights.

    `change` takes and returns a function of gradients, variables and the learning rate, and
    `change_single` a function of one gradient, one variable and the rate. `clip` takes the
    optimizer's own clipping and the gradients.
    """
    by_keras = optimizer._apply_weight_decay

    def decay(variables: Sequence[keras.Variable]) -> None:
        change(lambda _, variables, __: by_keras(variables))([None] * len(variables), variables, 0)

    methods: dict[str, Any] = {
        "_clip_gradients": functools.partial(clip, optimizer._clip_gradients),
        "_apply_weight_decay": decay,
    }
    # Not the step around it, which may update a counter once for all weights.
    if hasattr(optimizer, "_parallel_update_step"):
        methods["_parallel_update_step"] = change(optimizer._parallel_update_step)
    else:
        methods["update_step"] = change_single(optimizer.update_step)
    with own_attributes(optimizer, **methods):
        yield


def own_update_method(optimizer: keras.optimizers.Optimizer) -> str | None:
    """Returns a method of the user that gets the gradients of all weights, or `None`."""
    for name in (
        *("apply", "apply_gradients", "_backend_apply_gradients"),
        *("_backend_update_step", "_clip_gradients"),
    ):
        owner = next(base for base in type(optimizer).__mro__ if name in vars(base))
        if not owner.__module__.startswith("keras."):
            return name
    return None


def weight_slots(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Returns the variables of a built optimizer that belong to a weight, each with that weight."""
    optimizer = plain_optimizer(optimizer)
    weights = list(optimizer._trainable_variables)
    pairs = []
    for value in vars(optimizer).values():
        if isinstance(value, dict):  # A dict by the paths of weights.
            slots = [value.get(weight.path) for weight in weights]
        elif isinstance(value, list) and len(value) == len(weights):
            slots = value
        else:
            continue
        pairs += [
            (slot, weight)
            for slot, weight in zip(slots, weights, strict=True)
            if isinstance(slot, keras.Variable) and slot is not weight
        ]
    return pairs


@contextmanager
def making_slots(
    optimizer: keras.optimizers.Optimizer,
    make: Callable[[keras.Variable, Callable[[], keras.Variable]], keras.Variable],
) -> Iterator[None]:
    """Context manager in which a function creates the slot variables of an optimizer.

    `make` takes a weight, and a function that creates the variable and returns it.
    """
    optimizer = plain_optimizer(optimizer)

    def add(reference_variable: keras.Variable, *args: Any, **kwargs: Any) -> keras.Variable:
        method = type(optimizer).add_variable_from_reference
        return make(
            reference_variable, lambda: method(optimizer, reference_variable, *args, **kwargs)
        )

    with own_attributes(optimizer, add_variable_from_reference=add):
        yield
