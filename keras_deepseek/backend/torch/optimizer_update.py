"""The update of variables on PyTorch: by the fused kernel of Adam where it fits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch
from keras.src.backend.torch.optimizers import torch_adam
from torch.optim.adamw import adamw

from keras_deepseek.backend.gradient_scale import multiply_gradients
from keras_deepseek.backend.keras_private.optimizers import weight_slots

Row = tuple[keras.Variable, torch.Tensor]


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    factor: Any = None,
) -> None:
    """Does the same as `optimizer.apply`, by PyTorch's fused Adam if it fits the optimizer."""
    with torch.no_grad():
        values = [variable.value for variable in variables]  # Read once: each access is slow.
        if len({value.device for value in values}) > 1:
            _apply_by_device(optimizer, multiply_gradients(gradients, factor), variables, values)
            return
        if not _can_be_fused(optimizer, values):
            optimizer.apply(multiply_gradients(gradients, factor), variables)
            return
        if _is_plain(optimizer, gradients, variables):
            rate = optimizer._get_current_learning_rate()
            _update(optimizer, gradients, variables, rate, factor)
            optimizer.iterations.value.add_(1)  # `assign_add` takes forty times as long.
            return
        # These must see the multiplied gradients, so the kernel may not multiply.
        if optimizer.gradient_accumulation_steps or _clips(optimizer):
            gradients, factor = multiply_gradients(gradients, factor), None
        with _fused_adam(optimizer, factor):
            optimizer.apply(gradients, variables)


def _apply_by_device(
    optimizer: Any,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    values: Sequence[torch.Tensor],
) -> None:
    """Does the same as `optimizer.apply`, for the weights of one device after another.

    Neither Keras's optimizers nor PyTorch's kernels take weights of several devices at once.
    """
    decay, is_fused = type(optimizer)._apply_weight_decay, _can_be_fused(optimizer, values)
    clip, bring = type(optimizer)._clip_gradients, keras.ops.convert_to_tensor
    own: dict[str, Callable[..., Any]] = {
        "_apply_weight_decay": lambda _: None,  # The kernel applies the decay.
        "_clip_gradients": lambda gradients: clip(optimizer, list(map(bring, gradients))),
    }
    if is_fused:
        own["_backend_update_step"] = _on_each_device(
            optimizer,
            lambda gradients, variables, rate: _update(optimizer, gradients, variables, rate, None),
        )
    else:
        own["_apply_weight_decay"] = lambda variables: _on_each_device(
            optimizer, lambda _, variables, __: decay(optimizer, variables)
        )([None] * len(variables), variables, 0.0)
        # Not the step around it, which may update a counter once for all weights.
        if hasattr(optimizer, "_parallel_update_step"):
            own["_parallel_update_step"] = _on_each_device(
                optimizer, optimizer._parallel_update_step
            )
        else:
            own["update_step"] = _beside_variable(optimizer.update_step)
    vars(optimizer).update(own)
    try:
        optimizer.apply(gradients, variables)
    finally:
        for name in own:
            del vars(optimizer)[name]


