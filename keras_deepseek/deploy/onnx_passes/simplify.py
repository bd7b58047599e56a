"""Constant folding and removal of redundant nodes, by onnxslim."""

import logging
from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package

_logger = logging.getLogger(__name__)


def simplify(model: Any) -> Any:
    """Returns a graph simplified by onnxslim, or the given graph if onnxslim fails."""
    onnx, onnxslim = import_package("onnx"), import_package("onnxslim")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        simple = onnxslim.slim(copy)
        _put_back_inputs(simple.graph, model.graph)
        onnx.checker.check_model(simple)
    except Exception as error:  # noqa: BLE001 - whatever fails, the given graph is right.
        _logger.warning("The ONNX graph is not simplified, because onnxslim failed: %s", error)
        return model
    return simple


def _put_back_inputs(simple: Any, graph: Any) -> None:
    """Restores unused graph inputs that onnxslim has removed."""
    inputs = {value.name: value for value in simple.input}
    all_inputs = [inputs.get(value.name, value) for value in graph.input]
    copies = [type(value).FromString(value.SerializeToString()) for value in all_inputs]
    del simple.input[:]
    simple.input.extend(copies)
