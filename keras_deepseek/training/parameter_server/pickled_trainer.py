"""Pickling of a trainer for Ray workers: its class with `train_step`, its model, loss and metrics.

Keras pickles a model by the names of its classes, which another process may not know. Here it is
sent as config and weights together with the classes, or as the function that builds it. If the
trainer or a loss refers to a layer of the model, it refers to the worker's layer after unpickling.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.data.random_state import seed_generators
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.trainers import compile_arguments
from keras_deepseek.errors import InvalidInputError

_OWN = ("model", "_batch_loss", "_plan", "_session", "_cluster", "_callbacks", "_recorder")
"""The attributes of a trainer that stay with the chief."""

_BY_CONFIG = (keras.losses.Loss, keras.metrics.Metric, keras.optimizers.Optimizer)


def pickle_trainer(
    trainer: Any, make_model: Callable[[], keras.Model] | None, step: Mapping[str, Any]
) -> bytes:
    """Pickles a trainer, the function that built its model, and arguments of a step.

    `step` has the arguments of `take_gradient_step`.
    """
    model = trainer.model
    shell = copy.copy(trainer)
    for name in _OWN:
        vars(shell).pop(name, None)
    names = ("loss", "loss_weights", "metrics", "weighted_metrics", "jit_compile")
    compiled = compile_arguments(model)
    settings = {name: compiled[name] for name in names if name in compiled}
    recipe: Any = make_model
    if make_model is None:
        recipe = {**_describe(model), "weights": []}  # The chief sends all variables later.
    model_bytes = _dump(f"model {model.name!r}", recipe, {})
    layers = {id(layer): index for index, layer in enumerate(flatten_layers(model))}
    step_bytes = _dump(f"the {type(trainer).__name__}", (shell, settings, dict(step)), layers)
    return pickle.dumps((vars(trainer).get("_seed"), model_bytes, step_bytes))


def unpickle_trainer(packed: bytes) -> tuple[Any, dict[str, Any]]:
    """Restores a trainer with its compiled model, and the arguments of `take_gradient_step`."""
    seed, model_bytes, step_bytes = pickle.loads(packed)
    if seed is not None:  # The function that builds the model may draw random numbers.
        seed_generators(seed)
    recipe = _load(model_bytes, [])
    model = recipe() if callable(recipe) else _restore(**recipe)
    shell, settings, step = _load(step_bytes, flatten_layers(model))
    # The servers have the optimizer.
    model.compile(optimizer=keras.optimizers.SGD(0.0), auto_scale_loss=False, **settings)
    vars(shell)["model"] = model
    return shell, step


def _describe(model: keras.Layer) -> dict[str, Any]:
    """Returns a dict with a layer's or model's config, custom classes and weights."""
    with warnings.catch_warnings():
        # Keras's warning about lambdas is about files from strangers; these bytes are our own.
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
        config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return {
        "config": config,
        "classes": _own_classes(model),
        "weights": [keras.ops.convert_to_numpy(variable.value) for variable in model.variables],
    }


def _own_classes(layer: keras.Layer) -> dict[str, Any]:
    """Returns the custom classes that Keras needs to restore a layer, by their config names."""
    registered = {
        name: custom_object
        for name, custom_object in keras.saving.get_custom_objects().items()
        if not _is_known(custom_object)
    }
    used = [type(inner) for inner in flatten_layers(layer)]
    own_classes = {layer_class for layer_class in used if not _is_known(layer_class)}
    return {
        **registered,
        **{
            keras.saving.get_registered_name(layer_class): layer_class
            for layer_class in own_classes
        },
        **{layer_class.__name__: layer_class for layer_class in own_classes},
    }


def _is_known(custom_object: Any) -> bool:
    """Returns True if a class or function is from Keras or this package, so workers have it."""
    return getattr(custom_object, "__module__", "").split(".")[0] in ("keras", "keras_deepseek")


def _restore(config: Any, classes: dict[str, Any], weights: list[Any]) -> keras.Layer:
    with keras.saving.custom_object_scope(classes):
        layer = keras.saving.deserialize_keras_object(config, safe_mode=False)
    # A layer that is built by its first batch gets its values from the chief then.
    if len(layer.variables) == len(weights):
        for variable, value in zip(layer.variables, weights, strict=True):
            variable.assign(value)
    return layer


def _from_config(cls: type, config: dict[str, Any]) -> Any:
    return cls.from_config(config)  # type: ignore[attr-defined]


def _dump(what: str, value: Any, layers: Mapping[int, int]) -> bytes:
    """Pickles a value, with the model's layers replaced by their indices."""
    from ray.cloudpickle import CloudPickler

    class Pickler(CloudPickler):
        def persistent_id(self, obj: Any) -> int | None:
            return layers.get(id(obj)) if isinstance(obj, keras.Layer) else None

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, _BY_CONFIG):
                return _from_config, (type(obj), obj.get_config())
            if isinstance(obj, keras.Layer):
                described = _describe(obj)
                return _restore, (described["config"], described["classes"], described["weights"])
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    try:
        Pickler(buffer).dump(value)
    except Exception as error:
        raise InvalidInputError(
            f"Workers get {what} by pickle, and that fails: {_first_line(error)}. Pass a function "
            "that builds the model to the Trainer, and keep objects that can't be pickled, such as "
            "open files, out of the trainer and its train_step."
        ) from error
    return buffer.getvalue()


def _load(data: bytes, layers: list[keras.Layer]) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, index: Any) -> keras.Layer:
            return layers[index]

    return Unpickler(io.BytesIO(data)).load()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def as_arrays(batch: Any) -> Any:
    """Converts the tensors of a batch to NumPy arrays. `None` stays `None`."""

    def convert(leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, np.ndarray):
            return leaf
        return keras.ops.convert_to_numpy(leaf)

    return keras.tree.map_structure(convert, batch)
