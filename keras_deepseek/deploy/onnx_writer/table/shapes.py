"""Operations on shapes as ONNX nodes: to reshape, cut, join, repeat, pad and create tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_deepseek.deploy.onnx_writer.table.operand import Operand
from keras_deepseek.deploy.onnx_writer.writer import (
    FIRST,
    LAST,
    NoEntryError,
    Writer,
    handles,
    numpy_dtype,
    to_first,
)
from keras_deepseek.graph.ir import Node, Value
from keras_deepseek.graph.size_expressions import Size

END = 2**31 - 1
"""The stop of a slice to the end of an axis."""
_NOT_PADDED = ("bool", "int16", "uint16")
"""The dtypes for which onnxruntime has no `Pad`."""


def is_first(writer: Writer, value: Any) -> bool:
    """Returns True if a tensor stands with the channels first, and in no other layout."""
    layouts = writer.layouts(value)
    return FIRST in layouts and LAST not in layouts


def in_layout(writer: Writer, value: Value) -> tuple[str, str, list[int]]:
    """Returns a tensor as it stands, its layout, and where its axes are in that."""
    axes = list(range(len(value.shape)))
    if is_first(writer, value):
        order = to_first(len(axes))
        return writer.name(value, FIRST), FIRST, [order.index(axis) for axis in axes]
    return writer.name(value), LAST, axes


def _in_order(items: Sequence[Any], axes: Sequence[int]) -> list[Any]:
    """Returns what belongs to each axis in the order of a layout, where axes are at `axes`."""
    return [items[axes.index(index)] for index in range(len(axes))]


def axis_list(axis: Any, rank: int) -> list[int]:
    """Returns an argument `axis`, a number, several, or `None` for all, as axes from 0 on."""
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    return [int(index) % rank for index in axes]


def axes_of(axis: Any, rank: int) -> list[int]:
    """Returns an argument `axis` as axes from 0 on, in order."""
    return sorted(axis_list(axis, rank))


def flat_if_no_axis(writer: Writer, name: str, axis: int | None) -> tuple[str, int]:
    """Returns a tensor and an axis of it: without an axis, the flat tensor's only one."""
    return (name, axis) if axis is not None else (writer.reshape(name, [-1]), 0)


def exact(number: Any) -> int:
    """Returns a number of an operation as an int or a `Size`."""
    return number if isinstance(number, Size) else int(number)


def numbers(writer: Writer, values: Sequence[int | str]) -> str:
    """Returns numbers of an operation, or sizes by name, as a tensor of one axis.

    An int is itself here, also where it equals a free size of the trace.
    """
    if not any(isinstance(value, Size | str) for value in values):
        return writer.integers(*map(int, values))
    return writer.joined(
        writer.size(value) if isinstance(value, Size | str) else writer.integers(int(value))
        for value in values
    )


def positions(writer: Writer, size: int | str) -> str:
    """Returns the numbers 0, 1, ... below a size."""
    if not isinstance(size, Size | str):
        return writer.constant(np.arange(size))
    end = writer.add("Squeeze", writer.size(size), writer.integers(0))
    return writer.add("Range", writer.constant(np.int64(0)), end, writer.constant(np.int64(1)))


def flat(writer: Writer, x: Any, dtype: str | None = None) -> str:
    """Returns a tensor as one axis."""
    return writer.add("Reshape", writer.tensor(x, dtype), writer.integers(-1))


def column_offsets(writer: Writer, rows: int | str, columns: int | str) -> str:
    """Returns the matrix of the number of each element's column less that of its row."""
    row_numbers = writer.add("Unsqueeze", positions(writer, rows), writer.integers(1))
    return writer.add("Sub", positions(writer, columns), row_numbers)


# Reshaped and transposed.


@handles("Reshape")
def _reshape(writer: Writer, node: Node, x: Value) -> str:
    sizes = node.operation.newshape
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    if 0 not in node.spec.shape:
        # A number that equals a free size of the trace is not that size.
        is_same = [not isinstance(size, Size) and writer.is_free(size) for size in sizes]
        names = [writer.integers(s) if same else s for s, same in zip(sizes, is_same, strict=True)]
        return writer.reshape(writer.name(x), names, x.shape)
    sizes = [node.spec.shape[axis] if size == -1 else size for axis, size in enumerate(sizes)]
    return writer.add("Reshape", writer.name(x), numbers(writer, sizes), allowzero=1)


@handles("Ravel")
def _ravel(writer: Writer, _node: Node, x: Value) -> str:
    return flat(writer, x)


def permuted(writer: Writer, x: Value, order: Sequence[int]) -> str:
    """Returns a tensor with its axes in another order."""
    name, _, axes = in_layout(writer, x)
    return writer.transpose(name, [axes[axis] for axis in order])


