"""Builds and compiles a trainer's model with the trainer's optimizer, loss and metrics."""

import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any, Literal

import keras

from keras_deepseek.backend.data.random_state import seed_generators
from keras_deepseek.backend.keras_private.trainers import compile_arguments
from keras_deepseek.errors import InvalidInputError, NotSupportedError, unknown_name_message
from keras_deepseek.graph.optimized_model import OptimizedModel
from keras_deepseek.training.cluster.placement import Placement
from keras_deepseek.training.step.precision import with_loss_scaling
from keras_deepseek.training.step.warmup_decay import count_updates


def set_seed(seed: int | None) -> int | None:
    """Seeds Python, NumPy, Keras and the framework unless the seed is `None`; returns the seed."""
    if seed is not None:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InvalidInputError(
                f"`seed` must be an integer from 0 to 2**32 - 1; received {seed!r}."
            )
        seed_generators(seed)
    return seed


_CHOSEN_BY_OUTPUTS = ("accuracy", "acc")
"""Names for which Keras chooses a metric by the shapes of targets and outputs."""


def build_model(model: keras.Model | Callable[[], keras.Model]) -> keras.Model:
    """Returns the given model, or the model that the given function builds."""
    built = model
    if not isinstance(model, keras.Layer) and callable(model):  # A model is callable too.
        _check_no_arguments(model)
        built = model()
    if not isinstance(built, keras.Model):
        raise InvalidInputError(
            "`model` must be a keras.Model, or a function that builds one; received "
            f"{type(built).__name__}: {built!r}."
        )
    return built


