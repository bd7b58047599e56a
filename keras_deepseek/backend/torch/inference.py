"""Models in inference mode, and decoding steps that are recorded, on PyTorch.

A small step of PyTorch spends most of its time in Python, in what Keras does around each layer. So
a step that comes often with the same shapes is recorded: from then on its operations run one after
the other, without the layers.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
import torch
from keras import ops

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.call_context import set_temporarily
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.protocols.inference import CompiledStep, Inference
from keras_deepseek.backend.torch.compute import to_tensor
from keras_deepseek.backend.torch.recorded_function import RecordedFunction, RecordedStep
from keras_deepseek.backend.torch.recording import record_call
from keras_deepseek.backend.torch.recurrent_layers import fuse_recurrent_layers
from keras_deepseek.backend.torch.tape import map_leaves

_OWNS_STATE: ContextVar[bool] = ContextVar("owns_state", default=False)
"""True if the tensors of a cache belong to a function that may write into them."""


class TorchInference(Inference):
    """Implements `Inference` by PyTorch."""

    def compile_inference(
        self, model: NamedModel, find_obstacle: Callable[[], str | None] | None = None
    ) -> InferenceFunction:
        def run(tensors: dict[str, Any]) -> dict[str, Any]:
            with fuse_recurrent_layers(model.model):
                return model(tensors)

        if find_obstacle is None:
            return _make_inference(model, run)
        recorded = RecordedFunction(run, model.model, find_obstacle, is_pure=True)
        return _make_inference(model, recorded)

    def plain_inference(self, model: NamedModel) -> InferenceFunction:
        return _make_inference(model, model)

    def compile_with_state(
        self,
        function: Callable[..., tuple[Any, Any]],
        variables: Sequence[keras.Variable],
        model: keras.Model | None = None,
    ) -> CompiledStep:
        recorded = None if model is None else RecordedStep(function, model)

        def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
            inputs = map_leaves(_make_tensor, inputs)
            with torch.inference_mode(), set_temporarily(_OWNS_STATE, value=True):
                if state is None or recorded is None:
                    return function(state, *inputs)
                outputs: tuple[Any, Any] = recorded((state, *inputs))
                return outputs

        return CompiledStep(step, lambda: 0 if recorded is None else recorded.num_recordings)

    def compiles_by_shape(self) -> bool:
        return False  # A first call runs eagerly.

    def write_slots(self, tensor: Any, start: Any, update: Any) -> Any:
        if not _OWNS_STATE.get():
            return super().write_slots(tensor, start, update)
        if isinstance(start, int):
            tensor[:, start : start + update.shape[1]] = update
            return tensor
        slots = torch.arange(update.shape[1], device=tensor.device) + start
        return tensor.index_copy_(1, slots, update)

    def write_slots_by_row(self, tensor: Any, starts: Any, update: Any) -> Any:
        rows = torch.arange(update.shape[0], device=tensor.device)[:, None]
        slots = starts[:, None] + torch.arange(update.shape[1], device=tensor.device)
        write = torch.Tensor.index_put_ if _OWNS_STATE.get() else torch.index_put
        return write(tensor, (rows, slots), update)

    def map_rows(
        self, function: Callable[[Any], Any], rows: tuple[Any, ...], dtypes: tuple[str, ...]
    ) -> Any:
        results = map(function, zip(*rows, strict=True))
        return tuple(map(torch.stack, zip(*results, strict=True)))

    def write_row(self, tensor: Any, row: Any, update: Any) -> Any:
        if not _OWNS_STATE.get():
            return super().write_row(tensor, row, update)
        tensor[:, : update.shape[1]].index_copy_(0, row.reshape(1).long(), update)
        return tensor

    def calls_to_compile(self) -> int:
        return 2

    def run_unrecorded(self, function: Callable[..., Any], *tensors: Any) -> Any:
        if tensors[0].device.type != "cpu":
            return function(*tensors)
        return record_call(function, tensors)


def _make_inference(model: NamedModel, run: Callable[[Any], Any]) -> InferenceFunction:
    """Returns a function of arrays by name that runs a model in inference mode."""
    model.model.eval()

    def infer(inputs: dict[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            tensors = {name: to_tensor(array) for name, array in inputs.items()}
            return {
                name: keras.ops.convert_to_numpy(tensor) for name, tensor in run(tensors).items()
            }

    return infer


def _make_tensor(value: Any) -> Any:
    """Converts an array to a tensor; returns anything else unchanged."""
    return ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
