"""Operations that cut tensors as ONNX nodes: keys, slices, updates of a part, splits."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_writer.table.shapes import (
    END,
    exact,
    flat,
    in_layout,
    numbers,
    positions,
    slice_axes,
)
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
from keras_deepseek.graph.ir import Node, Value
from keras_deepseek.graph.size_expressions import Size


@handles("GetItem", follows="JAX and TensorFlow, for negative steps")
def _get_item(writer: Writer, _node: Node, x: Value, key: Any) -> str:
    parts = list(key) if isinstance(key, tuple | list) else [key]
    num_axes = sum(part is not None and part is not Ellipsis for part in parts)
    ellipsis = next((at for at, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[ellipsis : ellipsis + 1] = [slice(None)] * (len(x.shape) - num_axes)
    axis, num_out = 0, 0
    slices, indices, new_axes = {}, {}, []
    for part in parts:
        if part is None:
            new_axes.append(num_out)
        elif isinstance(part, slice):
            slices[axis] = part
        elif _is_index(part):
            indices[axis] = part
        else:
            raise NoEntryError(f"GetItem by {type(part).__name__}")
        axis += part is not None
        num_out += part is None or isinstance(part, slice)
    name = slice_axes(writer, writer.name(x), slices)
    for index_axis, index in reversed(indices.items()):  # The last first: so others stay in place.
        position = index if isinstance(index, Value | Size) else np.int64(index)
        name = writer.add("Gather", name, writer.tensor(position, "int64"), axis=index_axis)
    return writer.add("Unsqueeze", name, writer.integers(*new_axes)) if new_axes else name


def _is_index(part: Any) -> bool:
    if isinstance(part, Value):
        return not part.shape and "int" in part.dtype
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


def _begin(writer: Writer, x: Value, start: Any, axis: int, length: str) -> str:
    """Returns where a part along an axis begins, moved into the tensor."""
    size = writer.size(writer.axis_size(x, axis))
    if isinstance(start, Value):
        begin = slice_axes(writer, writer.tensor(start, "int64"), {0: slice(axis, axis + 1)})
    else:
        begin = flat(writer, start[axis], "int64")
    if isinstance(start, Value) or isinstance(start[axis], Value) or start[axis] < 0:
        is_negative = writer.add("Less", begin, writer.integers(0))
        begin = writer.add("Where", is_negative, writer.add("Add", begin, size), begin)
    elif start[axis] == 0 and not isinstance(start[axis], Size):
        return begin
    most = writer.add("Sub", size, length)
    return writer.add("Max", writer.add("Min", begin, most), writer.integers(0))


@handles("Slice", follows="JAX: a part outside is moved into the tensor")
def _slice(writer: Writer, node: Node, x: Value, start: Any) -> str:
    name, lengths = writer.name(x), node.operation.shape
    for axis, length in enumerate(lengths):
        begin = None if isinstance(start, Value) else start[axis]
        if length == -1:
            if begin is None or isinstance(begin, Value):
                raise NoEntryError("Slice from a tensor to the end")
            name = slice_axes(writer, name, {axis: slice(exact(begin), None)})
        elif length != x.shape[axis]:
            size = numbers(writer, [length])
            first = _begin(writer, x, start, axis, size)
            last = writer.add("Add", first, size)
            name = writer.add("Slice", name, first, last, writer.integers(axis))
    return name


@handles("SliceUpdate", follows="JAX: a part outside is moved into the tensor")
def _slice_update(writer: Writer, node: Node, x: Value, start: Any, updates: Value) -> str:
    """Cuts along each axis in which the update is shorter, and joins the parts."""
    update = writer.tensor(updates, node.spec.dtype)

    def replaced(name: str, axes: Sequence[int]) -> str:
        if not axes:
            return update
        axis, *inner_axes = axes
        length = writer.size(writer.axis_size(updates, axis))
        begin = _begin(writer, x, start, axis, length)
        end = writer.add("Add", begin, length)

        def cut(first: str, last: str) -> str:
            return writer.add("Slice", name, first, last, writer.integers(axis))

        middle = replaced(cut(begin, end) if inner_axes else name, inner_axes)
        head, tail = cut(writer.integers(0), begin), cut(end, writer.integers(END))
        return writer.add("Concat", head, middle, tail, axis=axis)

    shorter = [axis for axis, size in enumerate(x.shape) if size != updates.shape[axis]]
    return replaced(writer.name(x), shorter)


@handles("Unstack")
def _unstack(writer: Writer, node: Node, x: Value) -> list[str]:
    axis = node.operation.axis % len(x.shape)
    return [
        writer.add("Gather", writer.name(x), writer.constant(np.int64(index)), axis=axis)
        for index in range(len(node.outputs))
    ]


@handles("Split", "Hsplit", "Vsplit", "Dsplit")
def _split(writer: Writer, node: Node, x: Value) -> None:
    rank, sections = len(x.shape), node.operation.indices_or_sections
    fixed_axes = {"Hsplit": min(1, rank - 1), "Vsplit": 0, "Dsplit": 2}
    axis = fixed_axes[node.kind] if node.kind in fixed_axes else node.operation.axis % rank
    size = x.shape[axis]
    if isinstance(sections, int):
        lengths = None if writer.is_free(size) else [size // sections] * sections
        return _put_parts(writer, node, x, axis, lengths)
    ends = [0, *map(exact, sections), size]
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    is_known = not writer.is_free(size) and not any(isinstance(end, Size) for end in ends)
    if is_known and min(lengths) >= 0:
        return _put_parts(writer, node, x, axis, lengths)
    name, layout, axes = in_layout(writer, x)
    ends[-1] = END
    for index, (start, end) in enumerate(itertools.pairwise(ends)):
        part = slice_axes(writer, name, {axes[axis]: slice(start, end)})
        writer.put(Value(node, index), part, layout)
    return None


@handles("ArraySplit")
def _array_split(writer: Writer, node: Node, x: Value) -> None:
    axis, count = node.operation.axis % len(x.shape), node.operation.indices_or_sections
    size = x.shape[axis]
    if not writer.is_free(size):
        lengths = [size // count + (index < size % count) for index in range(count)]
        return _put_parts(writer, node, x, axis, lengths)
    length, parts = writer.size(writer.axis_size(x, axis)), writer.integers(count)
    is_longer = writer.add("Less", positions(writer, count), writer.add("Mod", length, parts))
    longer = writer.cast(is_longer, "bool", "int64")
    part_lengths = writer.add("Add", writer.add("Div", length, parts), longer)
    return _put_parts(writer, node, x, axis, part_lengths)


def _put_parts(writer: Writer, node: Node, x: Value, axis: int, lengths: Any) -> None:
    """Puts the parts of a split by lengths: numbers, a tensor, or `None` for equal ones."""
    name, layout, axes = in_layout(writer, x)
    count = len(node.outputs)
    parts = [name]
    if count > 1:
        sizes = writer.integers(*lengths) if isinstance(lengths, list) else lengths
        num_outputs = count if lengths is None else None
        parts = writer.add_several(
            "Split", name, sizes, axis=axes[axis], outputs=count, num_outputs=num_outputs
        )
    for index, part in enumerate(parts):
        writer.put(Value(node, index), part, layout)
