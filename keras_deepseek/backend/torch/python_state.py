"""The state that a recording can't see: Python's attributes, hooks, and modes of PyTorch."""

import functools
import operator
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import torch
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.replaced_methods import without_replacement
from keras_deepseek.backend.keras_private.variables import (
    global_seed_state,
    has_global_seed,
    in_stateless_scope,
    keras_torch_device,
    raw_value,
)
from keras_deepseek.backend.known_packages import is_known

_TRAINING_ATTRIBUTES = {
    *("train_function", "test_function", "predict_function", "make_train_function", "train_step"),
    *("make_test_function", "make_predict_function", "evaluate", "history", "stop_training"),
    *("stop_evaluating", "stop_predicting", "_eval_epoch_iterator", "_initial_epoch", "compiled"),
    *("test_step", "predict_step", "steps_per_execution", "_run_eagerly", "_symbolic_build"),
    "_compile_config",
}
"""The attributes of a model that Keras's loops and ours change between two steps."""
_CALL_ATTRIBUTES = {
    *("_losses", "_loss_ids", "_losses_override", "_inbound_nodes", "_outbound_nodes", "_metrics"),
    *("_layers", "_trainable_variables", "_non_trainable_variables", "_seed_generators"),
    *("_parameters", "_buffers", "_modules", "_call_context_args", "_call_has_context_arg"),
    *("call_signature_parameters", "_build_shapes_dict", "_auto_config"),
}
"""The attributes of a layer whose contents need not be compared."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_call_layer = keras.Layer.__call__
_read_trainable = operator.attrgetter("requires_grad")


class PythonState:
    """The attributes of a model's layers, losses and metrics, and settings of the process.

    A recording depends on them, such as on the `rate` of a dropout. They are remembered as they are
    when the object is made.
    """

    def __init__(self, model: keras.Model) -> None:
        self._handles = -1
        self.layers = flatten_layers(model)
        self.variables = _variables_of(model)
        self._optimizer = getattr(model, "optimizer", None)
        models = [layer for layer in self.layers if isinstance(layer, keras.Model)]
        plain_layers = [layer for layer in self.layers if not isinstance(layer, keras.Model)]
        owners = list(_objects_in(self.layers))
        self._models = [vars(layer) for layer in models]
        self._attributes = [vars(owner) for owner in (*plain_layers, *owners)]
        self._names = list(map(list, self._attributes))
        self._containers = [
            value
            for owner in (*self.layers, *owners)
            for name, value in vars(owner).items()
            if isinstance(value, list | dict)
            and (name == "_layers" or name not in _CALL_ATTRIBUTES)
            and not name.endswith("_hooks")
            and name not in _TRAINING_ATTRIBUTES
        ]
        self._copies = list(map(_copy, self._containers))
        self._classes = list({type(layer) for layer in self.layers})
        mro = {base for owner in self._classes for base in owner.__mro__}
        self._own_classes = [vars(base) for base in mro if not is_known(base, "torch", "builtins")]
        # The rule for code, `graph/known_code.py`, leaves in layers what it read of users' code.
        readings = (vars(layer).get("_code_reading") for layer in self.layers)
        self._readings = [reading for reading in readings if reading is not None]
        self._state = self._read()

    def restore(self) -> None:
        """Gives layers their remembered attributes, after a call that was broken off."""
        for attributes, names, values in zip(
            self._attributes, self._names, self._state[0], strict=True
        ):
            for name in attributes.keys() - set(names):
                del attributes[name]
            attributes.update(zip(names, values, strict=True))

    def is_same(self) -> bool:
        """Returns True if the state is the one that was remembered."""
        if not all(reading.is_current() for reading in self._readings):
            return False  # A global, a closure, or an object that a layer holds.
        try:
            return self._state == self._read() and self._containers == self._copies
        except (RuntimeError, ValueError):  # An array or a tensor was replaced by another.
            return False

    def _read(self) -> Any:
        # Equal lists are compared by identity first, which is fast.
        return (
            list(map(list, map(dict.values, self._attributes))),
            [
                [value for name, value in attributes.items() if name not in _TRAINING_ATTRIBUTES]
                for attributes in self._models
            ],
            list(map(type, self.layers)),
            [without_replacement(owner.call) for owner in self._classes],
            [list(attributes.values()) for attributes in self._own_classes],
            getattr(self._optimizer, "loss_scale_factor", None),
            _read_settings(),
        )

    @functools.cached_property
    def has_known_layers(self) -> bool:
        """True if users gave the layers no methods and no functions. An `__init__` runs no step."""
        methods = [
            member
            for members in self._own_classes
            for name, member in members.items()
            if callable(member) and not isinstance(member, type) and name != "__init__"
        ]
        values = [value for attributes in self._attributes for value in attributes.values()]
        functions = (types.FunctionType, types.MethodType, functools.partial)
        return not methods and all(
            is_known(getattr(value, "__func__", value), "torch")
            for value in values
            if isinstance(value, functions)
        )

    def has_hooks(self) -> bool:
        """Returns True if a hook watches a layer or the gradient of a variable."""
        # PyTorch counts the hooks that were ever added.
        if self._handles == RemovableHandle.next_id:
            return False
        variables = map(raw_value, self.variables)
        if (
            any(vars(layer)[name] for layer in self.layers for name in _HOOKS)
            or any(vars(torch_module)[f"_global{name}"] for name in _HOOKS)
            or any(value is not None and value._backward_hooks for value in variables)  # noqa: SLF001
        ):
            return True
        self._handles = RemovableHandle.next_id
        return False


class UsedVariables:
    """The variables that a recording uses, with the tensors that they had."""

    def __init__(
        self, variables: Sequence[keras.Variable], tensors: Sequence[torch.Tensor]
    ) -> None:
        by_id = {id(raw_value(variable)): variable for variable in variables}
        pairs = [(by_id[id(tensor)], tensor) for tensor in tensors if id(tensor) in by_id]
        self._variables = [variable for variable, _ in pairs]
        self._tensors = [tensor for _, tensor in pairs]
        self._state = self._read()

    def are_same(self) -> bool:
        """Returns True if the variables have the same tensors, in the same memory."""
        tensors = map(raw_value, self._variables)
        return all(map(operator.is_, tensors, self._tensors)) and self._state == self._read()

    def _read(self) -> Any:
        return (
            list(map(torch.Tensor.data_ptr, self._tensors)),
            list(map(_read_trainable, self._tensors)),
        )


def is_watched() -> bool:
    """Returns True if something watches or changes each operation or layer that runs now.

    Examples are a mode of PyTorch, its search for anomalies, and a profile of layers.
    """
    return bool(
        torch._C._len_torch_dispatch_stack()  # noqa: SLF001
        or torch._C._len_torch_function_stack()  # noqa: SLF001
        or torch.is_anomaly_enabled()
        or torch._C._autograd._top_saved_tensors_default_hooks(True)  # noqa: FBT003, SLF001
        or torch.compiler.is_compiling()
        or keras.Layer.__call__ is not _call_layer
        or in_stateless_scope()
    )


def _read_settings() -> tuple[Any, ...]:
    """Returns the settings of Keras and PyTorch on which operations depend."""
    return (
        keras.config.floatx(),
        keras.config.epsilon(),
        keras.config.image_data_format(),
        keras.config.is_flash_attention_enabled(),
        keras_torch_device(),
        id(global_seed_state()) if has_global_seed() else None,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def _copy(value: Any) -> Any:
    """Returns a copy of nested lists and dicts, with what they hold."""
    if isinstance(value, dict):
        return {name: _copy(element) for name, element in value.items()}
    return list(map(_copy, value)) if isinstance(value, list) else value


def _variables_of(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of a model, its metrics and its optimizer, and Keras's global seed."""
    optimizer = getattr(model, "optimizer", None)
    seed = [global_seed_state()] if has_global_seed() else []
    of_optimizer = [] if optimizer is None else optimizer.variables
    return [*model.variables, *model.metrics_variables, *of_optimizer, *seed]


def _objects_in(owners: Sequence[Any]) -> Iterator[Any]:
    """Yields the losses, metrics and regularizers that objects hold, at any depth."""
    kinds = (keras.losses.Loss, keras.metrics.Metric, keras.regularizers.Regularizer)
    visited: set[int] = set()
    to_visit = list(owners)
    while to_visit:
        for value in vars(to_visit.pop()).values():
            elements = list(value.values()) if isinstance(value, dict) else value
            for element in elements if isinstance(elements, list | tuple) else [value]:
                if isinstance(element, kinds) and id(element) not in visited:
                    visited.add(id(element))
                    to_visit.append(element)
                    yield element
