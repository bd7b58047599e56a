"""Places the layers of a model on several devices, if it does not fit on one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import own_variables
from keras_deepseek.backend.keras_private.optimizers import (
    making_slots,
    plain_optimizer,
    weight_slots,
)
from keras_deepseek.backend.keras_private.trainers import compilation
from keras_deepseek.training.cluster.layer_devices import LayerDevice, find_layer_devices

_FUNCTIONS = ("test_function", "predict_function")


class LayerPlacement:
    """The placement of a model's layers on devices while a trainer uses it.

    Weights and optimizer slots stay on their devices afterwards. The layers compute there only
    during the use. `devices` has the device for each pattern of layer names; the first is that of
    all other layers.
    """

    def __init__(self, devices: Mapping[str, str]) -> None:
        # Moves nothing, but raises an error on a backend that can't move variables.
        backend.current().devices.move_variables([], None)
        self.default = next(iter(devices.values()))
        self._devices = dict(devices)
        self._stack: ExitStack | None = None
        self._layer_devices: list[LayerDevice] = []
        self._placed: dict[int, tuple[keras.Variable, str]] = {}
        self._functions: dict[str, Any] = {}
        self._compiled_for: object = None

    def check(self, model: keras.Model) -> None:
        """Raises an error if a pattern matches none of the built model's layers."""
        if model.built:
            find_layer_devices(model, self._devices)

    @contextmanager
    def in_use(self, model: keras.Model) -> Iterator[None]:
        """Context manager in which the layers of a model compute on their devices.

        Layers of a model that is not built yet do so from the call of `begin` on.
        """
        if self._stack is not None:  # An evaluation between two steps.
            yield
            return
        with backend.current().devices.on_device(self.default), ExitStack() as stack:
            stack.callback(self._leave)
            self._stack = stack
            self.begin(model)
            stack.enter_context(making_slots(model.optimizer, self._slot_maker(model)))
            stack.enter_context(self._own_functions(model))
            yield

    def begin(self, model: keras.Model, *, is_in_step: bool = False) -> None:
        """Moves the model's variables to their devices, and makes the layers compute there.

        It does nothing if the model is not built or the placement is not in use. Call it again when
        there are more variables. `is_in_step` is true during the first step.
        """
        if self._stack is None or not model.built:
            return
        if not self._layer_devices:
            self._layer_devices = find_layer_devices(model, self._devices)
            for layer_device in self._layer_devices:
                for variable in own_variables(layer_device.layer):
                    self._placed.setdefault(id(variable), (variable, layer_device.device))
            self._stack.enter_context(_computing(self._layer_devices))
        optimizer = plain_optimizer(model.optimizer)
        is_any_moved = backend.current().devices.move_variables(
            self._list_variables(model), optimizer
        )
        if is_any_moved and not is_in_step:
            # Functions that were compiled before refer to the variables before the move.
            self._functions.clear()
            for layer_device in self._layer_devices:
                if isinstance(layer_device.layer, keras.Model):
                    layer_device.layer.train_function = None
                    layer_device.layer.test_function = layer_device.layer.predict_function = None

    def _leave(self) -> None:
        self._stack, self._layer_devices, self._placed = None, [], {}

    def _list_variables(self, model: keras.Model) -> list[tuple[keras.Variable, str]]:
        """Returns all variables of a training with their devices.

        An optimizer's slots are on the device of their weight.
        """
        devices = dict(self._placed)
        optimizer = plain_optimizer(model.optimizer)
        if optimizer.built:
            for slot, weight in weight_slots(optimizer):
                if id(weight) in devices:
                    devices[id(slot)] = (slot, devices[id(weight)][1])
        for variable in (*model.optimizer.variables, *model.metrics_variables):
            devices.setdefault(id(variable), (variable, self.default))
        return list(devices.values())

    def _slot_maker(
        self, model: keras.Model
    ) -> Callable[[keras.Variable, Callable[[], keras.Variable]], keras.Variable]:
        """Returns a function that creates the optimizer's slots on the devices of their weights.

        All of them might not fit on one device.
        """

        def make(weight: keras.Variable, make_slot: Callable[[], keras.Variable]) -> keras.Variable:
            if not self._layer_devices:  # The model was built by the current step.
                self.begin(model, is_in_step=True)
            _, device = self._placed.get(id(weight), (weight, self.default))
            with backend.current().devices.on_device(device):
                slot = make_slot()
            # In a step that is traced, the slot is not on the device yet.
            backend.current().devices.move_variables([(slot, device)], None)
            return slot

        return make

    @contextmanager
    def _own_functions(self, model: keras.Model) -> Iterator[None]:
        """Context manager in which a model evaluates and predicts without XLA.

        XLA would compile them for a single device.
        """
        compiled = compilation(model)
        if self._compiled_for is not compiled:
            self._functions.clear()
            self._compiled_for = compiled
        model_functions = {name: getattr(model, name) for name in _FUNCTIONS}

        def replace(name: str) -> None:
            """Replaces a function of the model, and the method by which Keras makes it."""

            def make(force: bool = False) -> None:
                self.begin(model)
                jit_compile, model.jit_compile = model.jit_compile, False
                try:
                    getattr(type(model), f"make_{name}")(model, force=force)
                finally:
                    model.jit_compile = jit_compile

            setattr(model, name, self._functions.get(name))
            setattr(model, f"make_{name}", make)

        for name in _FUNCTIONS:
            replace(name)
        try:
            yield
        finally:
            is_same = compilation(model) is compiled
            for name, function in model_functions.items():
                delattr(model, f"make_{name}")
                if is_same:
                    self._functions[name] = getattr(model, name)
                setattr(model, name, function if is_same else None)


@contextmanager
def _computing(layer_devices: list[LayerDevice]) -> Iterator[None]:
    """Context manager that replaces the `call` of layers by one on their device.

    Layers whose inputs and outputs never leave their device stay as they are.
    """
    chosen = [layer_device for layer_device in layer_devices if layer_device.meets_others]
    own_calls = [vars(layer_device.layer).get("call") for layer_device in chosen]
    for layer_device in chosen:
        layer_device.layer.call = backend.current().devices.compute_on(
            layer_device.layer,
            layer_device.layer.call,
            layer_device.device,
            is_away=layer_device.is_away,
            comes_back=layer_device.comes_back,
        )
    try:
        yield
    finally:
        for layer_device, own_call in zip(chosen, own_calls, strict=True):
            if own_call is None:
                del layer_device.layer.call
            else:
                layer_device.layer.call = own_call
