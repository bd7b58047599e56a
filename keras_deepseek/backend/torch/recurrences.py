"""Recurrences over the steps of a sequence, each one operation with its gradient, on a CPU.

A loop of PyTorch's operations records each of them for the gradient. Here the backward pass
computes the gates of all steps at once, from the outputs of the forward pass, and only what depends
on the step after it runs in a loop. Weights have Keras's shapes and its order of gates.

Shapes: T steps, B rows, F features, U units, G gates of a step.
"""

import abc
import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from keras_deepseek.backend.torch.tape import PYTHON_FUNCTIONS

Tensors = Sequence[torch.Tensor]
"""Inputs (T, B, F), kernel (F, GU), recurrent kernel (U, GU), bias, and states (B, U)."""


_NUM_WEIGHTS = 4  # The tensors before the states.


class Recurrence(abc.ABC):
    """The formula of a recurrent layer. Its first state is its output."""

    @abc.abstractmethod
    def step(self, tensors: Tensors, step_inputs: Any, states: Tensors) -> list[torch.Tensor]:
        """Returns the states after a step, by operations that have all gradients."""

    @abc.abstractmethod
    def forward(self, tensors: Tensors, *, trains: bool) -> list[torch.Tensor]:
        """Returns outputs (T, B, U), the last value of further states, and what `backward` uses."""

    @abc.abstractmethod
    def backward(self, tensors: Tensors, results: Tensors, upstream: Tensors) -> list[torch.Tensor]:
        """Returns the gradients by `tensors`, from results of `forward` and their gradients."""

    def is_available(self) -> bool:
        """Returns True if PyTorch can run `forward` and `backward` in float32."""
        return True

    def run_steps(self, tensors: Tensors) -> list[torch.Tensor]:
        """Returns outputs and the last value of further states, step by step."""
        states, outputs = list(tensors[_NUM_WEIGHTS:]), []
        for step_inputs in tensors[0].unbind(0):
            states = self.step(tensors, step_inputs, states)
            outputs.append(states[0])
        return [torch.stack(outputs), *states[1:]]


class Lstm(Recurrence):
    """The formula of `keras.layers.LSTM`, by the kernel of oneDNN that `torch.nn.LSTM` uses."""

    def is_available(self) -> bool:
        return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)

    def step(self, tensors: Tensors, step_inputs: Any, states: Tensors) -> list[torch.Tensor]:
        _, kernel, recurrent_kernel, bias, *_ = tensors
        gates = step_inputs @ kernel + states[0] @ recurrent_kernel + bias
        i, f, c, o = gates.chunk(4, dim=1)
        carry = f.sigmoid() * states[1] + i.sigmoid() * c.tanh()
        return [o.sigmoid() * carry.tanh(), carry]

    def forward(self, tensors: Tensors, *, trains: bool) -> list[torch.Tensor]:
        # The kernel keeps what its gradient needs only where gradients are enabled.
        with torch.enable_grad() if trains else contextlib.nullcontext():
            outputs, _, carry, workspace = torch.ops.aten.mkldnn_rnn_layer(
                *_transpose(tensors), **_options(tensors), train=trains
            )
        return [outputs, carry, *([workspace] if trains else [])]

    def backward(self, tensors: Tensors, results: Tensors, upstream: Tensors) -> list[torch.Tensor]:
        outputs, carry, workspace = results
        d_outputs, d_carry = upstream
        values = (outputs, outputs[-1], carry, d_outputs, None, d_carry)
        gradients = torch.ops.aten.mkldnn_rnn_layer_backward(
            *_transpose(tensors), *values, **_options(tensors), train=True, workspace=workspace
        )
        d_inputs, d_kernel, d_recurrent, d_bias, _, d_state, d_carry = gradients
        return [d_inputs, d_kernel.t(), d_recurrent.t(), d_bias, d_state, d_carry]


def _options(tensors: Tensors) -> dict[str, Any]:
    """Returns the arguments of PyTorch's operation for an LSTM of one layer and direction."""
    return {
        "mode": 2,  # An LSTM.
        "hidden_size": tensors[2].shape[0],
        "num_layers": 1,
        "has_biases": True,
        "reverse": False,
        "bidirectional": False,
        "batch_first": False,
        "batch_sizes": [],
    }


