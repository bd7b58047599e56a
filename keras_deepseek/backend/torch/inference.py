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

from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.call_context import set_temporarily
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.keras_private.variables import raw_value
from keras_deepseek.backend.protocols.inference import Inference
from keras_deepseek.backend.torch.compute import to_tensor
from keras_deepseek.backend.torch.python_state import PythonState, is_watched
from keras_deepseek.backend.torch.recorded_function import RecordedFunction
from keras_deepseek.backend.torch.recording import CannotRecordError, record, record_call
from keras_deepseek.backend.torch.recurrent_layers import fuse_recurrent_layers

_OWNS_STATE: ContextVar[bool] = ContextVar("owns_state", default=False)
"""True if the tensors of a cache belong to a function that may write into them."""

_CALLS_BEFORE_RECORDING = 12
"""The calls after which a step is recorded. Recording takes as long as some tens of steps."""


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
    ) -> Callable[..., tuple[Any, Any]]:
        variables, calls, recordings = list(variables), Counter[Any](), dict[Any, Any]()
        layers = None if model is None else _WatchedLayers(model)

        def step(state: Any, *inputs: Any) -> tuple[Any, Any]:
            inputs = keras.tree.map_structure(_make_tensor, inputs)
            with torch.inference_mode(), set_temporarily(_OWNS_STATE, value=True):
                if state is None:
                    return function(state, *inputs)
                if layers is not None and layers.are_changed():
                    calls.clear()
                    recordings.clear()
                if layers is not None and not layers.may_be_recorded():
                    return function(state, *inputs)
                key = _describe(state, inputs), tuple(map(id, map(raw_value, variables)))
                calls[key] += 1
                if calls[key] == _CALLS_BEFORE_RECORDING:
                    recordings[key] = _record(function, state, inputs)
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

    def write_slots_by_row(self, tensor: Any, starts: Any, update: Any) -> Any:
        rows = torch.arange(update.shape[0], device=tensor.device)[:, None]
        slots = starts[:, None] + torch.arange(update.shape[1], device=tensor.device)
        write = torch.Tensor.index_put_ if _OWNS_STATE.get() else torch.index_put
        return write(tensor, (rows, slots), update)

    def write_row(self, tensor: Any, row: Any, update: Any) -> Any:
        if not _OWNS_STATE.get():
            return super().write_row(tensor, row, update)
        tensor[:, : update.shape[1]].index_copy_(0, row.reshape(1).long(), update)
        return tensor

    def calls_to_compile(self) -> int:
        return _CALLS_BEFORE_RECORDING

    def run_unrecorded(self, function: Callable[..., Any], *tensors: Any) -> Any:
        if tensors[0].device.type != "cpu":
            return function(*tensors)
        return record_call(function, tensors)


class _WatchedLayers:
    """The layers of a model, with the state in which a step of it was recorded."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._state: PythonState | None = None

    def are_changed(self) -> bool:
        """Returns True if a layer is another one than at the last call, or has other attributes."""
        if self._state is not None and self._state.is_same():
            return False
        self._state = PythonState(self._model)
        return True

    def may_be_recorded(self) -> bool:
        """Returns True if all layers are known, and nothing watches one."""
        return (
            self._state is not None
            and self._state.has_known_layers
            and not self._state.has_hooks()
            and not is_watched()
        )


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


def _describe(state: Any, inputs: Any) -> Any:
    """Returns a key for recordings: shapes, dtypes and types of a state and inputs."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else type(leaf)
        for leaf in keras.tree.flatten((state, inputs))
    )


def _record(
    function: Callable[..., tuple[Any, Any]], state: Any, inputs: Any
) -> Callable[[Any, Any], tuple[Any, Any]] | None:
    """Records a function of state and inputs, or returns `None` if it can't be recorded."""
    leaves = _flatten_to_tensors(state, inputs, None)
    device = next((leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)), None)
    leaves = _flatten_to_tensors(state, inputs, device)
    state, inputs = keras.tree.pack_sequence_as((state, inputs), leaves)
    try:
        # Recording runs the step: it writes into the state, and the recording writes the same
        # again.
        recording = record(
            lambda: function(state, *inputs),
            list(filter(_is_tensor, leaves)),
            may_write_inputs=True,
        )
    except (CannotRecordError, RuntimeError, TypeError, ValueError):
        return None

    def replay(state: Any, inputs: Any) -> tuple[Any, Any]:
        leaves = _flatten_to_tensors(state, inputs, device)
        outputs: tuple[Any, Any] = recording(list(filter(_is_tensor, leaves)))
        return outputs

    return replay


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _flatten_to_tensors(state: Any, inputs: Any, device: Any) -> list[Any]:
    """Returns the tensors of a state and inputs as a list, with integers as int32 tensors."""
    return [
        torch.tensor(leaf, dtype=torch.int32, device=device) if isinstance(leaf, int) else leaf
        for leaf in keras.tree.flatten((state, inputs))
    ]


def _make_tensor(value: Any) -> Any:
    """Converts an array to a tensor; returns anything else unchanged."""
    return ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
