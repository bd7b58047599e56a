"""A fix of jax2onnx's pooling, which pools over the batch and the channels as well."""

from typing import Any

_MOST_POOLED = 3
"""The most axes that onnxruntime pools over."""


def pool_over_fewer_axes(path: str) -> None:
    """Rewrites each `MaxPool` of an ONNX file that pools over more axes than onnxruntime can.

    jax2onnx adds two axes of size 1 in front, and pools over all of the tensor's own. The batch and
    the channels, which have windows of 1, take the place of the added axes.
    """
    import onnx

    model = onnx.load(path)
    nodes = {output: node for node in model.graph.node for output in node.output}
    changed = False
    for pool in [node for node in model.graph.node if node.op_type == "MaxPool"]:
        options = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in pool.attribute
        }
        inner_input = _inner_input(nodes, pool.input[0])
        after = [node for node in model.graph.node if pool.output[0] in node.input]
        if len(options["kernel_shape"]) <= _MOST_POOLED or inner_input is None or len(after) != 1:
            continue
        order = _order(options)
        if order is None or after[0].op_type != "Squeeze":
            continue
        _replace(model.graph, pool, after[0], inner_input, order, options)
        changed = True
    if changed:
        onnx.save(model, path)


def _inner_input(nodes: dict[str, Any], name: str) -> str | None:
    """Returns the tensor before two `Unsqueeze` nodes in front of a pooling, or `None`."""
    for _ in range(2):
        node = nodes.get(name)
        if node is None or node.op_type != "Unsqueeze":
            return None
        name = node.input[0]
    return name


def _order(options: dict[str, Any]) -> list[int] | None:
    """Returns an axis order that begins with two unpooled axes, or `None` if there are none."""
    windows = options["kernel_shape"]
    rank = len(windows)
    pads, strides = options.get("pads", [0] * 2 * rank), options.get("strides", [1] * rank)
    single = [
        axis
        for axis in range(rank)
        if windows[axis] == strides[axis] == 1 and pads[axis] == pads[axis + rank] == 0
    ][:2]
    pooled = [axis for axis in range(rank) if axis not in single]
    return single + pooled if len(pooled) == rank - 2 <= _MOST_POOLED else None


def _replace(
    graph: Any, pool: Any, squeeze: Any, inner_input: str, order: list[int], options: dict[str, Any]
) -> None:
    """Replaces a pooling by one over fewer axes, between two transpositions."""
    from onnx import helper

    rank = len(order)
    pool_options: dict[str, Any] = {
        name: [values[axis] for axis in order[2:]] if len(values) == rank else values
        for name, values in options.items()
        if name in ("kernel_shape", "strides", "dilations")
    }
    if "pads" in options:
        pool_options["pads"] = [
            options["pads"][axis + end] for end in (0, rank) for axis in order[2:]
        ]
    pool_options |= {name: options[name] for name in ("auto_pad", "ceil_mode") if name in options}
    back = [order.index(axis) for axis in range(rank)]
    name = pool.output[0]
    first, last = f"{name}/pooled_last", f"{name}/pooled"
    index = list(graph.node).index(pool)
    for node in (
        helper.make_node("Transpose", [last], [squeeze.output[0]], perm=back),
        helper.make_node("MaxPool", [first], [last], **pool_options),
        helper.make_node("Transpose", [inner_input], [first], perm=order),
    ):
        graph.node.insert(index, node)
    graph.node.remove(pool)
    graph.node.remove(squeeze)
