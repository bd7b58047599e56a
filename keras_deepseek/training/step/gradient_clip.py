"""Clipping of gradients, after unscaling and before the update."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import plain_optimizer, single_optimizers
from keras_deepseek.errors import InvalidInputError, NotSupportedError

GradientClip = tuple[Literal["value", "norm", "global_norm", "adaptive"], float]

_KINDS = ("value", "norm", "global_norm", "adaptive")
_MIN_NORM = 1e-3  # Of weights in the adaptive clip: weights of zero can then still change.


def check_gradient_clip(gradient_clip: Any) -> None:
    """Raises an error if `gradient_clip` is not a pair of a known kind and a bound."""
    match gradient_clip:
        case None:
            return
        case (str(kind), numbers.Real() as bound) if kind in _KINDS and 0 < float(bound) < math.inf:
            return
    raise InvalidInputError(
        "`gradient_clip` must be a kind ('value', 'norm', 'global_norm' or 'adaptive') and a "
        f"finite bound above 0, as in ('global_norm', 1.0); received {gradient_clip!r}."
    )


def check_single_clip(
    gradient_clip: GradientClip | None,
    optimizer: keras.optimizers.Optimizer,
    *,
    clips_in_workers: bool = False,
) -> None:
    """Raises an error if the optimizer clips as well, or accumulates where it can't be clipped."""
    if gradient_clip is None:
        return
    inner = plain_optimizer(optimizer)
    for name in ("clipvalue", "clipnorm", "global_clipnorm"):
        if getattr(inner, name, None) is not None:
            raise InvalidInputError(
                f"The optimizer clips by {name}={getattr(inner, name)} and the trainer by "
                f"gradient_clip={gradient_clip!r}: use only one of the two."
            )
    parts = single_optimizers(inner)
    is_apart = clips_in_workers or parts != [inner]
    if is_apart and any(part.gradient_accumulation_steps for part in parts):
        raise NotSupportedError(
            f"gradient_clip={gradient_clip!r} clips the accumulated gradients of all weights, and "
            "parameter servers and a MultiOptimizer accumulate them apart. Use micro_batches in "
            "place of gradient_accumulation_steps, or clipnorm of the optimizers in place of "
            "gradient_clip."
        )


def clip_gradients(
    gradient_clip: GradientClip, gradients: Sequence[Any], variables: Sequence[Any], norm: Any
) -> tuple[list[Any], Any]:
    """Returns the clipped gradients, and a factor that the update must multiply them with.

    The factor is `None` except for the clip by the global norm. There the update applies it, since
    it reads all gradients anyway.

    `norm` is the global norm of the gradients.
    """
    kind, bound = gradient_clip
    if kind == "global_norm":
        return list(gradients), _factor(norm, bound)
    if kind == "value":
        return [_on_own_device(ops.clip, gradient, -bound, bound) for gradient in gradients], None
    if kind == "norm":
        return [_on_own_device(_clip_by_norm, gradient, bound) for gradient in gradients], None
    pairs = zip(gradients, variables, strict=True)
    return [
        _on_own_device(_clip_by_weights, gradient, variable, bound) for gradient, variable in pairs
    ], None


def _on_own_device(clip: Callable[..., Any], gradient: Any, *arguments: Any) -> Any:
    with backend.current().devices.on_device_of(gradient):
        return clip(gradient, *arguments)


def _clip_by_norm(gradient: Any, bound: float) -> Any:
    return _shrink(gradient, backend.current().step.global_norm([gradient]), bound)


def _clip_by_weights(gradient: Any, variable: Any, bound: float) -> Any:
    norms = ops.maximum(_unit_norms(ops.convert_to_tensor(variable)), _MIN_NORM)
    return _shrink(gradient, _unit_norms(gradient), bound * norms)


def _unit_norms(tensor: Any) -> Any:
    """Returns the L2 norm of each unit, which is an index of the last axis; of a vector, its norm.

    It sums over all other axes, and keeps them with the size 1.
    """
    axes = tuple(range(max(1, len(tensor.shape) - 1))) if len(tensor.shape) else None
    squares = ops.square(ops.cast(tensor, "float32"))
    return ops.sqrt(ops.sum(squares, axis=axes, keepdims=True))


def _shrink(gradient: Any, norm: Any, most: Any) -> Any:
    return gradient * ops.cast(_factor(norm, most), gradient.dtype)


def _factor(norm: Any, most: Any) -> Any:
    """Returns the factor, at most 1, that scales a norm down to `most`."""
    # The maximum avoids a division by zero.
    return ops.where(norm > most, most / ops.maximum(norm, 1e-30), 1.0)
