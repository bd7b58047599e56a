"""What PyTorch's ONNX exporter has to be told: operators that it writes wrongly."""

import importlib
import math
from collections.abc import Sequence
from typing import Any


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
        operators.Tanh(operators.Mul(x, _like(x, 0.5))),
        operators.Add(operators.Exp(x), _like(x, 1.0)),
    )


def log1p(x: Any) -> Any:
    """Puts `log(u) x / (u - 1)` of `u = 1 + x` for what is small, as `u` loses some of `x`."""
    operators = _operators()
    following = operators.Add(x, _like(x, 1.0))
    logarithm = operators.Log(following)
    # What is left of `x` in `u` stands in both: the error of the one is that of the other.
    kept = operators.Sub(following, _like(x, 1.0))
    small = operators.Mul(logarithm, operators.Div(x, kept))
    small = operators.Where(operators.Equal(kept, _like(x, 0.0)), x, small)
    return operators.Where(operators.Less(operators.Abs(x), _like(x, 0.5)), small, logarithm)


def log_sigmoid(x: Any) -> Any:
    """Puts `min(x, 0) - log1p(exp(-|x|))` for `log(sigmoid(x))`, which is infinite early."""
    operators = _operators()
    small = log1p(operators.Exp(operators.Neg(operators.Abs(x))))
    return operators.Sub(operators.Min(x, _like(x, 0.0)), small)


def logaddexp(x: Any, y: Any) -> Any:
    """Puts `max(x, y) + log1p(exp(-|x - y|))` for `log(exp(x) + exp(y))`, which overflows."""
    operators = _operators()
    return operators.Add(operators.Max(x, y), log1p(operators.Exp(_distance_below(x, y))))


def logaddexp2(x: Any, y: Any) -> Any:
    """Puts `max(x, y) + log1p(2^-|x - y|) / log(2)` for what overflows."""
    operators = _operators()
    power = operators.Exp(operators.Mul(_distance_below(x, y), _like(x, math.log(2))))
    logarithm = operators.Mul(log1p(power), _like(x, 1 / math.log(2)))
    return operators.Add(operators.Max(x, y), logarithm)


def _distance_below(x: Any, y: Any) -> Any:
    """Returns `-|x - y|`, which is 0 of two that are infinite."""
    operators = _operators()
    distance = operators.Neg(operators.Abs(operators.Sub(x, y)))
    return operators.Where(operators.Equal(x, y), _like(x, 0.0), distance)


def _like(x: Any, value: float) -> Any:
    """Returns a number in the type of `x`: in a model that is not float32, it is not either."""
    return _operators().CastLike(value, x)


def _operators() -> Any:
    return importlib.import_module("onnxscript").opset18
