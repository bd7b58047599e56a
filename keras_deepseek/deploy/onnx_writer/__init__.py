"""ONNX files from traced programs, by a table from Keras operations to ONNX nodes."""

import re
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.onnx_writer import layers, table  # noqa: F401 - they register themselves.
from keras_deepseek.deploy.onnx_writer.program_file import make_file
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer
from keras_deepseek.graph.ir import Graph
from keras_deepseek.graph.size_expressions import FreeAxis, OneSizeError, has_free_axes
from keras_deepseek.graph.sizes import free_program
from keras_deepseek.graph.trace import as_symbols, path_of

__all__ = ["NoEntryError", "write_program"]


def write_program(
    model: NamedModel, batch: Batch, opset: int, *, simplified: bool = True, fused: bool = True
) -> Any:
    """Returns the `onnx.ModelProto` of a model, traced on symbols like a batch.

    Raises:
        NoEntryError: The table lacks an operation.
        OneSizeError: A free size is not understood.
    """
    with model.temporary_precision():
        graph, axes = _trace(model, as_symbols(model.pack_inputs(batch)))
    for node, spec in zip(graph.inputs, model.signature.inputs, strict=True):
        if node.spec.dtype != spec.dtype:
            raise NoEntryError(f"the input {spec} is traced as {node.spec.dtype}")
    graph.masks = [None] * len(graph.outputs)  # A file has none.
    for node in graph.all_nodes():
        if node.layer == path_of(model.model):  # Keras may have counted the name up.
            node.layer = ""
    writer = Writer(graph, opset, [spec.name for spec in model.signature.inputs])
    with np.errstate(all="ignore"):  # Of numbers beyond a dtype, as Keras casts them.
        writer.write_nodes()
        return make_file(writer, model.signature, axes, simplified=simplified, fused=fused)


def _trace(model: NamedModel, inputs: Any) -> tuple[Graph, list[FreeAxis]]:
    """Returns the program of a model, and its free axes: all that the model leaves open."""
    graph, axes, reasons = free_program(model.model, inputs)
    if not has_free_axes([spec.shape for spec in model.signature.inputs], axes):
        names = [repr(spec.name) for spec in model.signature.inputs]
        why = re.sub(r"input (\d+)", lambda found: names[int(found[1])], "; ".join(reasons))
        raise OneSizeError(
            f"its program holds for one size of a free axis alone: {why}. Compute with sizes by "
            "keras.ops, choose by ops.cond(ops.convert_to_tensor(size) > 64, ...), or give an axis "
            "other than that of the batch a fixed size",
            graph.traced,
        )
    return graph, axes