def moved(rank: int, source: Sequence[int], destination: Sequence[int]) -> list[int]:
    """Returns the order of axes in which some are moved to other places."""
    axes = [axis % rank for axis in source]
    order = [axis for axis in range(rank) if axis not in axes]
    for index, axis in sorted(zip((axis % rank for axis in destination), axes, strict=True)):
        order.insert(index, axis)
    return order


@handles("Transpose", "Swapaxes", "Moveaxis")
def _transpose(writer: Writer, node: Node, x: Value) -> str:
    operation, order = node.operation, list(range(len(x.shape)))
    if node.kind == "Moveaxis":
        order = moved(len(order), operation.source, operation.destination)
    elif node.kind == "Swapaxes":
        first, second = operation.axis1, operation.axis2
        order[first], order[second] = order[second], order[first]
    else:
        order = order[::-1] if operation.axes is None else axis_list(operation.axes, len(order))
    return permuted(writer, x, order)


@handles("Rot90")
def _rot90(writer: Writer, node: Node, x: Value) -> str:
    turns = node.operation.k % 4
    first, second = axis_list(node.operation.axes, len(x.shape))
    if turns % 2 == 0:
        if x.shape[first] != x.shape[second]:
            raise NoEntryError("half a turn of unequal sides, of which Keras takes the wrong shape")
        return reverse(writer, writer.name(x), [first, second] if turns else [])
    order = list(range(len(x.shape)))
    order[first], order[second] = second, first
    if turns == 1:
        return writer.transpose(reverse(writer, writer.name(x), [second]), order)
    return reverse(writer, permuted(writer, x, order), [second])


@handles("ExpandDims")
def _expand_dims(writer: Writer, node: Node, x: Any) -> str:
    axes = node.operation.axis
    axes = [axes] if isinstance(axes, int) else axes
    return writer.add("Unsqueeze", writer.tensor(x), writer.integers(*axes))


@handles("Squeeze")
def _squeeze(writer: Writer, node: Node, x: Value) -> str:
    axes = node.operation.axis
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    axes = axis_list(axes, len(x.shape))
    # onnxruntime takes no axes for all of size 1, of which the batch may be one.
    return writer.add("Squeeze", writer.name(x), writer.integers(*axes)) if axes else writer.name(x)


@handles("BroadcastTo")
def _broadcast_to(writer: Writer, node: Node, x: Any) -> str:
    return writer.add("Expand", writer.tensor(x), numbers(writer, node.operation.shape))


@handles("Size")
def _size(writer: Writer, node: Node, x: Value) -> str:
    return writer.cast(writer.add("Size", writer.name(x)), "int64", node.spec.dtype)


# Joined and split.


def _join(writer: Writer, node: Node, xs: Sequence[Any], axis: int) -> str | None:
    rank, dtype = len(node.spec.shape), node.spec.dtype
    axis %= rank
    if not any(is_first(writer, x) for x in xs):
        return writer.add("Concat", *(writer.tensor(x, dtype) for x in xs), axis=axis)
    order = to_first(rank)
    names = [
        writer.cast(writer.name(x, FIRST), x.dtype, dtype)
        if isinstance(x, Value)
        else writer.transpose(writer.tensor(x, dtype), order)
        for x in xs
    ]
    writer.put(Value(node), writer.add("Concat", *names, axis=order.index(axis)), FIRST)
    return None


@handles("Concatenate", "Append")
def _concatenate(writer: Writer, node: Node, *arguments: Any) -> str | None:
    xs = arguments[0] if node.kind == "Concatenate" else arguments
    if node.operation.axis is not None:
        return _join(writer, node, xs, node.operation.axis)
    names = (flat(writer, x, node.spec.dtype) for x in xs)
    return writer.add("Concat", *names, axis=0)


@handles("Hstack", "Vstack", "Dstack")
def _stack_along(writer: Writer, node: Node, xs: Sequence[Any]) -> str | None:
    axis = ("Vstack", "Hstack", "Dstack").index(node.kind)
    ranks = {len(x.shape) for x in xs}
    if min(ranks) > axis and ranks != {1}:
        return _join(writer, node, xs, axis)
    if node.kind != "Dstack":
        raise NoEntryError(f"{node.kind} of single axes, which Keras's backends join differently")
    new_axes = {2: [2], 1: [0, 2], 0: [0, 1, 2]}
    names = (_unsqueezed(writer, node, x, new_axes[len(x.shape)]) for x in xs)
    return writer.add("Concat", *names, axis=axis)


@handles("Stack")
def _stack(writer: Writer, node: Node, xs: Sequence[Any]) -> str:
    axis = node.operation.axis % len(node.spec.shape)
    names = (_unsqueezed(writer, node, x, [axis]) for x in xs)
    return writer.add("Concat", *names, axis=axis)