def _check_no_arguments(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # A function that is not written in Python has none.
        return
    try:
        signature.bind()
    except TypeError as error:
        raise InvalidInputError(
            "The function that builds the model is called without arguments, but it takes "
            f"{signature}. Pass `lambda: build(...)`, or the model itself."
        ) from error


_WHERE_IT_GOES = {
    "auto_scale_loss": "precision='float16' scales the loss; pass that, or leave it out",
    **{
        name: f"compile the model first, as in model.compile({name}={example}), and pass the model"
        for name, example in (
            ("run_eagerly", True),
            ("steps_per_execution", 8),
            ("jit_compile", True),
        )
    },
}
"""The advice for each argument of `keras.Model.compile` that `Trainer` does not take."""


def refuse_unknown_arguments(names: Iterable[str], trainer_class: type) -> None:
    """Raises an error for arguments that `Trainer` does not take, if there are any."""
    for name in names:
        if name in _WHERE_IT_GOES:
            raise InvalidInputError(f"Trainer takes no `{name}`: {_WHERE_IT_GOES[name]}.")
        parameters = inspect.signature(trainer_class).parameters.values()
        accepted_names = [entry.name for entry in parameters if entry.kind != entry.VAR_KEYWORD]
        raise InvalidInputError(unknown_name_message("Trainer() argument", name, accepted_names))


def compile_model(
    model: keras.Model,
    optimizer: Any,
    loss: Any,
    metrics: Any,
    policy: keras.DTypePolicy | None,
    *,
    loss_weights: Any = None,
    weighted_metrics: Any = None,
) -> None:
    """Compiles a model with a trainer's optimizer, loss and metrics.

    An argument that is `None` keeps the model's own setting.
    """
    metrics, weighted_metrics = (
        # A single metric needs no list.
        value if value is None or isinstance(value, list | tuple | dict) else [value]
        for value in (metrics, weighted_metrics)
    )
    arguments = {
        "optimizer": optimizer,
        "loss": loss,
        "loss_weights": loss_weights,
        "metrics": metrics,
        "weighted_metrics": weighted_metrics,
    }
    arguments = {name: value for name, value in arguments.items() if value is not None}
    settings = compile_arguments(model) if model.compiled else {}
    if model.compiled:
        settings["optimizer"] = model.optimizer  # The object, with its state.
    settings.update(arguments)
    if settings.get("optimizer") is None:
        raise InvalidInputError(
            f"Model {model.name!r} was not compiled with an optimizer: pass "
            "Trainer(..., optimizer=...), as in optimizer='adam'."
        )
    requested = settings["optimizer"]
    settings["optimizer"] = with_loss_scaling(_find("optimizer", requested), policy)
    count_updates(settings["optimizer"])
    for loss_leaf in _leaves(loss):
        _find("loss", loss_leaf)
    _check_outputs(model, "loss", loss)
    _check_outputs(model, "loss_weights", loss_weights)
    _check_loss_weights(settings.get("loss"), loss_weights)
    for metric in [*_leaves(metrics), *_leaves(weighted_metrics)]:
        if str(metric).lower() not in _CHOSEN_BY_OUTPUTS:
            _find("metric", metric)
    if arguments or settings["optimizer"] is not requested:
        settings["auto_scale_loss"] = False  # `with_loss_scaling` has decided.
        model.compile(**_arguments_of_compile(model, settings))


def _arguments_of_compile(model: keras.Model, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments for `model.compile`, which the model's class may override.

    The override also gets its own arguments again, from the attributes of their names.
    """
    if type(model).compile is keras.Model.compile:
        return settings
    parameters = inspect.signature(model.compile).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    accepted = {
        name: setting for name, setting in settings.items() if takes_any or name in parameters
    }
    weights = [name for name in ("loss_weights", "weighted_metrics") if settings.get(name)]
    unknown = [
        name
        for name in ("optimizer", "loss", "metrics", *weights)
        if name in settings.keys() - accepted
    ]
    keras_parameters = inspect.signature(keras.Model.compile).parameters
    added_names = [
        name
        for name, parameter in parameters.items()
        if name not in keras_parameters
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    lost = [name for name in added_names if not hasattr(model, name)] if model.compiled else []
    if unknown or lost:
        what = f"takes no {', '.join(unknown)}" if unknown else f"would lose its {', '.join(lost)}"
        raise InvalidInputError(
            f"compile() of {type(model).__name__!r} {what}: compile the model yourself, with all "
            "its arguments, and give the Trainer no optimizer, loss or metrics, and no float16."
        )
    return accepted | {name: getattr(model, name) for name in added_names if hasattr(model, name)}


def _check_loss_weights(loss: Any, loss_weights: Any) -> None:
    """Raises an error if the weights of losses are not a number for each loss."""
    if loss_weights is None:
        return
    leaves = _leaves(loss_weights)
    if not all(isinstance(leaf, numbers.Real) and not isinstance(leaf, bool) for leaf in leaves):
        raise InvalidInputError(
            "`loss_weights` must be a number for each loss, in a list or by output name as the "
            f"losses are, as in {{'price': 1.0, 'sales': 0.5}}; received {loss_weights!r}."
        )
    is_config = isinstance(loss, dict) and "class_name" in loss
    if not is_config and len(leaves) != (count := len(keras.tree.flatten(loss))):
        raise InvalidInputError(
            f"`loss_weights` must have a number for each loss; received {loss_weights!r} for "
            f"{count} in `loss`."
        )


def _check_outputs(model: keras.Model, argument: str, values: Any) -> None:
    """Raises an error if a dict of losses names an output that the model does not have."""
    if not isinstance(values, dict) or "class_name" in values:
        return
    if isinstance(model, keras.Sequential):
        raise InvalidInputError(
            f"{model.name!r} is a Sequential, whose output has no name: pass its {argument} "
            f"without a dict, as in {argument}={next(iter(values.values()), 'mse')!r}; received "
            f"{values!r}."
        )
    names = set(getattr(model, "output_names", None) or ())  # A subclassed model has none.
    if names and isinstance(model.output, dict):
        names |= set(model.output)  # Keras takes these names, and those of the layers.
    unknown = [name for name in values if names and name not in names]
    if unknown:
        raise InvalidInputError(unknown_name_message("output of the model", unknown[0], names))


def _leaves(structure: Any) -> list[Any]:
    """Returns the losses or metrics in a nested structure, without `None` and configs."""
    if isinstance(structure, dict) and "class_name" in structure:
        return []
    if isinstance(structure, dict | list | tuple):
        inner = structure.values() if isinstance(structure, dict) else structure
        return [leaf for nested in inner for leaf in _leaves(nested)]
    return [] if structure is None else [structure]


_EXPECTED = {
    "optimizer": "a Keras optimizer, or its name, as in 'adam'",
    "loss": "a Keras loss, a function, or its name, as in 'mse'",
    "metric": "a Keras metric, a function, or its name, as in 'accuracy'",
}


def _check_kind(kind: Literal["optimizer", "loss", "metric"], value: Any) -> None:
    if isinstance(value, type) and kind != "metric":  # Keras creates an object of a metric class.
        raise InvalidInputError(
            f"`{kind}` is the class {value.__name__}: pass an object of it, as in "
            f"{value.__name__}()."
        )
    is_optimizer = isinstance(value, keras.optimizers.Optimizer)
    if not (is_optimizer if kind == "optimizer" else callable(value)):
        raise InvalidInputError(
            f"`{'metrics' if kind == 'metric' else kind}` must be {_EXPECTED[kind]}; received "
            f"{type(value).__name__}: {value!r}."
        )


def _find(kind: Literal["optimizer", "loss", "metric"], value: Any) -> Any:
    """Returns the optimizer, loss or metric for a name or a config; raises an error if unknown."""
    if not isinstance(value, str) and not (kind == "optimizer" and isinstance(value, dict)):
        _check_kind(kind, value)
        return value
    find = {
        "optimizer": keras.optimizers.get,
        "loss": keras.losses.get,
        "metric": keras.metrics.get,
    }[kind]
    try:
        return find(value)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"Unknown {kind} {value!r}: expected {_EXPECTED[kind]}.") from error


def check_optimizable(model: keras.Model, placement: Placement, *, uses_servers: bool) -> None:
    """Raises an error if `optimize_graph` does not fit the model or its devices.

    Raises:
        InvalidInputError: The model is optimized already.
        NotSupportedError: Devices or servers divide the model.
    """
    if isinstance(model, OptimizedModel):
        raise InvalidInputError(
            f"Model {model.name!r} is optimized already: leave optimize_graph out. It trains by "
            "programs if it was made by graph.optimize(..., mode='train')."
        )
    dividers = {
        "a parameter server": uses_servers,
        "devices for layers (device_map)": placement.layers is not None,
        "ModelParallel": isinstance(placement.distribution, keras.distribution.ModelParallel),
    }
    for name, is_used in dividers.items():
        if is_used:
            raise NotSupportedError(
                f"optimize_graph=True makes one program of the model, but {name} divides the "
                "model. Leave one of the two out."
            )
