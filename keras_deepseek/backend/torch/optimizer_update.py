"""Updates variables on PyTorch, by the fused Adam kernel if it fits the optimizer."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

from keras_deepseek.backend.keras_private.optimizers import (
    adam_slots,
    current_learning_rate,
    has_fused_adam_step,
    temporary_update,
    temporary_update_parts,
    uses_decay,
    weight_slots,
)
from keras_deepseek.backend.keras_private.variables import raw_value, set_raw_value
from keras_deepseek.backend.tensor_values import multiply_gradients

Row = tuple[keras.Variable, torch.Tensor]


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    factor: Any = None,
) -> None:
    """Applies gradients as `optimizer.apply` does, by PyTorch's fused Adam if it fits."""
    with torch.no_grad():
        values = [raw_value(variable) for variable in variables]
        if len({value.device for value in values}) > 1:
            _apply_by_device(optimizer, multiply_gradients(gradients, factor), variables, values)
            return
        if not _can_be_fused(optimizer, values):
            optimizer.apply(multiply_gradients(gradients, factor), variables)
            return
        if _is_plain(optimizer, gradients, variables):
            update = _FusedAdam(optimizer, factor)
            update(gradients, variables, current_learning_rate(optimizer))
            optimizer.iterations.value.add_(1)  # `assign_add` takes forty times as long.
            return
        # Accumulation and clipping come before the kernel, and see multiplied gradients.
        if optimizer.gradient_accumulation_steps or _clips(optimizer):
            gradients, factor = multiply_gradients(gradients, factor), None
        with temporary_update(optimizer, _FusedAdam(optimizer, factor)):
            optimizer.apply(gradients, variables)


def _apply_by_device(
    optimizer: Any,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    values: Sequence[torch.Tensor],
) -> None:
    """Applies gradients as `optimizer.apply` does, device by device.

    Neither Keras's optimizers nor PyTorch's kernels take weights of several devices at once.
    """

    def clip(by_keras: Callable[[Any], Any], gradients: Sequence[Any]) -> Any:
        return by_keras([keras.ops.convert_to_tensor(gradient) for gradient in gradients])

    on_each = functools.partial(_on_each_device, optimizer)
    if _can_be_fused(optimizer, values):
        changed = temporary_update(optimizer, on_each(_FusedAdam(optimizer, None)), clip=clip)
    else:
        changed = temporary_update_parts(optimizer, on_each, _beside_variable, clip=clip)
    with changed:
        optimizer.apply(gradients, variables)


def _on_each_device(optimizer: Any, step: Callable[..., Any]) -> Callable[..., None]:
    """Wraps an update of lists of gradients and variables, to run it once for each device.

    Variables that the optimizer has once for all weights, such as the product of its rates, begin
    each run with the same value.
    """
    slots = {id(slot) for slot, _ in weight_slots(optimizer)}
    shared = [variable for variable in optimizer.variables if id(variable) not in slots]

    def run(
        gradients: Sequence[Any], variables: Sequence[keras.Variable], learning_rate: Any
    ) -> None:
        rows: dict[torch.device, list[tuple[Any, keras.Variable]]] = {}
        for gradient, variable in zip(gradients, variables, strict=True):
            device = variable.value.device
            moved = None if gradient is None else gradient.to(device)
            rows.setdefault(device, []).append((moved, variable))
        old_values = [raw_value(variable) for variable in shared]
        new_values = old_values
        for device, own_rows in rows.items():
            own_gradients, own_variables = zip(*own_rows, strict=True)
            new_values = [value.detach().to(device, copy=True) for value in old_values]
            _put(shared, new_values)
            try:
                with keras.device(str(device)):
                    rate = keras.ops.convert_to_tensor(learning_rate)
                    step(list(own_gradients), list(own_variables), rate)
            finally:
                _put(shared, old_values)
        # Each run changed the shared variables alike. Those of the last one stay.
        for value, changed in zip(old_values, new_values, strict=True):
            value.detach().copy_(changed)

    return run


