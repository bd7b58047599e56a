"""Access to Keras's building, compiling and training functions of a model."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.optimizers import plain_optimizer
from keras_deepseek.backend.keras_private.temporary_attributes import (
    own_attributes,
    temporary_attributes,
)


def build_for_training(model: keras.Model, batch: Any) -> None:
    """Creates the variables of a compiled model, its metrics and its optimizer, for a batch.

    The batch may hold arrays, tensors, symbolic tensors or `None`.
    """

    def describe(leaf: Any) -> keras.KerasTensor | None:
        is_described = leaf is None or isinstance(leaf, keras.KerasTensor)
        return leaf if is_described else keras.KerasTensor(leaf.shape, leaf.dtype)

    try:
        keras.Model._symbolic_build(model, data_batch=keras.tree.map_structure(describe, batch))
    except Exception as error:
        error.add_note("It came as the model was built for the first batch.")
        raise


def finish_building(model: keras.Model) -> bool:
    """Builds the optimizer of a model if all of its layers are built; returns True if they are."""
    if not all(layer.built for layer in model._flatten_layers(include_self=False)):
        return False
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    model._post_build()
    return True


def runs_as_written(model: keras.Model) -> bool:
    """Returns True if a model is run eagerly, or compiled as a whole: nothing may replace parts."""
    return bool(model.run_eagerly or model.jit_compile)


def overrides_train_step(model: keras.Model) -> bool:
    """Returns True if a model's class, or the model itself, has its own `train_step`."""
    return "train_step" in vars(model) or class_overrides_train_step(model)


def class_overrides_train_step(model: keras.Model) -> bool:
    """Returns True if a model's class has its own `train_step`."""
    return type(model).train_step is not keras.Model.train_step


@contextmanager
def temporary_train_step(
    model: keras.Model,
    train_step: Callable[..., Any],
    build: Callable[[Any], None] | None = None,
) -> Iterator[None]:
    """Context manager that replaces the training step of a model.

    `build` builds the model from a batch, if Keras's own building would not do.
    """
    own_step = vars(model).get("train_step")
    if build is not None:
        model._symbolic_build = _build_by(model, build)
    model.train_step = train_step
    try:
        yield
    finally:
        vars(model).pop("_symbolic_build", None)
        if own_step is None:
            del model.train_step
        else:
            model.train_step = own_step


def _build_by(model: keras.Model, build: Callable[[Any], None]) -> Callable[..., None]:
    """Returns Keras's `_symbolic_build` of a model, based on a function of one batch."""

    def symbolic_build(iterator: Any = None, data_batch: Any = None) -> None:
        parts = (model, model.optimizer, model._compile_metrics, model._compile_loss)
        if all(part is None or part.built for part in parts):
            return
        if data_batch is None:  # As Keras does.
            _, _, data = next(iter(iterator))
            data_batch = data[0] if isinstance(data, list | tuple) else next(data)
        build(data_batch)

    return symbolic_build


def compilation(model: keras.Model) -> object:
    """Returns an object that `model.compile` replaces, to detect that it was called again."""
    return model._compile_config


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the objects that `model.compile` was called with, by argument.

    The public `get_compile_config` serializes them, and loses metrics and losses that are plain
    functions.
    """
    return dict(model._compile_config.config)


def call_for_training(model: keras.Model, x: Any) -> Any:
    """Returns the outputs of a model, called with `training=True` if it takes that."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def is_validation_of_fit(options: dict[str, Any]) -> bool:
    """Returns True if `model.evaluate` has the options of the validation inside `model.fit`."""
    return bool(options.get("_use_cached_eval_dataset"))


def public_evaluate_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of `model.evaluate` without those that only `fit` passes."""
    private_options = ("_use_cached_eval_dataset", "callbacks")
    return {name: value for name, value in options.items() if name not in private_options}


def epoch_logs(model: keras.Model, logs: dict[str, Any]) -> dict[str, Any]:
    """Converts the logs of an epoch's last step to those of the epoch, as `model.fit` does."""
    return dict(model._get_metrics_result_or_logs(logs))


def count_samples(model: keras.Model) -> float | None:
    """Returns the number of samples that a model was trained on since the epoch began.

    Keras's running mean of the loss counts them. It is `None` if the model's own `train_step` does
    not update that mean. See `_value_during_step`.
    """
    count = getattr(getattr(model, "_loss_tracker", None), "count", None)
    return None if count is None else (_value_during_step(model, count) or None)


