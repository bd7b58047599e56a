"""A pass that converts a float16 graph to bfloat16.

All exporters write float16, and not all of them bfloat16. The two graphs differ only by dtype.
"""

from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_passes.import_package import import_package
from keras_deepseek.deploy.onnx_passes.inner_graphs import inner_graphs


def to_bfloat16(graph: Any) -> None:
    """Replaces the dtype float16 by bfloat16 in a graph and its subgraphs, in place."""
    onnx = import_package("onnx")
    half, brief = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16

    def change_tensor(tensor: Any) -> None:
        if tensor.data_type == half:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(brief)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(dtype), tensor.name))

    for tensor in graph.initializer:
        change_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = brief
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == half:
                attribute.i = brief
            if attribute.HasField("t"):
                change_tensor(attribute.t)
        for inner in inner_graphs(node):
            to_bfloat16(inner)
