"""Keras's recurrent layers on PyTorch's CPU, without a Python loop of Keras's operations.

Each recurrence is one operation, which runs in the place of Keras's loop once it has proved itself:
at the first call of a layer with a shape, outputs and gradients of both are compared, and now and
then again. Elsewhere Keras's loop runs.
"""

import math
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from keras_deepseek.backend.comparison_schedule import ComparisonSchedule
from keras_deepseek.backend.keras_private.recurrent_layers import replaced_inner_loops
from keras_deepseek.backend.keras_private.trainers import runs_as_written
from keras_deepseek.backend.torch.recording import is_recording
from keras_deepseek.backend.torch.recurrences import RECURRENCES, run_recurrence

_TOLERANCE = 100
"""The largest difference to Keras's loop, in units of rounding of the largest number.

The gradient of a weight is a sum over all steps of all rows. Above 10,000 of them, its rounding
grows as the square root of their number.
"""

_LEAST_SCALE = 0.01
"""The least scale of a tensor for its rounding, as a part of the largest number of all tensors."""

_SATURATING = 1e4
"""A number whose sigmoid is 1, and that of its negative 0."""

_CELLS = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)

_MOST_SHAPES = 256
"""The most shapes of a layer that are remembered. The first one is dropped."""

_Schedules = dict[Any, ComparisonSchedule]
_proved: weakref.WeakKeyDictionary[keras.Layer, _Schedules] = weakref.WeakKeyDictionary()
_refused: weakref.WeakSet[keras.Layer] = weakref.WeakSet()


def fuse_recurrent_layers(model: keras.Model) -> AbstractContextManager[None]:
    """Returns a context manager in which recurrent layers on a CPU run as one operation each.

    A model that is eager or compiled as a whole runs Keras's loop, as does a layer with
    `use_cudnn=False`.
    """
    return nullcontext() if runs_as_written(model) else replaced_inner_loops(_run)