def count_train_steps(model: keras.Model) -> int:
    """Returns the number of steps that an optimizer was asked to make, updates or not.

    The public count omits those that only accumulated gradients.
    """
    return int(plain_optimizer(model.optimizer)._iterations)


def read_learning_rate(model: keras.Model) -> float | None:
    """Returns the current learning rate during a training, or `None` if it has no number.

    See `_value_during_step`.
    """
    optimizer = plain_optimizer(model.optimizer)
    rate = getattr(optimizer, "_learning_rate", None)
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        step = keras.ops.convert_to_tensor(
            int(_value_during_step(model, optimizer._iterations)), "int32"
        )
        return float(keras.ops.convert_to_numpy(rate(step)))
    if isinstance(rate, keras.Variable):
        return _value_during_step(model, rate)
    return None


def _value_during_step(model: keras.Model, variable: keras.Variable) -> float:
    """Reads a scalar variable that the training step changes. Call it before a step begins.

    On JAX, the values are outside of the variables during an epoch. Keras's own way to read one
    copies all of them back, which slows the next step.
    """
    state = getattr(model, "_jax_state", None)
    if state and not model._jax_state_synced:
        groups = {
            "metrics_variables": model.metrics_variables,
            "optimizer_variables": model.optimizer.variables,
        }
        for group, variables in groups.items():
            for candidate, value in zip(variables, state[group], strict=True):
                if candidate is variable:
                    return float(value)
    return float(keras.ops.convert_to_numpy(variable.value))


_GROUPS = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)
"""The groups of variables in the state, in Keras's order."""


def untracked_state(model: keras.Model) -> AbstractContextManager[None]:
    """Context manager in which Keras does not look for layers in the state of each JAX step."""
    track = model._tracker.track

    def track_others(value: Any) -> Any:
        return value if type(value) is dict and tuple(value) == _GROUPS else track(value)

    return own_attributes(model._tracker, track=track_others)


def read_state(model: keras.Model) -> Any:
    """Returns the values of a model's variables, grouped as in Keras's training step on JAX."""
    return model._get_jax_state(**dict.fromkeys(_GROUPS, True))


def hold_state(model: keras.Model, state: Any) -> None:
    """Stores a training state in a model; `model.jax_state_sync()` copies it to the variables."""
    model._jax_state = dict(zip(_GROUPS, state, strict=True))
    model._jax_state_synced = False


@contextmanager
def with_further_shardings(
    model: keras.Model, find_shardings: Callable[[], list[Any]]
) -> Iterator[None]:
    """Context manager that adds further variables' shardings behind those of the metrics."""
    by_keras = model._get_state_sharding_spec

    def find_all() -> Any:
        *other_shardings, metrics = by_keras()
        return *other_shardings, [*metrics, *find_shardings()]

    with own_attributes(model, _get_state_sharding_spec=find_all):
        yield


def trace_train_step(model: keras.Model, batch: Any) -> None:
    """Traces a model class's `train_step` on a structure of `KerasTensor`s."""

    def train_step(state: Any, batch: Any) -> Any:
        return type(model).train_step(model, state, batch)

    keras.src.backend.compute_output_spec(train_step, read_state(model), batch)


@contextmanager
def changed_steps(change: Callable[[Any], Any]) -> Iterator[None]:
    """Context manager that applies a function to the result of each compiled Keras step."""
    from keras.src.backend.jax.trainer import JAXTrainer

    by_keras = JAXTrainer._make_function

    def make_function(model: keras.Model, *arguments: Any, **options: Any) -> Any:
        step = by_keras(model, *arguments, **options)
        return lambda state, iterator: change(step(state, iterator))

    with temporary_attributes(JAXTrainer, _make_function=make_function):
        yield


def changed_data_distribution(
    distribute: Callable[[Any, Any, str], Any],
) -> AbstractContextManager[None]:
    """Returns a context manager that replaces Keras's function for putting arrays on devices.

    `distribute` takes an array, its layout, and the name of the batch axis.
    """
    return temporary_attributes(
        keras.src.backend.distribution_lib, distribute_data_input=distribute
    )


def distribute_array(array: Any, distribution: Any) -> Any:
    """Puts an array on the devices of a distribution, as Keras's training loop does."""
    return keras.src.backend.distribution_lib.distribute_data_input(
        array, distribution.get_data_layout(array.shape), distribution.batch_dim_name
    )