def _put(variables: Sequence[keras.Variable], values: Sequence[torch.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        set_raw_value(variable, value)


def _beside_variable(step: Callable[..., Any]) -> Callable[..., None]:
    """Wraps an update of one variable, so that it runs on the variable's device."""

    def run(gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        with keras.device(str(variable.value.device)):
            rate = keras.ops.convert_to_tensor(learning_rate)
            step(keras.ops.convert_to_tensor(gradient), variable, rate)

    return run


def _can_be_fused(optimizer: keras.optimizers.Optimizer, values: Sequence[torch.Tensor]) -> bool:
    """Returns True for Keras's Adam or AdamW if PyTorch's fused kernel takes these tensors."""
    return (
        has_fused_adam_step(optimizer)
        and not torch.compiler.is_compiling()
        and all(
            type(value) in (torch.Tensor, torch.nn.Parameter)
            and value.device.type in ("cpu", "cuda")
            for value in values
        )
    )


def _is_plain(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[keras.Variable]
) -> bool:
    """Returns True if `optimizer.apply` does no more than the update, so checks can be skipped."""
    return not (
        optimizer.gradient_accumulation_steps
        or optimizer.use_ema
        or optimizer.loss_scale_factor is not None
        or _clips(optimizer)
        or any(gradient is None for gradient in gradients)
        or any(
            variable.constraint is not None or variable.overwrite_with_gradient
            for variable in variables
        )
    )


def _clips(optimizer: keras.optimizers.Optimizer) -> bool:
    bounds = (optimizer.clipnorm, optimizer.clipvalue, optimizer.global_clipnorm)
    return any(bound is not None for bound in bounds)


class _FusedAdam:
    """An update by PyTorch's fused Adam, which uses the variables of Keras's optimizer.

    It reads each weight once. Keras makes one pass for each product and sum, which takes ten times
    as long.

    Args:
        optimizer: Keras's Adam or AdamW.
        factor: Scalar tensor that multiplies the gradients, or `None`.
    """

    def __init__(self, optimizer: Any, factor: Any) -> None:
        self._optimizer = optimizer
        self._factor = factor

    def __call__(
        self,
        gradients: Sequence[torch.Tensor],
        variables: Sequence[keras.Variable],
        learning_rate: Any,
    ) -> None:
        """Updates the variables with weight decay, then the variables without it."""
        decay = self._optimizer.weight_decay or 0.0
        rows = list(zip(variables, self._own_gradients(gradients), strict=True))
        undecayed = [row for row in rows if decay and not uses_decay(self._optimizer, row[0])]
        if undecayed:
            undecayed_ids = {id(variable) for variable, _ in undecayed}
            rows = [row for row in rows if id(row[0]) not in undecayed_ids]
        rate, steps = float(learning_rate), int(self._optimizer.iterations)
        for group, weight_decay in ((rows, decay), (undecayed, 0.0)):
            dtypes = {raw_value(variable).dtype for variable, _ in group}
            for dtype in dtypes:  # The kernel takes tensors of one.
                of_dtype = [row for row in group if raw_value(row[0]).dtype == dtype]
                self._update_group(of_dtype, rate, steps, weight_decay)

    def _own_gradients(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns gradients that the kernel may overwrite, which it does if there is a factor."""
        writable: list[torch.Tensor] = []
        pointers: set[int] = set()
        for gradient in gradients:
            whole = gradient.contiguous()
            # The terms of a sum share one gradient tensor.
            is_shared = self._factor is not None and whole.data_ptr() in pointers
            writable.append(whole.clone() if is_shared else whole)
            pointers.add(whole.data_ptr())
        return writable

    def _update_group(
        self, rows: Sequence[Row], learning_rate: float, steps: int, weight_decay: float
    ) -> None:
        """Updates the variables that share one weight decay value and one dtype."""
        optimizer = self._optimizer
        slots = adam_slots(optimizer, [variable for variable, _ in rows])
        momentums, velocities, maximal_velocities = (
            [raw_value(slot) for slot in group] for group in slots
        )
        values = [raw_value(variable) for variable, _ in rows]
        for value in values:
            # The kernel reads all tensors in one memory order, and an orthogonal initializer
            # returns a transposed matrix.
            if not value.is_contiguous():
                value.data = value.contiguous()
        # `torch.optim` takes a tenth of a millisecond around it. The kernel only reads the step.
        step = torch.full((), float(steps + 1), device=values[0].device)
        torch._fused_adamw_(
            values,
            [gradient for _, gradient in rows],
            momentums,
            velocities,
            maximal_velocities,
            [step] * len(values),
            grad_scale=None if self._factor is None else (1 / self._factor).to(torch.float32),
            amsgrad=optimizer.amsgrad,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            lr=learning_rate,
            weight_decay=weight_decay,
            # Keras adds epsilon before the bias correction, PyTorch after.
            eps=optimizer.epsilon / (1 - optimizer.beta_2 ** (steps + 1)) ** 0.5,
            maximize=False,
        )
