"""Keras's recurrent layers on PyTorch's CPU, without a Python loop of Keras's operations.

Each recurrence is one operation, which runs in the place of Keras's loop once it has proved itself
(`proved_forms.py`).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from keras_deepseek.backend.keras_private.recurrent_layers import replaced_inner_loops
from keras_deepseek.backend.keras_private.trainers import runs_as_written
from keras_deepseek.backend.torch.proved_forms import Values, is_plain, run_proved
from keras_deepseek.backend.torch.recording import is_recording
from keras_deepseek.backend.torch.recurrences import RECURRENCES, run_recurrence

_SATURATING = 1e4
"""A number whose sigmoid is 1, and that of its negative 0."""

_CELLS = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)


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
    name = _find_recurrence(layer, training)
    if name is None:
        return loop(sequences, initial_state, mask, training)
    variables = [cell.kernel, cell.recurrent_kernel, *([] if cell.bias is None else [cell.bias])]
    weights = [keras.ops.convert_to_tensor(variable) for variable in variables]
    if not _fits(name, layer, sequences, states, weights, mask):
        return loop(sequences, initial_state, mask, training)
    dropout_mask = cell.get_dropout_mask(sequences[:, 0, :]) if training else None
    num_states = len(states)

    def by_keras(values: Values) -> list[Any]:
        sequences, *tensors = values
        mapping = list(zip(variables, tensors[num_states:], strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            _, outputs, states = loop(sequences, tensors[:num_states], mask, training)
        return [outputs, *states]

    def fused(values: Values) -> list[Any]:
        sequences, *tensors = values
        if dropout_mask is not None:
            sequences = sequences * dropout_mask.unsqueeze(1)
        states, weights = tensors[:num_states], tensors[num_states:]
        if layer.stateful:  # Keras assigns the states before the backward pass reads them.
            states = [state.clone() for state in states]
        return _run_fused(name, layer, sequences, states, weights, mask)

    settings = (name, layer.go_backwards, layer.return_sequences, layer.zero_output_for_mask)
    results = run_proved(
        layer,
        (*settings, mask is None, dropout_mask is None),
        [sequences, *states, *weights],
        by_keras,
        fused,
        # The gradient of a weight is a sum over all steps of all rows. Above 10,000 of them, its
        # rounding grows as the square root of their number.
        lambda: math.sqrt(sequences.shape[:2].numel()),
    )
    if results is None:
        return loop(sequences, initial_state, mask, training)
    outputs, *states = results
    return outputs[:, -1], outputs, states


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
        and all(is_plain(tensor) for tensor in tensors)
        and all(is_plain(mask, mask.dtype) for mask in masks)
        and RECURRENCES[name].is_available()
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


def _run_fused(
    name: str,
    layer: Any,
    sequences: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    mask: Any,
) -> list[Any]:
    """Returns the outputs and the states that Keras's loop returns."""
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
    return [outputs if layer.return_sequences else outputs[:, -1:], last_state, *states_behind]


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
