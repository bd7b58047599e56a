"""One step of training, as Keras's loop on PyTorch takes it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch
from keras.src.backend.torch.optimizers import torch_adam
from torch.optim.adamw import adamw


def make_train_step(
    model: keras.Model, step: Callable[[Any], dict[str, Any]]
) -> Callable[..., Any]:
    """Returns what Keras takes as the `train_step` of a model."""
    return step


def run_step(model: keras.Model, batch: Any) -> dict[str, Any]:
    """Trains a model, whose training function was made, on one batch, and returns the logs."""
    return dict(model.train_function([batch]))


def separate_variables(model: keras.Model) -> None:
    """Gives each variable of a model, its optimizer and its metrics memory of its own."""
    # It has: an assignment copies.


def keep_state(model: keras.Model, train_function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled training function after whose errors a model still has its variables."""
    return train_function


def run_before_step(
    model: keras.Model, train_step: Callable[..., Any], prepare: Callable[[], None]
) -> Callable[..., Any] | None:
    """Returns a `train_step` that begins with `prepare()`; `None` where no step is compiled."""
    return None  # And Keras looks a step up each time that it makes one.


def apply_update(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
) -> None:
    """Does what `optimizer.apply` does, in the fastest way that the framework has."""
    with torch.no_grad():
        if _can_be_fused(optimizer, variables):
            with _fused_adam(optimizer):
                optimizer.apply(gradients, variables)
        else:
            optimizer.apply(gradients, variables)


def _can_be_fused(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> bool:
    """Whether it is Adam or AdamW as Keras has them, and PyTorch has a kernel for the variables."""
    update = getattr(type(optimizer), "_parallel_update_step", None)
    return (
        update is torch_adam.Adam._parallel_update_step
        and not torch.compiler.is_compiling()
        and all(
            type(variable.value) in (torch.Tensor, torch.nn.Parameter)
            and variable.value.device.type in ("cpu", "cuda")
            for variable in variables
        )
    )


@contextmanager
def _fused_adam(optimizer: Any) -> Iterator[None]:
    """Lets Keras's Adam, on its own state, update each variable in one pass over its numbers.

    Keras makes one pass for each product and sum, which takes ten times as long.
    """

    def update(
        gradients: Sequence[torch.Tensor], variables: Sequence[keras.Variable], learning_rate: Any
    ) -> None:
        decay = optimizer.weight_decay or 0.0
        rows = list(zip(variables, gradients, strict=True))
        kept = [row for row in rows if decay and not optimizer._use_weight_decay(row[0])]
        kept_variables = {id(variable) for variable, _ in kept}
        decayed = [row for row in rows if id(row[0]) not in kept_variables]
        for group, weight_decay in ((decayed, decay), (kept, 0.0)):
            if group:
                _update_group(optimizer, group, float(learning_rate), weight_decay)

    optimizer._backend_update_step = update
    optimizer._apply_weight_decay = lambda _: None  # The kernel does so.
    try:
        yield
    finally:
        del optimizer._backend_update_step, optimizer._apply_weight_decay


def _update_group(
    optimizer: Any,
    rows: Sequence[tuple[keras.Variable, torch.Tensor]],
    learning_rate: float,
    weight_decay: float,
) -> None:
    steps = int(optimizer.iterations)
    indices = [optimizer._get_variable_index(variable) for variable, _ in rows]

    def state(variables: Sequence[keras.Variable]) -> list[torch.Tensor]:
        return [variables[index].value for index in indices]

    adamw(
        [variable.value for variable, _ in rows],
        [gradient.contiguous() for _, gradient in rows],
        state(optimizer._momentums),
        state(optimizer._velocities),
        state(optimizer._velocity_hats) if optimizer.amsgrad else [],
        list(torch.full((len(rows),), float(steps), device=rows[0][1].device).unbind()),
        fused=True,
        amsgrad=optimizer.amsgrad,
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        lr=learning_rate,
        weight_decay=weight_decay,
        # Keras adds it before the correction for the first steps, PyTorch after.
        eps=optimizer.epsilon / (1 - optimizer.beta_2 ** (steps + 1)) ** 0.5,
        maximize=False,
    )