def _unsqueezed(writer: Writer, node: Node, x: Any, axes: Sequence[int]) -> str:
    return writer.add("Unsqueeze", writer.tensor(x, node.spec.dtype), writer.integers(*axes))


# Cut.


def slice_axes(writer: Writer, name: str, slices: Mapping[int, slice]) -> str:
    """Returns a tensor cut along axes, as Python's slices count.

    Backwards, the elements are first cut out in order: ONNX takes a start before the first element
    for the first.
    """
    forwards, backwards = {}, {}
    for axis, part in slices.items():
        start, stop, step = part.start, part.stop, 1 if part.step is None else part.step
        if any(isinstance(number, Value) for number in (start, stop, step)):
            raise NoEntryError("a slice between tensors")
        if step < 0:
            if isinstance(start, Size) or isinstance(stop, Size):
                raise NoEntryError("a slice backwards between free sizes")
            after_stop = END if stop == -1 else stop + 1 if stop is not None else None
            stop = None if start in (None, -1) else start + 1
            start, backwards[axis], step = after_stop, (-1, -END, step), 1
        start = 0 if start is None else start
        if isinstance(start, Size) or (start, stop, step) != (0, None, 1):
            forwards[axis] = (start, END if stop is None else stop, step)
    for bounds in filter(None, (forwards, backwards)):
        starts, stops, steps = zip(*bounds.values(), strict=True)
        name = writer.add(
            "Slice",
            name,
            numbers(writer, starts),
            numbers(writer, stops),
            writer.integers(*bounds),
            writer.integers(*steps),
        )
    return name


def reverse(writer: Writer, name: str, axes: Sequence[int]) -> str:
    """Returns a tensor with the elements along axes in reverse."""
    return slice_axes(writer, name, {axis: slice(None, None, -1) for axis in axes})


# Turned round, repeated, padded.


@handles("Flip", "Fliplr", "Flipud")
def _flip(writer: Writer, node: Node, x: Value) -> None:
    chosen = {"Fliplr": 1, "Flipud": 0}.get(node.kind, getattr(node.operation, "axis", None))
    name, layout, axes = in_layout(writer, x)
    name = reverse(writer, name, [axes[axis] for axis in axis_list(chosen, len(axes))])
    writer.put(Value(node), name, layout)


@handles("Roll")
def _roll(writer: Writer, node: Node, x: Value) -> str | None:
    shifts, chosen = node.operation.shift, node.operation.axis
    if chosen is None:
        if not isinstance(shifts, int):
            raise NoEntryError("Roll of all by several numbers")
        name = _rolled(writer, flat(writer, x), 0, shifts, None)
        return writer.add("Reshape", name, writer.add("Shape", writer.name(x)))
    name, layout, axes = in_layout(writer, x)
    chosen = axis_list(chosen, len(axes))
    shifts = [shifts] * len(chosen) if isinstance(shifts, int) else shifts
    for axis, shift in zip(chosen, shifts, strict=True):
        size = x.shape[axis]
        name = _rolled(writer, name, axes[axis], shift, None if writer.is_free(size) else size)
    writer.put(Value(node), name, layout)
    return None


def _rolled(writer: Writer, name: str, axis: int, shift: int, size: int | None) -> str:
    if isinstance(shift, Size) or (size is None and abs(shift) > 1):
        length = writer.add("Max", writer.shape_of(name, axis), writer.integers(1))
        cut = writer.add("Mod", numbers(writer, [-shift]), length)
    else:
        cut = writer.integers(-shift if size is None else -shift % max(size, 1))
    tail = writer.add("Slice", name, cut, writer.integers(END), writer.integers(axis))
    head = writer.add("Slice", name, writer.integers(0), cut, writer.integers(axis))
    return writer.add("Concat", tail, head, axis=axis)


@handles("Tile")
def _tile(writer: Writer, node: Node, x: Any) -> str:
    repeats = node.operation.repeats
    repeats = [repeats] if isinstance(repeats, int) else list(map(exact, repeats))
    name, rank = writer.tensor(x), len(x.shape)
    if len(repeats) > rank:
        name = writer.add("Unsqueeze", name, writer.integers(*range(len(repeats) - rank)))
    repeats = [1] * (rank - len(repeats)) + repeats
    return writer.add("Tile", name, numbers(writer, repeats))


