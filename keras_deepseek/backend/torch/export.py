"""ONNX files written from PyTorch, by `torch.export` and PyTorch's ONNX exporter."""

import contextlib
import importlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import BATCH, Shapes, with_named_axes
from keras_deepseek.backend.keras_private.fixes import temporary_moments
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.protocols.inference import Export
from keras_deepseek.backend.tensor_values import fits_one_file
from keras_deepseek.errors import MissingExtraError

_BATCH_SIZE = 5
_SHORTEST = 11
"""Sizes to trace with. No export is verified on these sizes. Each free axis has its own, since
`torch.export` treats two of one size as equal."""


class TorchExport(Export):
    """Implements `Export` by PyTorch."""

    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        if importlib.util.find_spec("onnxscript") is None:
            raise MissingExtraError("onnxscript", "onnx", "to export ONNX from PyTorch")

        def write(shapes: Shapes) -> None:
            torch.onnx.export(
                _Positional(model),
                tuple(_examples(model.signature, shapes)),
                path,
                input_names=[spec.name for spec in model.signature.inputs],
                output_names=[spec.name for spec in model.signature.outputs],
                opset_version=opset,
                dynamic_shapes={"tensors": tuple(map(_free_axes, model.signature.inputs))},
                custom_translation_table=_translations(),
                dynamo=True,
                external_data=not fits_one_file(model.model),
                verbose=False,
            )

        with _quietly(), _unrolled(model.model), temporary_moments(_moments), _left_transforms():
            with_named_axes(model.signature, write)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
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


def _moments(
    x: Any, axes: Sequence[int], keepdims: bool = False, synchronized: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes Keras's `moments`, with the variance as `mean((x - mean)^2)`.

    Keras subtracts the squared mean from the mean of squares, which loses small variances.
    """
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
            torch.clip(moment, limits.min, limits.max).to(dtype) for moment in (mean, variance)
        )
    return mean, variance


@contextlib.contextmanager
def _unrolled(model: keras.Model) -> Iterator[None]:
    """Context manager in which recurrent layers run unrolled.

    Keras's loop over time splits the batch by its shape, which can't be traced. Neither way works
    for a free length.
    """
    recurrent = [layer for layer in flatten_layers(model) if isinstance(layer, keras.layers.RNN)]
    were_unrolled = [layer.unroll for layer in recurrent]
    try:
        for layer in recurrent:
            layer.unroll = True
        yield
    finally:
        for layer, was_unrolled in zip(recurrent, were_unrolled, strict=True):
            layer.unroll = was_unrolled


@contextlib.contextmanager
def _left_transforms() -> Iterator[None]:
    """Context manager that leaves a `vmap` in which `torch.export` failed.

    PyTorch would run all later operations of this thread in it.
    """
    functorch = torch._C._functorch  # noqa: SLF001
    depth = functorch.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)


class _Positional(torch.nn.Module):
    """A PyTorch module that takes the model's inputs by position, as the exporter needs."""

    def __init__(self, model: NamedModel) -> None:
        super().__init__()
        self.model = model.model
        self._named_model = model
        self.eval()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        signature = self._named_model.signature
        names = (spec.name for spec in signature.inputs)
        outputs = self._named_model.trace(dict(zip(names, tensors, strict=True)))
        return tuple(outputs[spec.name] for spec in signature.outputs)


def _examples(signature: Signature, shapes: Shapes) -> Iterator[torch.Tensor]:
    """Yields an example array for each input; the size of a free axis depends on its name."""
    names = dict.fromkeys(size for shape in shapes.values() for size in shape)
    lengths = [name for name in names if isinstance(name, str) and name != BATCH]
    sizes = {name: _SHORTEST + 3 * index for index, name in enumerate(lengths)}
    sizes[BATCH] = _BATCH_SIZE
    for spec in signature.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in shapes[spec.name]]
        yield keras.ops.convert_to_tensor(np.ones(shape), dtype=spec.dtype)


def _free_axes(spec: TensorSpec) -> dict[int, Any]:
    """Returns the free axes of an input in the form of `torch.export`."""
    return {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(spec.shape) if size is None}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Context manager that suppresses the exporter's prints, logs and warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


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
