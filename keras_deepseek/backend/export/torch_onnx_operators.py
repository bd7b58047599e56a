"""Translations of operators that PyTorch's ONNX exporter writes wrongly."""

import importlib
import math
from collections.abc import Sequence
from typing import Any


def squeeze(tensor: Any, dim: int | Sequence[int]) -> Any:
    """Writes `Squeeze` for axes of size 1 only, as in PyTorch.

    `torch.onnx` writes it for other axes too, which ONNX forbids, for example in Keras's `take`.
    """
    operators = _operators()
    axes = [dim] if isinstance(dim, int) else dim
    axes = [axis for axis in axes if len(tensor.shape) and tensor.shape[axis] == 1]
    return operators.Squeeze(tensor, axes) if axes else operators.Identity(tensor)


def expm1(x: Any) -> Any:
    """Writes `expm1` as `tanh(x / 2) (exp(x) + 1)`, which is exact for small numbers."""
    operators = _operators()
    return operators.Mul(
        operators.Tanh(operators.Mul(x, _like(x, 0.5))),
        operators.Add(operators.Exp(x), _like(x, 1.0)),
    )


def log1p(x: Any) -> Any:
    """Writes `log1p` of small numbers as `log(u) x / (u - 1)` with `u = 1 + x`.

    `u` has lost part of `x`. It has lost it in both factors, so that the errors cancel.
    """
    operators = _operators()
    following = operators.Add(x, _like(x, 1.0))
    logarithm = operators.Log(following)
    # Both factors hold what is left of `x` in `u`, so that the errors cancel.
    increment = operators.Sub(following, _like(x, 1.0))
    small = operators.Mul(logarithm, operators.Div(x, increment))
    small = operators.Where(operators.Equal(increment, _like(x, 0.0)), x, small)
    return operators.Where(operators.Less(operators.Abs(x), _like(x, 0.5)), small, logarithm)


def log_sigmoid(x: Any) -> Any:
    """Writes `log_sigmoid` as `min(x, 0) - log1p(exp(-|x|))`.

    `log(sigmoid(x))` becomes infinite early.
    """
    operators = _operators()
    small = log1p(operators.Exp(operators.Neg(operators.Abs(x))))
    return operators.Sub(operators.Min(x, _like(x, 0.0)), small)


def logaddexp(x: Any, y: Any) -> Any:
    """Writes `logaddexp` as `max(x, y) + log1p(exp(-|x - y|))`, which does not overflow."""
    operators = _operators()
    return operators.Add(operators.Max(x, y), log1p(operators.Exp(_distance_below(x, y))))


def logaddexp2(x: Any, y: Any) -> Any:
    """Writes `logaddexp2` as `max(x, y) + log1p(2^-|x - y|) / log(2)`, which does not overflow."""
    operators = _operators()
    power = operators.Exp(operators.Mul(_distance_below(x, y), _like(x, math.log(2))))
    logarithm = operators.Mul(log1p(power), _like(x, 1 / math.log(2)))
    return operators.Add(operators.Max(x, y), logarithm)


def _distance_below(x: Any, y: Any) -> Any:
    """Computes `-|x - y|`, which is 0 for two equal infinities."""
    operators = _operators()
    distance = operators.Neg(operators.Abs(operators.Sub(x, y)))
    return operators.Where(operators.Equal(x, y), _like(x, 0.0), distance)


def _like(x: Any, value: float) -> Any:
    """Casts a number to the dtype of `x`, which need not be float32."""
    return _operators().CastLike(value, x)


def _operators() -> Any:
    """Returns the module with ONNX's operators of opset 18."""
    return importlib.import_module("onnxscript").opset18
