"""ONNX files written from PyTorch, by `torch.export` and PyTorch's ONNX exporter."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export import torch_onnx_operators as operators
from keras_deepseek.backend.export.free_axes import BATCH, Shapes, with_named_axes
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.one_file import fits_one_file
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.backend.keras_private.torch_moments import temporary_moments
from keras_deepseek.backend.protocols.export import Export
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

        with _quietly(), _unrolled(model.model), temporary_moments(_moments):
            with_named_axes(model.signature, write)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the `custom_translation_table` for `torch.onnx.export`."""
    aten = torch.ops.aten
    return {
        aten.squeeze.dim: operators.squeeze,
        aten.squeeze.dims: operators.squeeze,
        aten.expm1.default: operators.expm1,
        aten.special_expm1.default: operators.expm1,
        aten.log1p.default: operators.log1p,
        aten.log_sigmoid.default: operators.log_sigmoid,
        aten.logaddexp.default: operators.logaddexp,
        aten.logaddexp2.default: operators.logaddexp2,
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