def _run(
    loop: Callable[..., Any],
    layer: Any,
    sequences: Any,
    initial_state: Any,
    mask: Any,
    training: Any,
) -> Any:
    """Runs a layer's recurrence if it is known and equal to Keras's loop, else the loop."""
    cell, states = layer.cell, keras.tree.flatten(initial_state)
    (mask,) = keras.tree.flatten((mask,))[:1]
    name = None if layer in _refused else _find_recurrence(layer, training)
    if name is None:
        return loop(sequences, initial_state, mask, training)
    variables = [cell.kernel, cell.recurrent_kernel, *([] if cell.bias is None else [cell.bias])]
    weights = [keras.ops.convert_to_tensor(variable) for variable in variables]
    if not _fits(name, layer, sequences, states, weights, mask):
        return loop(sequences, initial_state, mask, training)
    dropout_mask = cell.get_dropout_mask(sequences[:, 0, :]) if training else None

    def run_loop(sequences: Any, states: Sequence[Any], weights: Sequence[Any]) -> Any:
        mapping = list(zip(variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return loop(sequences, states, mask, training)

    def run_fused(sequences: Any, states: Sequence[Any], weights: Sequence[Any]) -> Any:
        if dropout_mask is not None:
            sequences = sequences * dropout_mask.unsqueeze(1)
        return _run_fused(name, layer, sequences, states, weights, mask)

    settings = (name, layer.go_backwards, layer.return_sequences, layer.zero_output_for_mask)
    has_masks = (mask is None, dropout_mask is None)
    comparison = _Comparison([sequences, *states, *weights], len(states))
    key = (settings, has_masks, comparison.key())
    schedules = _proved.setdefault(layer, {})
    schedule = schedules.get(key)
    if schedule is None or (schedule.is_due() and not is_recording()):
        start = time.perf_counter()
        difference = comparison.measure(run_loop, run_fused)
        if schedule is not None:
            schedule.add_comparison(time.perf_counter() - start)
        if difference is None:
            return loop(sequences, initial_state, mask, training)
        if not difference <= max(_TOLERANCE, math.sqrt(sequences.shape[:2].numel())):
            _refuse(layer, difference)
            return loop(sequences, initial_state, mask, training)
        schedule = schedules.setdefault(key, ComparisonSchedule())
        if len(schedules) > _MOST_SHAPES:
            del schedules[next(iter(schedules))]
    # A copy: Keras assigns the states of a stateful layer before the backward pass reads them.
    states = [state.clone() for state in states] if layer.stateful else states
    start = time.perf_counter()
    result = run_fused(sequences, states, weights)
    schedule.add_run(time.perf_counter() - start)
    return result


def _find_recurrence(layer: Any, training: Any) -> str | None:
    """Returns the name of the recurrence that a layer computes, or `None` if there is none."""
    cell, activations = layer.cell, keras.activations
    if type(cell) not in _CELLS:
        return None
    if training and (cell.recurrent_dropout or not 0 <= cell.dropout < 1):
        return None
    if type(cell) is keras.layers.SimpleRNNCell:
        names = {activations.tanh: "rnn_tanh", activations.relu: "rnn_relu"}
        return names.get(cell.activation)
    # By implementation 1, each gate has a dropout of its own.
    has_own_dropout = training and cell.dropout and cell.implementation == 1
    is_usual = (cell.activation, cell.recurrent_activation) == (
        activations.tanh,
        activations.sigmoid,
    )
    is_refused = type(layer) is not keras.layers.RNN and layer.use_cudnn is False
    if has_own_dropout or not is_usual or is_refused:
        return None
    if type(cell) is keras.layers.LSTMCell:
        return "lstm"
    return "gru" if cell.reset_after else "gru_reset_before"


def _fits(
    name: str, layer: Any, sequences: Any, states: Sequence[Any], weights: Sequence[Any], mask: Any
) -> bool:
    """Returns True if a recurrence can run for tensors, with nothing that observes Keras's loop."""
    cell, tensors = layer.cell, (sequences, *states, *weights)
    masks = [] if mask is None else [mask]
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not torch.is_autocast_enabled("cpu")
        and torch.autograd.forward_ad._current_level < 0  # noqa: SLF001
        and len(_get_current_dispatch_mode_stack()) == is_recording()
        and all(_is_plain(tensor) for tensor in (*tensors, *masks))
        # In float64, Keras's loop computes some numbers in float32.
        and all(tensor.dtype == torch.float32 for tensor in tensors)
        and RECURRENCES[name].is_available()
        and sequences.numel() > 0
        and [state.shape for state in states]
        == [(len(sequences), size) for size in keras.tree.flatten(cell.state_size)]
        # Keras can't unroll masks, and without a bound, steps behind the last one may overflow.
        and (
            mask is None
            or (mask.shape == sequences.shape[:2] and not layer.unroll and name != "rnn_relu")
        )
        and not (cell._forward_hooks or cell._forward_pre_hooks or cell._backward_hooks)  # noqa: SLF001
        and cell.activity_regularizer is None
    )


def _is_plain(tensor: Any) -> bool:
    """Returns True for a tensor of PyTorch on a CPU that no transformation wraps."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001
    )


def _run_fused(
    name: str,
    layer: Any,
    sequences: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    mask: Any,
) -> Any:
    """Returns what Keras's loop does: the last output, the outputs, and the states."""
    kernel, recurrent_kernel, *biases = weights
    shape = (2, kernel.shape[1]) if name == "gru" else (kernel.shape[1],)
    bias = biases[0] if biases else kernel.new_zeros(shape)
    if layer.go_backwards:
        sequences, mask = sequences.flip(1), None if mask is None else mask.flip(1)
    if mask is not None:
        mask = mask.bool()
        sequences, kernel = _move_to_front(name, sequences, kernel, mask)
    steps_first = sequences.transpose(0, 1).contiguous()
    outputs, *states_behind = run_recurrence(
        name, [steps_first, kernel, recurrent_kernel, bias, *states]
    )
    outputs, last_state = outputs.transpose(0, 1), outputs[-1]
    if mask is not None:
        outputs, last_state = _move_back(outputs, mask, states[0], layer.zero_output_for_mask)
    last_output = outputs[:, -1]
    if not layer.return_sequences:
        outputs = last_output.unsqueeze(1)
    return last_output, outputs, [last_state, *states_behind]


def _move_to_front(name: str, sequences: Any, kernel: Any, mask: Any) -> tuple[Any, Any]:
    """Returns sequences whose steps that count come first, and the kernel for them.

    A masked step leaves the states alone, so these steps may follow one another.
    """
    order = torch.argsort(mask, dim=1, descending=True, stable=True)
    sequences = sequences.gather(1, order.unsqueeze(2).expand_as(sequences))
    is_behind = torch.arange(mask.shape[1]) >= mask.sum(1, keepdim=True)
    sequences = sequences.masked_fill(is_behind.unsqueeze(2), 0)
    if name != "lstm":
        return sequences, kernel
    # A feature that is 1 behind the last step keeps the carry there: its input gate is 0, and its
    # forget gate 1.
    row = kernel.new_zeros(4, kernel.shape[1] // 4)
    row[0], row[1] = -_SATURATING, _SATURATING
    sequences = torch.cat([sequences, is_behind.unsqueeze(2).to(sequences)], dim=2)
    return sequences, torch.cat([kernel, row.view(1, -1)])


def _move_back(
    outputs: Any, mask: Any, initial_state: Any, zero_output_for_mask: bool
) -> tuple[Any, Any]:
    """Returns the outputs where Keras has them, and the last state."""
    positions = mask.cumsum(1) - 1  # Of the last step that counts, so far.
    has_begun = positions >= 0
    indices = positions.clamp(min=0).unsqueeze(2).expand(-1, -1, outputs.shape[2])
    outputs = outputs.gather(1, indices)
    last_state = torch.where(has_begun[:, -1:], outputs[:, -1], initial_state)
    is_output = mask if zero_output_for_mask else has_begun
    return outputs.masked_fill(~is_output.unsqueeze(2), 0), last_state


class _Comparison:
    """Compares two forms of a layer on copies of the same tensors.

    Args:
        values: Sequences, states and weights.
    """

    def __init__(self, values: Sequence[Any], num_states: int) -> None:
        self._values = values
        self._end = 1 + num_states
        self._trains = torch.is_grad_enabled() and any(value.requires_grad for value in values)

    def key(self) -> Any:
        """Returns a key of what is compared: the shapes, and whether there are gradients."""
        return self._trains, tuple((value.shape, value.dtype) for value in self._values)

    def measure(self, expected: Callable[..., Any], actual: Callable[..., Any]) -> float | None:
        """Returns the largest difference in units of rounding of the largest number.

        `None`: there are infinite numbers, or a recording that would record both forms.
        """
        if is_recording():
            return None
        results = [self._run(function) for function in (expected, actual)]
        if not all(tensor.isfinite().all() for tensor in results[0]):
            return None
        scales = torch.stack([tensor.abs().max() for tensor in results[0]])
        # A sum whose terms cancel out is no larger than their rounding.
        scales = torch.maximum(scales, scales.max() * _LEAST_SCALE).clamp(min=1e-30)
        differences = [(a - b).abs().max() for a, b in zip(*results, strict=True)]
        ratios = torch.stack(differences) / scales
        return float(ratios.max() / torch.finfo(torch.float32).eps)

    def _run(self, function: Callable[..., Any]) -> list[torch.Tensor]:
        """Returns outputs, states and gradients of a function of sequences, states and weights."""
        values = [value.detach().clone().requires_grad_(self._trains) for value in self._values]
        # Hooks of the caller, such as those of a checkpoint, must not see these tensors.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            _, outputs, states = function(values[0], values[1 : self._end], values[self._end :])
            results = [outputs, *states]
            if not self._trains:
                return results
            upstream = [
                torch.linspace(0.5, 1.5, result.numel()).to(result).view(result.shape)
                for result in results
            ]
            gradients = torch.autograd.grad(
                results, values, upstream, allow_unused=True, materialize_grads=True
            )
        return [*(result.detach() for result in results), *gradients]


def _refuse(layer: keras.Layer, difference: float) -> None:
    _refused.add(layer)
    warnings.warn(
        f"Layer {layer.name!r} runs Keras's own loop over the steps, which is slower: one "
        f"operation for all steps differs from it by {difference:.0f} times the rounding error.",
        stacklevel=2,
    )
