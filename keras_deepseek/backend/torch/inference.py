"""Models in inference mode, and decoding steps that are recorded, on PyTorch.

A small step of PyTorch spends most of its time in Python, in what Keras does around each layer. So
a step that comes often with the same shapes is recorded: from then on its operations run one after
the other, without the layers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import torch
from keras import ops
from torch.fx.experimental.proxy_tensor import make_fx

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.call_context import set_temporarily
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.protocols.inference import Inference
from keras_deepseek.backend.torch.compute import IS_RECORDED, UnrecordedFunctions

_OWNS_STATE: ContextVar[bool] = ContextVar("owns_state", default=False)
"""True if the tensors of a cache belong to a function that may write into them."""

_CALLS_BEFORE_RECORDING = 12
"""The calls after which a step is recorded. Recording takes as long as some tens of steps."""


class TorchInference(Inference):
    """Implements `Inference` by PyTorch."""

    def compile_inference(self, model: NamedModel) -> InferenceFunction:
        model.model.eval()

        def infer(inputs: dict[str, Array]) -> dict[str, Array]:
            with torch.inference_mode():
                tensors = {
                    name: keras.ops.convert_to_tensor(array) for name, array in inputs.items()
                }
                return {
                    name: keras.ops.convert_to_numpy(tensor)
                    for name, tensor in model(tensors).items()
                }

        return infer

    def compile_with_state(
        self, function: Callable[..., tuple[Any, Any]], variables: Sequence[keras.Variable]
    ) -> Callable[..., tuple[Any, Any]]:
        variables, calls, recordings = list(variables), Counter[Any](), dict[Any, Any]()

        def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
            inputs = keras.tree.map_structure(_make_tensor, inputs)
            with torch.inference_mode(), set_temporarily(_OWNS_STATE, value=True):
                if state is None:
                    return function(state, *inputs)
                key = _describe(state, inputs)
                calls[key] += 1
                if calls[key] == _CALLS_BEFORE_RECORDING:
                    recordings[key] = _record(function, variables, state, inputs)
                recording = recordings.get(key)
                if recording is None:
                    return function(state, *inputs)
                outputs: tuple[Any, Any] = recording(state, inputs)
                return outputs

        return step

    def compiles_by_shape(self) -> bool:
        return False  # The first call runs eagerly. A step is recorded later.

    def write_slots(self, tensor: Any, start: Any, update: Any) -> Any:
        if not _OWNS_STATE.get():
            return super().write_slots(tensor, start, update)
        if isinstance(start, int):
            tensor[:, start : start + update.shape[1]] = update
            return tensor
        slots = torch.arange(update.shape[1], device=tensor.device) + start
        return tensor.index_copy_(1, slots, update)

    def run_unrecorded(self, function: Callable[..., Any], *tensors: Any) -> Any:
        functions = UnrecordedFunctions.current.get()
        if functions is None or tensors[0].device.type != "cpu":
            return function(*tensors)
        return functions.record(function, tensors)


def _describe(state: Any, inputs: Any) -> Any:
    """Returns a key for recordings: shapes, dtypes and types of a state and inputs."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else type(leaf)
        for leaf in keras.tree.flatten((state, inputs))
    )


def _record(
    function: Callable[..., tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    state: Any,
    inputs: Any,
) -> Callable[[Any, Any], tuple[Any, Any]] | None:
    """Records a function of state and inputs, or returns `None` if it depends on values."""
    structure: list[Any] = []  # Set by `run`: the result's structure, as its only item.

    def run(values: list[torch.Tensor], leaves: list[Any]) -> list[Any]:
        arguments = keras.tree.pack_sequence_as((state, inputs), leaves)
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping), set_temporarily(IS_RECORDED, value=True):
            result = function(arguments[0], *arguments[1])
        # Zeros stand for the tensors, which the recording would keep alive.
        structure[:] = [keras.tree.map_structure(lambda _: 0, result)]
        return list(keras.tree.flatten(result))

    values = [variable.value for variable in variables]
    leaves = _flatten_to_tensors(state, inputs, None)
    device = next((leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)), None)
    try:
        # Recording runs the step: it writes into the state, and the recording writes the same
        # again.
        with set_temporarily(UnrecordedFunctions.current, UnrecordedFunctions()) as functions:
            graph = make_fx(run)(values, _flatten_to_tensors(state, inputs, device))
    except (RuntimeError, TypeError, ValueError):
        return None
    functions.replace_calls(graph)
    result = structure[0]

    def replay(state: Any, inputs: Any) -> tuple[Any, Any]:
        values = [variable.value for variable in variables]
        outputs = graph.forward(values, _flatten_to_tensors(state, inputs, device))
        packed: tuple[Any, Any] = keras.tree.pack_sequence_as(result, outputs)
        return packed

    return replay


def _flatten_to_tensors(state: Any, inputs: Any, device: Any) -> list[Any]:
    """Returns the tensors of a state and inputs as a list, with integers as int32 tensors."""
    return [
        torch.tensor(leaf, dtype=torch.int32, device=device) if isinstance(leaf, int) else leaf
        for leaf in keras.tree.flatten((state, inputs))
    ]


def _make_tensor(value: Any) -> Any:
    """Converts an array to a tensor; returns anything else unchanged."""
    return ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
