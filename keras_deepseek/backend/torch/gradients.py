"""Gradients of a function by PyTorch's autograd."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.keras_training import recomputed_call
from keras_deepseek.backend.torch.layer_devices import beside


def compute_gradients(
    function: Callable[..., Any], inputs: Sequence[Array], variables: Sequence[keras.Variable]
) -> tuple[list[Array], list[Array]]:
    """Returns the gradients of the scalar `function(*inputs)`, by input and by variable."""
    tensors = [
        keras.ops.convert_to_tensor(array).detach().clone().requires_grad_() for array in inputs
    ]
    sources = [*tensors, *(variable.value for variable in variables)]
    result = function(*tensors)
    if result.requires_grad:
        gradients = torch.autograd.grad(result, sources, allow_unused=True, materialize_grads=True)
    else:  # The result depends on none of them.
        gradients = tuple(torch.zeros_like(source) for source in sources)
    arrays = [keras.ops.convert_to_numpy(gradient) for gradient in gradients]
    return arrays[: len(tensors)], arrays[len(tensors) :]


def differentiate(
    compute: Callable[[], tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
) -> tuple[Any, Callable[..., list[Any]]]:
    """Returns what `compute` returns beside a scalar, and the scalar's backward pass."""
    scalar, others = compute()
    sources = [variable.value for variable in variables]

    def backward(
        factor: Any = None, receive: Callable[[int, Any], None] | None = None
    ) -> list[Any]:
        if not scalar.requires_grad:  # It depends on none of them.
            return [None for _ in sources]
        upstream = None if factor is None else torch.as_tensor(factor).to(scalar).reshape(())
        with contextlib.ExitStack() as stack:
            if receive is not None:
                for index, source in enumerate(sources):
                    hook = source.register_hook(functools.partial(receive, index))
                    stack.callback(hook.remove)
            return list(torch.autograd.grad(scalar, sources, upstream, allow_unused=True))

    return others, backward


def rematerialize(
    layer: keras.Layer, call: Callable[..., Any], states: Sequence[keras.Variable]
) -> Callable[..., Any]:
    """Returns a layer's `call` that keeps nothing for the gradient, and computes it anew there."""
    # PyTorch leaves a second call as soon as it has what it needs; a recurrent layer forgets its
    # dropout masks at the end of a call, and would go on with those of the first.
    is_whole = any(hasattr(each, "reset_dropout_mask") for each in layer._flatten_layers())

    def run(compute: Callable[..., Any], floats: Sequence[Any]) -> Any:
        with set_checkpoint_early_stop(not is_whole):
            return checkpoint(compute, *floats, use_reentrant=False)

    return recomputed_call(layer, call, states, run)


def apply_with_gradient(
    function: Callable[..., Any],
    gradient: Callable[..., Sequence[Any]],
    tensors: Sequence[Any],
    constants: Sequence[Any],
) -> Any:
    """Returns `function(*tensors, *constants)`; `gradient` says what its gradients are."""
    return _GivenGradient.apply(function, gradient, len(constants), *tensors, *constants)


class _GivenGradient(torch.autograd.Function):
    """A function of tensors, and of constants behind them, with a gradient of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Any],
        gradient: Callable[..., Sequence[Any]],
        num_constants: int,
        *arguments: Any,
    ) -> Any:
        ctx.gradient, ctx.num_constants = gradient, num_constants
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> tuple[Any, ...]:
        with beside(upstream):  # PyTorch has a thread for each GPU, and Keras a device for each.
            gradients = ctx.gradient(upstream, *ctx.saved_tensors)
        return None, None, None, *gradients, *(None for _ in range(ctx.num_constants))