def _on_each_device(optimizer: Any, step: Callable[..., Any]) -> Callable[..., None]:
    """Returns an update step of lists of gradients and variables that runs once for each device.

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
        before = [variable._value for variable in shared]
        after = before
        for device, own_rows in rows.items():
            own_gradients, own_variables = zip(*own_rows, strict=True)
            after = [value.detach().to(device, copy=True) for value in before]
            _put(shared, after)
            try:
                with keras.device(str(device)):
                    rate = keras.ops.convert_to_tensor(learning_rate)
                    step(list(own_gradients), list(own_variables), rate)
            finally:
                _put(shared, before)
        for value, changed in zip(before, after, strict=True):
            value.detach().copy_(changed)

    return run


def _put(variables: Sequence[keras.Variable], values: Sequence[torch.Tensor]) -> None:
    """Sets the tensors of variables."""
    for variable, value in zip(variables, values, strict=True):
        variable._value = value


def _beside_variable(step: Callable[..., Any]) -> Callable[..., None]:
    """Returns an update step of one gradient that runs on the device of its variable."""

    def run(gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        with keras.device(str(variable.value.device)):
            rate = keras.ops.convert_to_tensor(learning_rate)
            step(keras.ops.convert_to_tensor(gradient), variable, rate)

    return run


def _can_be_fused(optimizer: keras.optimizers.Optimizer, values: Sequence[torch.Tensor]) -> bool:
    """Returns True for Keras's Adam or AdamW, if PyTorch has a kernel for these tensors."""
    update = getattr(type(optimizer), "_parallel_update_step", None)
    return (
        update is torch_adam.Adam._parallel_update_step
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
    """Returns True if `optimizer.apply` does nothing but the update: its other checks cost time."""
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
    """Returns True if an optimizer clips gradients."""
    bounds = (optimizer.clipnorm, optimizer.clipvalue, optimizer.global_clipnorm)
    return any(bound is not None for bound in bounds)


@contextmanager
def _fused_adam(optimizer: Any, factor: Any) -> Iterator[None]:
    """Makes Keras's Adam update each variable in one pass over its numbers, on its own state.

    Keras makes one pass for each product and sum, which takes ten times as long.
    """

    def update(
        gradients: Sequence[torch.Tensor], variables: Sequence[keras.Variable], learning_rate: Any
    ) -> None:
        _update(optimizer, gradients, variables, learning_rate, factor)

    optimizer._backend_update_step = update
    optimizer._apply_weight_decay = lambda _: None  # The kernel applies the decay.
    try:
        yield
    finally:
        del optimizer._backend_update_step, optimizer._apply_weight_decay


def _update(
    optimizer: Any,
    gradients: Sequence[torch.Tensor],
    variables: Sequence[keras.Variable],
    learning_rate: Any,
    factor: Any,
) -> None:
    """Updates the variables with weight decay, and then those that the decay leaves out."""
    decay = optimizer.weight_decay or 0.0
    rows = list(zip(variables, _own_gradients(gradients, factor), strict=True))
    kept = [row for row in rows if decay and not optimizer._use_weight_decay(row[0])]
    kept_variables = {id(variable) for variable, _ in kept}
    decayed = [row for row in rows if id(row[0]) not in kept_variables]
    for group, weight_decay in ((decayed, decay), (kept, 0.0)):
        if group:
            _update_group(optimizer, group, float(learning_rate), weight_decay, factor)


def _own_gradients(gradients: Sequence[torch.Tensor], factor: Any) -> list[torch.Tensor]:
    """Returns gradients for the kernel, which writes into them if there is a factor."""
    own: list[torch.Tensor] = []
    seen: set[int] = set()
    for gradient in gradients:
        whole = gradient.contiguous()
        # The terms of a sum share one gradient tensor.
        is_shared = factor is not None and whole.data_ptr() in seen
        own.append(whole.clone() if is_shared else whole)
        seen.add(whole.data_ptr())
    return own


def _update_group(
    optimizer: Any, rows: Sequence[Row], learning_rate: float, weight_decay: float, factor: Any
) -> None:
    """Updates variables that have the same weight decay."""
    steps = int(optimizer.iterations)
    indices = [optimizer._get_variable_index(variable) for variable, _ in rows]

    def state(variables: Sequence[keras.Variable]) -> list[torch.Tensor]:
        return [variables[index].value for index in indices]

    values = [variable.value for variable, _ in rows]
    for value in values:
        # The kernel reads all tensors in one memory order, and an orthogonal initializer returns a
        # transposed matrix.
        if not value.is_contiguous():
            value.data = value.contiguous()
    adamw(
        values,
        [gradient for _, gradient in rows],
        state(optimizer._momentums),
        state(optimizer._velocities),
        state(optimizer._velocity_hats) if optimizer.amsgrad else [],
        list(torch.full((len(rows),), float(steps), device=rows[0][1].device).unbind()),
        fused=True,
        grad_scale=None if factor is None else (1 / factor).to(torch.float32),
        amsgrad=optimizer.amsgrad,
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        lr=learning_rate,
        weight_decay=weight_decay,
        # Keras adds epsilon before the bias correction, PyTorch after.
        eps=optimizer.epsilon / (1 - optimizer.beta_2 ** (steps + 1)) ** 0.5,
        maximize=False,
    )