@handles("Repeat")
def _repeat(writer: Writer, node: Node, x: Value) -> None:
    repeats, axis = node.operation.repeats, node.operation.axis
    counts = [repeats] if isinstance(repeats, Size) else np.ravel(repeats).tolist()
    if axis is None:
        name, layout, axes, axis = flat(writer, x), LAST, [0], 0
        sizes: list[int | str] = [-1 if len(counts) == 1 else len(counts)]
    else:
        name, layout, axes = in_layout(writer, x)
        sizes, axis = writer.sizes_of(x), axis % len(axes)
    size = sizes[axis]
    if isinstance(size, int) and size >= 0 and (len(counts) > 1 or 0 in (*counts, *sizes)):
        index = np.repeat(np.arange(size), counts)
        name = writer.add("Gather", name, writer.constant(index), axis=axes[axis])
    elif len(counts) > 1:
        raise NoEntryError("Repeat of a free axis by several numbers")
    else:
        ordered = _in_order(sizes, axes)
        name = repeat_axis(writer, name, axes[axis], len(axes), counts[0], ordered)
    writer.put(Value(node), name, layout)


def repeat_axis(
    writer: Writer, name: str, axis: int, rank: int, repeats: int, sizes: Sequence[int | str]
) -> str:
    """Repeats each element along an axis. `sizes` are those of the tensor; -1 is not known."""
    name = writer.add("Unsqueeze", name, writer.integers(axis + 1))
    counts = [1] * (axis + 1) + [repeats] + [1] * (rank - axis - 1)
    name = writer.add("Tile", name, numbers(writer, counts))
    size = sizes[axis]
    is_known = not isinstance(size, str) and size >= 0 and not isinstance(repeats, Size)
    outer = [0 if isinstance(size, str) else size for size in sizes[:axis]]
    return writer.reshape(name, [*outer, size * repeats if is_known else -1, *sizes[axis + 1 :]])


def pad_axes(
    writer: Writer,
    node: Node,
    x: Value,
    pads: Sequence[Sequence[int | str]],
    value: Any = 0,
    mode: str = "constant",
) -> None:
    """Puts a padded tensor, by a pair of sizes for each axis."""
    name, layout, axes = in_layout(writer, x)
    dtype = "int32" if x.dtype in _NOT_PADDED else x.dtype
    fill = writer.tensor(value, dtype) if mode == "constant" else None
    starts, ends = zip(*_in_order(pads, axes), strict=True)
    widths = numbers(writer, [*starts, *ends])
    name = writer.add("Pad", writer.cast(name, x.dtype, dtype), widths, fill, mode=mode)
    writer.put(Value(node), writer.cast(name, dtype, x.dtype), layout)


@handles("Pad", follows="JAX and TensorFlow, for `symmetric`; JAX, beyond the size")
def _pad(writer: Writer, node: Node, x: Value, constant_values: Any = None) -> None:
    mode, widths = node.operation.mode, node.operation.pad_width
    widths = list(widths) * (len(x.shape) if len(widths) == 1 else 1)
    pads = [(exact(width[0]), exact(width[-1])) for width in widths]
    value = 0 if constant_values is None else constant_values
    reaches = [max(pair) for pair in pads]
    is_within = all(
        reach == 0 or (not writer.is_free(size) and reach < size)
        for reach, size in zip(reaches, x.shape, strict=True)
    )
    if mode in ("constant", "edge") or (mode == "reflect" and is_within):
        return pad_axes(writer, node, x, pads, value, mode)
    if mode not in ("reflect", "symmetric", "wrap"):
        raise NoEntryError(f"Pad in the mode {mode}")
    name, layout, axes = in_layout(writer, x)
    for axis, (first, last) in enumerate(pads):
        if reaches[axis]:
            index = _pad_index(writer, mode, writer.axis_size(x, axis), first, last)
            name = writer.add("Gather", name, index, axis=axes[axis])
    writer.put(Value(node), name, layout)
    return None


def _pad_index(writer: Writer, mode: str, size: int | str, first: int, last: int) -> str:
    """Returns the elements of a padded axis as positions in the axis that is padded."""

    def vector(name: str) -> Operand:
        return Operand(writer, name, "int64")

    unit = vector(writer.integers(1))
    length = vector(writer.size(size)).maximum(unit)
    whole = positions(writer, (length + vector(numbers(writer, [first + last]))).name)
    index = vector(whole) - vector(numbers(writer, [first]))
    if mode == "wrap":
        return index.apply("Mod", length).name
    # As one goes there and back again, the elements repeat; `symmetric` has the last one twice.
    steps = length if mode == "symmetric" else length - unit
    period = (steps + steps).maximum(unit)
    index = index.apply("Mod", period)
    back = period - index
    return index.minimum(back - unit if mode == "symmetric" else back).name


# Created.


def full(writer: Writer, sizes: str, value: Any, dtype: str) -> str:
    """Returns a tensor of sizes, itself a tensor, that is filled with a value."""
    if not isinstance(value, Value | Size):
        value = np.asarray(value).astype(numpy_dtype(dtype))
    return writer.add("Expand", writer.tensor(value, dtype), sizes)
