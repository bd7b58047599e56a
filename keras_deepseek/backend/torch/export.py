"""ONNX files written from PyTorch, by `torch.export` and PyTorch's ONNX exporter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import torch

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import BATCH, Shapes, with_named_axes
from keras_deepseek.backend.protocols.inference import Export

_BATCH_SIZE = 5
_SHORTEST = 11
"""Sizes to trace with. No export is verified on these sizes. Each free axis has its own, since
`torch.export` treats two of one size as equal."""


class TorchExport(Export):
    """Implements `Export` by PyTorch."""

    def write_onnx(self, model: NamedModel, path: str, opset: int) -> None:
        def write(shapes: Shapes) -> None:
            torch.onnx.export(
                _Positional(model),
                tuple(_examples(model.signature, shapes)),
                path,
                input_names=[spec.name for spec in model.signature.inputs],
                output_names=[spec.name for spec in model.signature.outputs],
                opset_version=opset,
                dynamic_shapes={"tensors": tuple(map(_free_axes, model.signature.inputs))},
                dynamo=True,
                external_data=False,
                verbose=False,
            )

        with _quietly(), _left_transforms():
            with_named_axes(model.signature, write)


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
