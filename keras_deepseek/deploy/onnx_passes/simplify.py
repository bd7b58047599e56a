"""Folds constants and leaves out what does nothing."""

import logging
from typing import Any

from keras_deepseek.deploy.onnx_passes.import_package import import_package

_logger = logging.getLogger(__name__)


def simplify(model: Any) -> Any:
    """Returns a graph with fewer nodes that computes the same.

    Args:
        model: `onnx.ModelProto`.

    Returns:
        `onnx.ModelProto`; the given one where it can't be made simpler.
    """
    onnx, onnxslim = import_package("onnx"), import_package("onnxslim")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        simple = onnxslim.slim(copy)
        _put_back_inputs(simple.graph, model.graph)
        onnx.checker.check_model(simple)
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over, what it was given is right.
        _logger.warning("The ONNX graph is left as it was: onnxslim: %s", error)
        return model
    return simple


def _put_back_inputs(simple: Any, graph: Any) -> None:
    """Gives a graph the inputs, too, that nothing reads and that onnxslim has left out."""
    inputs = {value.name: value for value in simple.input}
    all_inputs = [inputs.get(value.name, value) for value in graph.input]
    copies = [type(value).FromString(value.SerializeToString()) for value in all_inputs]
    del simple.input[:]
    simple.input.extend(copies)