def _transpose(tensors: Tensors) -> list[torch.Tensor]:
    """Returns the tensors of an LSTM in the shapes that PyTorch's operation expects."""
    inputs, kernel, recurrent_kernel, bias, *states = tensors
    weights = [kernel.t().contiguous(), recurrent_kernel.t().contiguous()]
    return [inputs, *weights, bias, torch.zeros_like(bias), *states]


def _project(values: Any, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Returns the products of all steps with a kernel, plus a bias: (T, B, GU)."""
    flat = torch.addmm(bias, values.flatten(0, 1), kernel)
    return flat.unflatten(0, values.shape[:2])


def _gradients(inputs: Any, kernel: torch.Tensor, gates: torch.Tensor) -> list[torch.Tensor]:
    """Returns the gradients by inputs, kernel and bias of `_project`, from that of its result."""
    flat = gates.flatten(0, 1)
    d_inputs = (flat @ kernel.t()).unflatten(0, inputs.shape[:2])
    return [d_inputs, inputs.flatten(0, 1).t() @ flat, flat.sum(0)]


class Gru(Recurrence):
    """The formula of `keras.layers.GRU` with `reset_after=True`."""

    def step(self, tensors: Tensors, step_inputs: Any, states: Tensors) -> list[torch.Tensor]:
        _, kernel, recurrent_kernel, bias, *_ = tensors
        x_z, x_r, x_n = (step_inputs @ kernel + bias[0]).chunk(3, dim=1)
        h_z, h_r, h_n = (states[0] @ recurrent_kernel + bias[1]).chunk(3, dim=1)
        z = (x_z + h_z).sigmoid()
        n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return [z * states[0] + (1 - z) * n]

    def forward(self, tensors: Tensors, *, trains: bool) -> list[torch.Tensor]:
        inputs, kernel, recurrent_kernel, bias, state = tensors
        units = state.shape[1]
        x_zr, x_n = _project(inputs, kernel, bias[0]).split([2 * units, units], dim=2)
        outputs = state.new_empty((len(inputs), *state.shape))
        projected = state.new_empty(state.shape[0], 3 * units)
        zr, h_n = projected.split([2 * units, units], dim=1)
        z, r = zr.split(units, dim=1)
        candidate = torch.empty_like(state)
        for x_zr_t, x_n_t, output in zip(
            x_zr.unbind(), x_n.unbind(), outputs.unbind(), strict=True
        ):
            torch.addmm(bias[1], state, recurrent_kernel, out=projected)
            zr.add_(x_zr_t).sigmoid_()
            torch.addcmul(x_n_t, r, h_n, out=candidate).tanh_()
            state = torch.lerp(candidate, state, z, out=output)
        return [outputs]

    def backward(self, tensors: Tensors, results: Tensors, upstream: Tensors) -> list[torch.Tensor]:
        inputs, kernel, recurrent_kernel, bias, state = tensors
        units = state.shape[1]
        states = torch.cat([state[None], results[0][:-1]])
        x_zr, x_n = _project(inputs, kernel, bias[0]).split([2 * units, units], dim=2)
        h_zr, h_n = _project(states, recurrent_kernel, bias[1]).split([2 * units, units], dim=2)
        z, r = (x_zr + h_zr).sigmoid_().split(units, dim=2)
        n = torch.addcmul(x_n, r, h_n).tanh_()
        # The gradients by all gates are that of the step's output times known factors.
        by_n = (1 - z) * (1 - n * n)
        by_h_n = by_n * r
        factors = torch.stack([(states - n) * z * (1 - z), by_h_n * h_n * (1 - r), by_h_n], 2)
        gates, outputs = torch.empty_like(factors), torch.empty_like(states)
        transposed, d_state = recurrent_kernel.t(), torch.zeros_like(state)
        for t in reversed(range(len(inputs))):
            d_output = torch.add(upstream[0][t], d_state, out=outputs[t])
            torch.mul(factors[t], d_output.unsqueeze(1), out=gates[t])
            d_state = torch.addmm(d_output * z[t], gates[t].flatten(1), transposed)
        by_recurrent = gates.flatten(2)
        by_input = by_recurrent.clone()
        torch.mul(outputs, by_n, out=by_input[..., 2 * units :])
        d_inputs, d_kernel, d_bias = _gradients(inputs, kernel, by_input)
        d_recurrent = states.flatten(0, 1).t() @ by_recurrent.flatten(0, 1)
        d_biases = torch.stack([d_bias, by_recurrent.sum((0, 1))])
        return [d_inputs, d_kernel, d_recurrent, d_biases, d_state]


class GruResetBefore(Recurrence):
    """The formula of `keras.layers.GRU` with `reset_after=False`."""

    def step(self, tensors: Tensors, step_inputs: Any, states: Tensors) -> list[torch.Tensor]:
        _, kernel, recurrent_kernel, bias, *_ = tensors
        state = states[0]
        units = state.shape[1]
        x_z, x_r, x_n = (step_inputs @ kernel + bias).chunk(3, dim=1)
        h_z, h_r = (state @ recurrent_kernel[:, : 2 * units]).chunk(2, dim=1)
        z, r = (x_z + h_z).sigmoid(), (x_r + h_r).sigmoid()
        n = (x_n + (r * state) @ recurrent_kernel[:, 2 * units :]).tanh()
        return [z * state + (1 - z) * n]

    def forward(self, tensors: Tensors, *, trains: bool) -> list[torch.Tensor]:
        inputs, kernel, recurrent_kernel, bias, state = tensors
        units = state.shape[1]
        x_zr, x_n = _project(inputs, kernel, bias).split([2 * units, units], dim=2)
        by_zr, by_n = (part.contiguous() for part in recurrent_kernel.split([2 * units, units], 1))
        outputs = state.new_empty((len(inputs), *state.shape))
        zr, candidate = state.new_empty(state.shape[0], 2 * units), torch.empty_like(state)
        z, r = zr.split(units, dim=1)
        for x_zr_t, x_n_t, output in zip(
            x_zr.unbind(), x_n.unbind(), outputs.unbind(), strict=True
        ):
            torch.addmm(x_zr_t, state, by_zr, out=zr).sigmoid_()
            torch.addmm(x_n_t, r * state, by_n, out=candidate).tanh_()
            state = torch.lerp(candidate, state, z, out=output)
        return [outputs]

    def backward(self, tensors: Tensors, results: Tensors, upstream: Tensors) -> list[torch.Tensor]:
        inputs, kernel, recurrent_kernel, bias, state = tensors
        units = state.shape[1]
        by_zr, by_n = recurrent_kernel.split([2 * units, units], dim=1)
        states = torch.cat([state[None], results[0][:-1]])
        x_zr, x_n = _project(inputs, kernel, bias).split([2 * units, units], dim=2)
        z, r = (x_zr + states @ by_zr).sigmoid_().split(units, dim=2)
        reset_states = r * states
        n = (x_n + reset_states @ by_n).tanh_()
        z_factors = (states - n) * z * (1 - z)
        r_factors, n_factors = reset_states * (1 - r), (1 - z) * (1 - n * n)
        gates = state.new_empty(*states.shape[:2], 3 * units)
        zr_gates, (z_gates, r_gates, n_gates) = gates[..., : 2 * units], gates.chunk(3, dim=2)
        transposed_zr, transposed_n, d_state = by_zr.t(), by_n.t(), torch.zeros_like(state)
        for t in reversed(range(len(inputs))):
            d_output = upstream[0][t] + d_state
            torch.mul(z_factors[t], d_output, out=z_gates[t])
            d_reset = torch.mul(n_factors[t], d_output, out=n_gates[t]) @ transposed_n
            torch.mul(r_factors[t], d_reset, out=r_gates[t])
            d_state = (d_output * z[t]).addcmul_(d_reset, r[t])
            d_state.addmm_(zr_gates[t], transposed_zr)
        d_by_zr = states.flatten(0, 1).t() @ zr_gates.flatten(0, 1)
        d_by_n = reset_states.flatten(0, 1).t() @ n_gates.flatten(0, 1)
        d_inputs, d_kernel, d_bias = _gradients(inputs, kernel, gates)
        return [d_inputs, d_kernel, torch.cat([d_by_zr, d_by_n], dim=1), d_bias, d_state]


class SimpleRnn(Recurrence):
    """The formula of `keras.layers.SimpleRNN`."""

    def __init__(self, *, is_relu: bool) -> None:
        self._activate = torch.relu if is_relu else torch.tanh
        self._activate_in_place = torch.relu_ if is_relu else torch.tanh_
        self._is_relu = is_relu

    def step(self, tensors: Tensors, step_inputs: Any, states: Tensors) -> list[torch.Tensor]:
        _, kernel, recurrent_kernel, bias, *_ = tensors
        return [self._activate(step_inputs @ kernel + bias + states[0] @ recurrent_kernel)]

    def forward(self, tensors: Tensors, *, trains: bool) -> list[torch.Tensor]:
        inputs, kernel, recurrent_kernel, bias, state = tensors
        outputs = _project(inputs, kernel, bias)
        for output in outputs.unbind():
            state = self._activate_in_place(output.addmm_(state, recurrent_kernel))
        return [outputs]

    def backward(self, tensors: Tensors, results: Tensors, upstream: Tensors) -> list[torch.Tensor]:
        inputs, kernel, recurrent_kernel, _, state = tensors
        outputs = results[0]
        factors = (outputs > 0).to(outputs) if self._is_relu else 1 - outputs * outputs
        sums, transposed = torch.empty_like(outputs), recurrent_kernel.t()
        d_state = torch.zeros_like(state)
        for t in reversed(range(len(inputs))):
            torch.mul(upstream[0][t] + d_state, factors[t], out=sums[t])
            d_state = sums[t] @ transposed
        d_recurrent = torch.cat([state[None], outputs[:-1]]).flatten(0, 1).t() @ sums.flatten(0, 1)
        d_inputs, d_kernel, d_bias = _gradients(inputs, kernel, sums)
        return [d_inputs, d_kernel, d_recurrent, d_bias, d_state]


RECURRENCES: dict[str, Recurrence] = {
    "lstm": Lstm(),
    "gru": Gru(),
    "gru_reset_before": GruResetBefore(),
    "rnn_tanh": SimpleRnn(is_relu=False),
    "rnn_relu": SimpleRnn(is_relu=True),
}
"""The recurrences by name."""


def run_recurrence(name: str, tensors: Tensors) -> list[torch.Tensor]:
    """Returns outputs (T, B, U) and the last value of further states, as one operation.

    A recording has it as one operation, and its gradient as another.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return list(_FusedRecurrence.apply(name, *tensors))
    results: list[torch.Tensor] = _forward(name, tensors, trains=False)
    return results


def _compute(name: str, tensors: Sequence[torch.Tensor], *, trains: bool) -> list[torch.Tensor]:
    return RECURRENCES[name].forward([tensor.detach() for tensor in tensors], trains=trains)


def _compute_gradient(
    name: str,
    tensors: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor],
    upstream: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    tensors, results = ([value.detach() for value in values] for values in (tensors, results))
    return RECURRENCES[name].backward(tensors, results, upstream)


_forward = torch.library.custom_op("keras_deepseek::recurrence", _compute, mutates_args=())
_backward = torch.library.custom_op(
    "keras_deepseek::recurrence_gradient", _compute_gradient, mutates_args=()
)
PYTHON_FUNCTIONS[torch.ops.keras_deepseek.recurrence.default] = _compute
PYTHON_FUNCTIONS[torch.ops.keras_deepseek.recurrence_gradient.default] = _compute_gradient


class _FusedRecurrence(torch.autograd.Function):
    """A recurrence with its gradient, and by the steps one after the other also with the second."""

    @staticmethod
    def forward(ctx: Any, name: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = _forward(name, tensors, trains=True)
        ctx.recurrence, ctx.num_tensors = name, len(tensors)
        ctx.save_for_backward(*tensors, *results)
        return tuple(results[: len(tensors) - _NUM_WEIGHTS])

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # Read once: a checkpoint computes them anew each time.
        tensors, results = saved[: ctx.num_tensors], saved[ctx.num_tensors :]
        if not torch.is_grad_enabled():
            return None, *_backward(ctx.recurrence, tensors, results, upstream)
        outputs = RECURRENCES[ctx.recurrence].run_steps(tensors)
        sources = [tensor for tensor in tensors if tensor.requires_grad]
        gradients = iter(
            torch.autograd.grad(outputs, sources, upstream, create_graph=True, allow_unused=True)
        )
        return None, *(next(gradients) if tensor.requires_grad else None for tensor in tensors)
