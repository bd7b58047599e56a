"""TensorFlow operations that tf2onnx knows nothing of, as those of ONNX that compute the same.

Each handler takes tf2onnx's graph, the node, its name, and arguments that are not used, and puts
nodes of ONNX in the node's place.
"""

from typing import Any

import numpy as np

_SIGN_BIT = np.iinfo("int32").min


def onnx_handlers() -> dict[str, tuple[Any, list[str]]]:
    """Returns the handlers by TensorFlow's operation, as `tf2onnx.convert` takes them."""
    return {
        "Bitcast": (_convert_bitcast, []),
        "Erfc": (_convert_erfc, []),
        "Log1p": (_convert_log1p, []),
    }


def _convert_erfc(context: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Puts `1 - Erf(x)`."""
    erf = context.make_node("Erf", [node.input[0]])
    return _put_instead(context, node, name, "Sub", [_constant(context, node, 1), erf.output[0]])


def _convert_log1p(context: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Puts `Log(1 + x)`."""
    following = context.make_node("Add", [node.input[0], _constant(context, node, 1)])
    return _put_instead(context, node, name, "Log", [following.output[0]])


def _convert_bitcast(context: Any, node: Any, name: str, _: list[Any]) -> Any:
    """Puts the sign bit alone, -1 or 0, which is what Keras takes the bits of a float for.

    It is set where `1 / x` is negative, which tells the two zeros apart.
    """
    users = context.find_output_consumers(node.output[0])
    for user in users:
        masks = [made.get_tensor_value() for made in user.inputs if made.is_const()]
        if user.type not in ("BitwiseAnd", "TfLiteBitwiseAnd") or masks != [_SIGN_BIT]:
            raise ValueError(f"Bitcast to {user.type}: ONNX has the sign bit alone.")
    inverse = context.make_node("Div", [_constant(context, node, 1), node.input[0]])
    negative = context.make_node("Less", [inverse.output[0], _constant(context, node, 0)])
    integer = context.make_node("Cast", [negative.output[0]], attr={"to": 6})  # int32
    return _put_instead(context, node, name, "Neg", [integer.output[0]])


def _constant(context: Any, node: Any, value: float) -> str:
    """Returns the name of a number in the dtype of what a node is given."""
    from tf2onnx.utils import make_name, map_onnx_to_numpy_type

    dtype = map_onnx_to_numpy_type(context.get_dtype(node.input[0]))
    made = context.make_const(make_name(f"{node.name}/constant"), np.array(value, dtype))
    return str(made.output[0])


def _put_instead(context: Any, node: Any, name: str, operator: str, inputs: list[str]) -> Any:
    """Puts a node of ONNX in the place of one of TensorFlow."""
    outputs, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    return context.make_node(
        operator, inputs, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes
    )
