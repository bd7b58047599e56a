"""Operations that LiteRT lacks, in a SavedModel, rewritten into operations that it has.

An operation becomes a call of a small function with the same result. The file is rewritten, not the
model: verification compares what the LiteRT file computes.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

_RESERVE, _FROM_TENSOR = "TensorListReserve", "TensorListFromTensor"
Body = Callable[..., tf.Tensor]
"""A function of tensors that computes what an operation does."""


def rewrite(saved_model: Path, operations: Collection[str], target: Path) -> bool:
    """Writes a copy of a SavedModel without operations of these names into a new folder.

    Returns False, and writes nothing, if there is no such operation that can be replaced.
    """
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((saved_model / "saved_model.pb").read_bytes())
    library = proto.meta_graphs[0].graph_def.library
    functions = list(library.function)  # The library gets new ones meanwhile.
    if not sum(_Rewriter(library, function).replace(operations) for function in functions):
        return False
    shutil.copytree(saved_model, target)
    (target / "saved_model.pb").write_bytes(proto.SerializeToString())
    return True


class _Rewriter:
    """Replaces the nodes of one function of a SavedModel."""

    def __init__(self, library: Any, function: Any) -> None:
        self._library = library
        self._function = function
        self._nodes = {node.name: node for node in function.node_def}

    def replace(self, operations: Collection[str]) -> int:
        """Replaces the nodes of these operations, and returns their number."""
        num_replaced = 0
        for node in list(self._function.node_def):
            if node.op not in operations:
                continue
            if node.op == _RESERVE:
                num_replaced += self._fill_list(node)
            elif body := self._body_of(node):
                self._call(node, body, _dtypes_of(node))
                num_replaced += 1
        return num_replaced

    def _body_of(self, node: Any) -> Body | None:
        """Returns the body of the function that replaces a node; `None` if there is none."""
        if node.op in ("LowerBound", "UpperBound"):
            dtype = tf.as_dtype(node.attr["out_type"].type) if "out_type" in node.attr else tf.int32
            return _searchsorted(dtype, is_upper=node.op == "UpperBound")
        if node.op == "Roll":
            return _roll
        if node.op == "Einsum":
            return _einsum(node.attr["equation"].s.decode())
        if node.op == "StridedSlice":
            # An attribute with the default value, 0, is not in the file.
            masks = {key: value.i for key, value in node.attr.items() if key.endswith("_mask")}
            return _expand(Counter(masks), self._value(node.input[1]))
        return None

    def _value(self, name: str) -> Any:
        """Returns the array of a constant; `None` for another node."""
        node = self._nodes.get(name.partition(":")[0])
        if node is None or node.op != "Const":
            return None
        return tf.make_ndarray(node.attr["value"].tensor)

    def _call(self, node: Any, body: Body, dtypes: Sequence[int]) -> None:
        """Turns a node with one output, `output`, into a call of a function."""
        specs = [
            tf.TensorSpec(None, tf.as_dtype(dtype), name=f"input_{index}")
            for index, dtype in enumerate(dtypes)
        ]
        traced = tf.function(body, autograph=False).get_concrete_function(*specs)
        definition = traced.function_def
        self._library.function.add().CopyFrom(definition)
        node.op = "PartitionedCall"
        node.attr.clear()
        node.attr["Tin"].list.type.extend(dtypes)
        node.attr["Tout"].list.type.append(traced.outputs[0].dtype.as_datatype_enum)
        node.attr["f"].func.name = definition.signature.name

    def _fill_list(self, node: Any) -> bool:
        """Makes a list whose elements have a free batch from zeros; returns False if it can't.

        LiteRT must know the shape of elements beforehand. A loop fills the list with one for each
        element of another list, which has the same batch: other sizes would fail as the loop runs.
        """
        shape, other = self._value(node.input[0]), self._list_beside(node.name)
        if shape is None or other is None or shape.ndim != 1 or (shape[1:] < 0).any():
            return False
        sizes = [int(size) for size in shape[1:]]
        dtype = tf.as_dtype(node.attr["element_dtype"].type)

        def zeros(count: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
            batch = tf.shape(tensor)[1:2]
            return tf.fill(tf.concat([count[None], batch, sizes], axis=0), tf.zeros([], dtype))

        filled = self._function.node_def.add(name=f"{node.name}/zeros")
        filled.input.extend([node.input[1], other.input[0]])
        self._call(filled, zeros, [tf.int32.as_datatype_enum, other.attr["element_dtype"].type])
        node.op = _FROM_TENSOR
        node.input[:] = [f"{filled.name}:output:0", node.input[0]]
        for user in self._function.node_def:
            for index, name in enumerate(user.input):
                if name == f"{node.name}:handle:0":
                    user.input[index] = f"{node.name}:output_handle:0"
        return True

    def _list_beside(self, name: str) -> Any:
        """Returns a list made from a tensor that goes into the same loop as the list of a name."""
        for loop in self._function.node_def:
            if loop.op not in ("While", "StatelessWhile"):
                continue
            lists = [node for source in loop.input if (node := self._origin(source)) is not None]
            if name in (node.name for node in lists):
                return next((node for node in lists if node.op == _FROM_TENSOR), None)
        return None

    def _origin(self, name: str) -> Any:
        """Returns the node of an input, or for a list that was written to that of the list."""
        node = self._nodes.get(name.partition(":")[0])
        while node is not None and node.op == "TensorListSetItem":
            node = self._nodes.get(node.input[0].partition(":")[0])
        return node


def _dtypes_of(node: Any) -> list[int]:
    """Returns TensorFlow's numbers of the dtypes of a node's inputs."""
    kind = node.attr["T"].type
    if node.op == "Roll":
        return [kind, node.attr["Tshift"].type, node.attr["Taxis"].type]
    if node.op == "StridedSlice":
        return [kind, *[node.attr["Index"].type] * 3]
    return [kind] * len(node.input)


def _searchsorted(dtype: tf.DType, *, is_upper: bool) -> Body:
    """Returns the body of `UpperBound` or `LowerBound`: for each value those that are before it."""

    def bound(sequences: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        compare = tf.less_equal if is_upper else tf.less
        is_before = compare(tf.expand_dims(sequences, 1), tf.expand_dims(values, 2))
        return tf.cast(tf.reduce_sum(tf.cast(is_before, tf.int32), axis=-1), dtype)

    return bound


def _roll(tensor: tf.Tensor, shift: tf.Tensor, axis: tf.Tensor) -> tf.Tensor:
    size = tf.shape(tensor)[axis]
    return tf.gather(tensor, tf.math.floormod(tf.range(size) - shift, size), axis=axis)


def _expand(masks: Mapping[str, int], begin: Any) -> Body | None:
    """Returns the body of a slice that only adds axes; `None` for another slice."""
    if begin is None or masks["shrink_axis_mask"]:
        return None
    is_new, is_ellipsis = masks["new_axis_mask"], masks["ellipsis_mask"]
    is_whole = masks["begin_mask"] & masks["end_mask"] | is_new | is_ellipsis
    count = len(begin)
    if not is_new or is_whole != 2**count - 1:
        return None
    new_axes = [axis for axis in range(count) if is_new >> axis & 1]
    before = [axis for axis in new_axes if not is_ellipsis or is_ellipsis >> axis > 1]
    behind = [axis - count for axis in reversed(new_axes) if axis not in before]

    def expand(tensor: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        for axis in (*before, *behind):
            tensor = tf.expand_dims(tensor, axis)
        return tensor

    return expand


def _einsum(equation: str) -> Body | None:
    """Returns the body of a product of two tensors by `matmul`; `None` for another equation."""
    operands, _, result = equation.partition("->")
    left, _, right = operands.partition(",")
    if any(not term.isalpha() or len({*term}) < len(term) for term in (left, right)):
        return None
    batch = [label for label in left if label in right and label in result]
    summed = [label for label in left if label in right and label not in result]
    rows = [label for label in left if label not in right]
    columns = [label for label in right if label not in left]
    if sorted([*batch, *rows, *columns]) != sorted(result):
        return None

    def product(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        sizes = dict(zip(left, tf.unstack(tf.shape(first), len(left)), strict=True))
        sizes |= dict(zip(right, tf.unstack(tf.shape(second), len(right)), strict=True))

        def arrange(tensor: tf.Tensor, term: str, *groups: list[str]) -> tf.Tensor:
            """Moves the batch axes first, and makes one axis of each group."""
            order = [*batch, *(label for group in groups for label in group)]
            moved = tf.transpose(tensor, [term.index(label) for label in order])
            flat = [tf.reduce_prod([1, *(sizes[label] for label in group)]) for group in groups]
            return tf.reshape(moved, [*(sizes[label] for label in batch), *flat])

        rows_by_columns = tf.matmul(
            arrange(first, left, rows, summed), arrange(second, right, summed, columns)
        )
        order = [*batch, *rows, *columns]
        unfolded = tf.reshape(rows_by_columns, [sizes[label] for label in order])
        return tf.transpose(unfolded, [order.index(label) for label in result])

    return product
