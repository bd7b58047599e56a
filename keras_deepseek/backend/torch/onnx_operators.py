"""What PyTorch's ONNX exporter has to be told: operators that it writes wrongly."""

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns what `torch.onnx.export` takes as `custom_translation_table`."""
    aten = torch.ops.aten
    return {
        aten.squeeze.dim: squeeze,
        aten.squeeze.dims: squeeze,
        aten.expm1.default: expm1,
        aten.special_expm1.default: expm1,
        aten.log1p.default: log1p,
        aten.log_sigmoid.default: log_sigmoid,
        aten.logaddexp.default: logaddexp,
        aten.logaddexp2.default: logaddexp2,
    }


def squeeze(tensor: Any, dim: int | Sequence[int]) -> Any:
    """Leaves axes as they are whose size is not one, as PyTorch does.

    `torch.onnx` writes `Squeeze` for them too, which ONNX forbids: of Keras's `take` for one.
    """
    operators = _operators()
    axes = [dim] if isinstance(dim, int) else dim
    axes = [axis for axis in axes if len(tensor.shape) and tensor.shape[axis] == 1]
    return operators.Squeeze(tensor, axes) if axes else operators.Identity(tensor)


def expm1(x: Any) -> Any:
    """Puts `tanh(x / 2) (exp(x) + 1)` for `exp(x) - 1`, which loses what is small."""
    operators = _operators()
    return operators.Mul(
        operators.Tanh(operators.Mul(x, 0.5)), operators.Add(operators.Exp(x), 1.0)
    )


def log1p(x: Any) -> Any:
    """Puts `log(u) x / (u - 1)` of `u = 1 + x` for what is small, as `u` loses some of `x`."""
    operators = _operators()
    following = operators.Add(x, 1.0)
    logarithm = operators.Log(following)
    # What is left of `x` in `u` stands in both: the error of the one is that of the other.
    kept = operators.Sub(following, 1.0)
    small = operators.Mul(logarithm, operators.Div(x, kept))
    small = operators.Where(operators.Equal(kept, 0.0), x, small)
    return operators.Where(operators.Less(operators.Abs(x), 0.5), small, logarithm)


def log_sigmoid(x: Any) -> Any:
    """Puts `min(x, 0) - log1p(exp(-|x|))` for `log(sigmoid(x))`, which is infinite early."""
    operators = _operators()
    small = log1p(operators.Exp(operators.Neg(operators.Abs(x))))
    return operators.Sub(operators.Min(x, operators.CastLike(0.0, x)), small)


def logaddexp(x: Any, y: Any) -> Any:
    """Puts `max(x, y) + log1p(exp(-|x - y|))` for `log(exp(x) + exp(y))`, which overflows."""
    operators = _operators()
    return operators.Add(operators.Max(x, y), log1p(operators.Exp(_distance_below(x, y))))


def logaddexp2(x: Any, y: Any) -> Any:
    """Puts `max(x, y) + log1p(2^-|x - y|) / log(2)` for what overflows."""
    operators = _operators()
    power = operators.Exp(operators.Mul(_distance_below(x, y), math.log(2)))
    return operators.Add(operators.Max(x, y), operators.Mul(log1p(power), 1 / math.log(2)))


def _distance_below(x: Any, y: Any) -> Any:
    """Returns `-|x - y|`, which is 0 of two that are infinite."""
    operators = _operators()
    distance = operators.Neg(operators.Abs(operators.Sub(x, y)))
    return operators.Where(operators.Equal(x, y), operators.CastLike(0.0, x), distance)


@contextlib.contextmanager
def moments_in_two_steps() -> Iterator[None]:
    """Takes a variance from the mean: Keras subtracts squares, of which little may be left."""
    module: Any = keras.src.backend.torch.nn
    moments = module.moments
    module.moments = _moments
    try:
        yield
    finally:
        module.moments = moments


def _moments(
    x: Any, axes: Sequence[int], keepdims: bool = False, synchronized: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what Keras's `moments` does, by `mean((x - mean)^2)`."""
    if synchronized:
        raise NotImplementedError("Argument synchronized=True is not supported with PyTorch.")
    x = keras.ops.convert_to_tensor(x)
    dtype = x.dtype
    values = x.float() if dtype == torch.float16 else x
    axes = list(axes)
    mean = torch.mean(values, dim=axes, keepdim=True)
    variance = torch.mean(torch.square(values - mean), dim=axes, keepdim=True)
    if not keepdims:
        mean, variance = torch.squeeze(mean, axes), torch.squeeze(variance, axes)
    if dtype == torch.float16:
        limits = torch.finfo(dtype)
        mean, variance = (
            torch.clip(each, limits.min, limits.max).to(dtype) for each in (mean, variance)
        )
    return mean, variance


def _operators() -> Any:
    return importlib.import_module("onnxscript").opset18
