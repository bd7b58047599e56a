"""Operations on images as ONNX nodes.

What Keras's backends compute differently has no entry: Lanczos resizing, and bicubic resizing with
aliases; interpolated integers, and their shades of grey; turned images with reflected edges.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_writer.table.neural import convolve, spatial
from keras_deepseek.deploy.onnx_writer.table.shapes import (
    in_layout,
    numbers,
    pad_axes,
    positions,
    slice_axes,
)
from keras_deepseek.deploy.onnx_writer.writer import (
    NoEntryError,
    Writer,
    handles,
)
from keras_deepseek.graph.ir import Node, Value
from keras_deepseek.graph.size_expressions import Size

_LINEAR_OPSET = 20
"""The opset from which on `GridSample` calls bilinear sampling linear."""
_RESIZED = ("float32", "float16", "bfloat16")
"""The dtypes that are interpolated. Of integers, Keras's backends round halves differently."""


def _cubic(distance: Array) -> Array:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))  # noqa: PLR2004 - its width


_KERNELS: dict[str, Callable[[Array], Array]] = {
    "bilinear": lambda distance: np.maximum(1 - distance, 0),
    "bicubic": _cubic,
}
"""The weight of an element by its distance, where images are resized without aliases."""
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The least difference from 1 in each dtype."""
_GREY = (0.2989, 0.587, 0.114)
"""The share of red, green and blue in a shade of grey."""


def _image_axes(x: Value, data_format: str) -> tuple[int, int, int]:
    """Returns the axes of height, width and channels."""
    rank = len(x.shape)
    if data_format == "channels_last":
        return rank - 3, rank - 2, rank - 1
    return rank - 2, rank - 1, rank - 3


# Sizes.


@handles(
    "Resize",
    follows="PyTorch, for NaN, or JAX with `antialias`; PyTorch and TensorFlow, for free sizes",
)
def _resize(writer: Writer, node: Node, x: Value) -> None:
    operation = node.operation
    ratio = "crop" if operation.crop_to_aspect_ratio else ""
    ratio = "pad" if operation.pad_to_aspect_ratio else ratio
    resize_to(
        writer,
        node,
        x,
        operation.size,
        operation.interpolation,
        operation.data_format,
        antialias=operation.antialias,
        ratio=ratio,
        fill_value=operation.fill_value,
    )


def resize_to(
    writer: Writer,
    node: Node,
    x: Value,
    size: Sequence[int],
    interpolation: str,
    data_format: str | None,
    *,
    antialias: bool = False,
    ratio: str = "",
    fill_value: float = 0.0,
) -> None:
    """Puts images resized to a height and a width.

    To keep the ratio of their sides, they are cropped or padded first: `ratio` is `"crop"`, `"pad"`
    or empty.
    """
    is_nearest = interpolation == "nearest"
    is_smooth = antialias and not is_nearest
    dtype = x.dtype if is_nearest else "float32"
    modes = tuple(_KERNELS) if is_smooth else ("bilinear",)
    if not is_nearest and (interpolation not in modes or x.dtype not in _RESIZED):
        raise NoEntryError(f"Resize of {x.dtype} by {interpolation} interpolation")
    name, sizes, channels, layout = spatial(writer, x, data_format)
    if len(sizes) != len(size):
        raise NoEntryError("Resize of a single image")
    name = writer.cast(name, x.dtype, dtype)
    if ratio:
        fill = writer.constant(fill_value, dtype)
        name, sizes = _with_ratio(writer, name, sizes, size, ratio, fill)
    if is_nearest:
        name = _resize_to_nearest(writer, name, sizes, size)
    elif is_smooth:
        name = _resize_smoothly(writer, name, sizes, size, interpolation)
    else:
        target = numbers(writer, [writer.axis_size(x, 0), channels, *size])
        mapping = "half_pixel"
        name = writer.add(
            "Resize",
            name,
            None,
            None,
            target,
            coordinate_transformation_mode=mapping,
            mode="linear",
        )
    writer.put(Value(node), writer.cast(name, dtype, node.spec.dtype), layout)


def _resize_to_nearest(
    writer: Writer, name: str, sizes: Sequence[int], target: Sequence[int]
) -> str:
    """Takes the nearest rows and columns of images, with the channels first."""
    for axis, (size, new_size) in enumerate(zip(sizes, target, strict=True), start=2):
        if not isinstance(new_size, Size) and not writer.is_free(size):
            exact = _nearest_index(size, new_size)
            index = writer.constant(exact)
            if size == new_size:
                continue
        else:
            float_sizes = (
                writer.cast(tensor, "int64", "float32")
                for tensor in (writer.shape_of(name, axis), numbers(writer, [new_size]))
            )
            scale_name = writer.add("Div", *float_sizes)
            position = writer.cast(positions(writer, new_size), "int64", "float32")
            center = writer.add("Add", position, writer.constant(0.5, "float32"))
            index = writer.cast(writer.add("Mul", center, scale_name), "float32", "int64")
            last = writer.add("Sub", writer.shape_of(name, axis), writer.integers(1))
            index = writer.add("Min", index, last)
        name = writer.add("Gather", name, index, axis=axis)
    return name


def _nearest_index(size: int, new_size: int) -> Array:
    """Returns the element that is nearest to each new one.

    Where two are equally near, Keras's backends round products in float32 in four orders. Sizes for
    which these differ are refused.
    """
    numbers = np.arange(new_size)
    exact = (2 * numbers + 1) * size // (2 * new_size)
    centers = numbers.astype("float32") + np.float32(0.5)
    old, new = np.float32(size), np.float32(new_size)
    reciprocal = np.float32(1) / new
    products = centers * (old / new), centers * old * reciprocal, centers * (old * reciprocal)
    if any((np.floor(product) != exact).any() for product in products):
        raise NoEntryError(f"Resize of {size} rows to {new_size}, which backends round differently")
    return exact


def _resize_smoothly(
    writer: Writer, name: str, sizes: Sequence[int], target: Sequence[int], interpolation: str
) -> str:
    """Resizes images, with the channels first, without aliases: by a product for each side.

    onnxruntime's own way to do so computes other numbers than all of Keras's backends.
    """
    _check_fixed(writer, (*sizes, *target))
    kernel, weights = _KERNELS[interpolation], []
    for size, new_size in zip(sizes, target, strict=True):
        step = size / new_size
        centers = (np.arange(new_size) + 0.5) * step - 0.5
        distances = np.abs(centers[:, None] - np.arange(size)) / max(step, 1)
        weight = kernel(distances)
        weights.append(weight / weight.sum(1, keepdims=True))
    rows, columns = weights
    if len(rows) != sizes[0]:
        name = writer.add("MatMul", writer.constant(rows, "float32"), name)
    if len(columns) != sizes[1]:
        name = writer.add("MatMul", name, writer.constant(columns.T, "float32"))
    return name


def _check_fixed(writer: Writer, sizes: Sequence[int]) -> None:
    if any(isinstance(size, Size) or writer.is_free(size) for size in sizes):
        raise NoEntryError("Resize of free sizes, without aliases or to a ratio of the sides")


def _with_ratio(
    writer: Writer, name: str, sizes: Sequence[int], target: Sequence[int], ratio: str, fill: str
) -> tuple[str, list[int]]:
    """Crops or pads images, with the channels first, to the ratio of other sizes."""
    _check_fixed(writer, (*sizes, *target))
    (height, width), (target_height, target_width) = sizes, target
    fitting = int(width * target_height / target_width), int(height * target_width / target_height)
    if ratio == "pad":
        margins = [(max(fit, size) - size) // 2 for fit, size in zip(fitting, sizes, strict=True)]
        pads = writer.integers(*[0, 0, *margins] * 2)
        name = writer.add("Pad", name, pads, fill) if any(margins) else name
        return name, [size + 2 * margin for size, margin in zip(sizes, margins, strict=True)]
    lengths = [max(min(fit, size), 1) for fit, size in zip(fitting, sizes, strict=True)]
    starts = [(size - length) // 2 for size, length in zip(sizes, lengths, strict=True)]
    slices = {
        axis: slice(start, start + length)
        for axis, start, length in zip((2, 3), starts, lengths, strict=True)
    }
    return slice_axes(writer, name, slices), lengths


@handles("PadImages")
def _pad_images(writer: Writer, node: Node, x: Value) -> None:
    operation = node.operation
    pads: list[tuple[int | str, int | str]] = [(0, 0)] * len(x.shape)
    height_axis, width_axis, _ = _image_axes(x, operation.data_format)
    for axis, first, last, target in (
        (height_axis, operation.top_padding, operation.bottom_padding, operation.target_height),
        (width_axis, operation.left_padding, operation.right_padding, operation.target_width),
    ):
        size = writer.axis_size(x, axis)
        if first is None:
            pads[axis] = (_less(writer, target, last, size), last)
        elif last is None:
            pads[axis] = (first, _less(writer, target, first, size))
        else:
            pads[axis] = (first, last)
    pad_axes(writer, node, x, pads)


def _less(writer: Writer, total: int, part: int, size: int | str) -> int | str:
    """Returns `total - part - size`."""
    if not isinstance(size, str):
        return total - part - size
    return writer.add("Sub", numbers(writer, [total - part]), size)


@handles("CropImages")
def _crop_images(writer: Writer, node: Node, x: Value) -> None:
    operation = node.operation
    name, layout, axes = in_layout(writer, x)
    height_axis, width_axis, _ = _image_axes(x, operation.data_format)
    slices: dict[int, slice] = {}
    for axis, first, last, length in (
        (height_axis, operation.top_cropping, operation.bottom_cropping, operation.target_height),
        (width_axis, operation.left_cropping, operation.right_cropping, operation.target_width),
    ):
        if first is None:
            start, stop = (-last - length, -last or None) if length else (0, 0)
        else:
            start, stop = first, -last or None if length is None else first + length
        slices[axes[axis]] = slice(start, stop)
    writer.put(Value(node), slice_axes(writer, name, slices), layout)


@handles("ExtractPatches")
def _extract_patches(writer: Writer, node: Node, x: Value) -> None:
    """Writes a convolution by a unit matrix, as Keras computes it: NaN fills the whole patch."""
    operation, dtype = node.operation, node.spec.dtype
    window = tuple(operation.size)
    if "float" not in x.dtype or len(x.shape) != len(window) + 2:
        raise NoEntryError(f"ExtractPatches of {x.dtype}, or of a single image")
    channels = int(x.shape[-1 if operation.data_format == "channels_last" else 1])
    length = channels * math.prod(window)
    kernel = np.eye(length).reshape(*window, channels, length)
    name, layout = convolve(
        writer,
        node,
        x,
        (writer.constant(np.moveaxis(kernel, (-1, -2), (0, 1)), dtype), window),
        1,
        dtype,
    )
    writer.put(Value(node), name, layout)


@handles("AffineTransform", follows="TensorFlow, where the last two entries are not 0")
def _affine_transform(writer: Writer, node: Node, x: Value, transform: Any) -> None:
    """Writes a sampling of a grid, by the documented formula."""
    operation = node.operation
    fill = operation.fill_value if operation.fill_mode == "constant" else 0
    edges = {"constant": "zeros", "nearest": "border"}.get(operation.fill_mode)
    if operation.interpolation != "bilinear" or edges is None or "float" not in x.dtype:
        raise NoEntryError(f"AffineTransform of {x.dtype} by {operation.interpolation}")
    name, sizes, _, layout = spatial(writer, x, operation.data_format)
    if len(sizes) != 2 or len(transform.shape) != 2:  # noqa: PLR2004 - height and width
        raise NoEntryError("AffineTransform of a single image, or by a single transform")
    name = writer.cast(name, x.dtype, "float32")
    offset = writer.constant(fill, "float32")
    if fill:
        name = writer.add("Sub", name, offset)
    mode = "linear" if writer.opset >= _LINEAR_OPSET else "bilinear"
    grid = _affine_grid(writer, name, writer.tensor(transform, "float32"))
    name = writer.add("GridSample", name, grid, mode=mode, padding_mode=edges, align_corners=0)
    if fill:
        name = writer.add("Add", name, offset)
    writer.put(Value(node), writer.cast(name, "float32", node.spec.dtype), layout)


def _affine_grid(writer: Writer, images: str, transform: str) -> str:
    """Returns where each pixel of images, with the channels first, comes from, between -1 and 1."""

    def compute(kind: str, left: str, right: str) -> str:
        return writer.add(kind, left, right)

    def entry(index: int) -> str:
        column = writer.add("Slice", transform, *map(writer.integers, (index, index + 1, 1)))
        return writer.add("Unsqueeze", column, writer.integers(2))

    def line(index: int) -> str:
        """Returns the sum of three entries times x, y and 1."""
        numbers = compute("Mul", entry(index), columns), compute("Mul", entry(index + 1), rows)
        return compute("Add", *numbers)

    unit = writer.constant(1, "float32")
    sizes = {axis: writer.shape_of(images, axis) for axis in (2, 3)}
    rows, columns = (
        writer.add(
            "Unsqueeze",
            writer.cast(positions(writer, sizes[axis]), "int64", "float32"),
            writer.integers(0, other_axis),
        )
        for axis, other_axis in ((2, 2), (3, 1))
    )
    scale = compute("Add", line(6), unit)
    parts = []
    for first, axis in ((0, 3), (3, 2)):
        position = compute("Div", compute("Add", line(first), entry(first + 2)), scale)
        size = writer.cast(sizes[axis], "int64", "float32")
        doubled = compute("Add", compute("Add", position, position), unit)
        share = compute("Sub", compute("Div", doubled, size), unit)
        parts.append(writer.add("Unsqueeze", share, writer.integers(-1)))
    return writer.add("Concat", *parts, axis=-1)


# Colours.


class _Planes:
    """The red, green and blue of images, or what stands in their place, and arithmetic on them."""

    def __init__(self, writer: Writer, x: Value, data_format: str) -> None:
        if "float" not in x.dtype:
            raise NoEntryError(f"colours of {x.dtype}, which Keras's backends round differently")
        name, self.layout, axes = in_layout(writer, x)
        self.axis = axes[_image_axes(x, data_format)[-1]]
        self.dtype = "float64" if x.dtype == "float64" else "float32"
        self.source = x.dtype
        self.name = writer.cast(name, x.dtype, self.dtype)
        self._writer = writer

    def __call__(self, kind: str, *operands: str | float) -> str:
        """Returns the result of a node of tensors and numbers."""
        names = (
            name if isinstance(name, str) else self._writer.constant(name, self.dtype)
            for name in operands
        )
        return self._writer.add(kind, *names)

    def split(self, name: str) -> list[str]:
        """Returns the three channels of a tensor."""
        return list(
            self._writer.add_several("Split", name, axis=self.axis, outputs=3, num_outputs=3)
        )

    def put(self, node: Node, *channels: str) -> None:
        """Puts the result, of one channel or several."""
        name = channels[0]
        if len(channels) > 1:
            name = self._writer.add("Concat", *channels, axis=self.axis)
        self._writer.put(Value(node), self._writer.cast(name, self.dtype, self.source), self.layout)


@handles("RGBToGrayscale")
def _rgb_to_grayscale(writer: Writer, node: Node, x: Value) -> None:
    compute = _Planes(writer, x, node.operation.data_format)
    if node.spec.shape == x.shape:
        return compute.put(node, compute.name)
    red, green, blue = (
        compute("Mul", channel, share)
        for channel, share in zip(compute.split(compute.name), _GREY, strict=True)
    )
    return compute.put(node, compute("Add", compute("Add", red, green), blue))


@handles("RGBToHSV", follows="JAX and PyTorch: nearly black colours are black")
def _rgb_to_hsv(writer: Writer, node: Node, x: Value) -> None:
    compute = _Planes(writer, x, node.operation.data_format)
    is_black = compute("Less", compute("Abs", compute.name), _EPSILON[x.dtype])
    red, green, blue = compute.split(compute("Where", is_black, 0.0, compute.name))
    value = compute("Max", compute("Max", red, green), blue)
    extent = compute("Sub", value, compute("Min", compute("Min", red, green), blue))
    is_light, is_coloured = compute("Greater", value, 0.0), compute("Greater", extent, 0.0)
    saturation = compute("Div", extent, compute("Where", is_light, value, 1.0))
    saturation = compute("Where", is_light, saturation, 0.0)
    scale = compute("Div", 1.0, compute("Mul", compute("Where", is_coloured, extent, 1.0), 6.0))

    def hue_from(left: str, right: str, turn: float) -> str:
        difference = compute("Mul", scale, compute("Sub", left, right))
        return compute("Add", difference, turn) if turn else difference

    hue = compute(
        "Where",
        compute("Equal", value, green),
        hue_from(blue, red, 2 / 6),
        hue_from(red, green, 4 / 6),
    )
    hue = compute("Where", compute("Equal", value, red), hue_from(green, blue, 0), hue)
    turn = writer.cast(compute("Less", hue, 0.0), "bool", compute.dtype)
    hue = compute("Add", compute("Where", is_coloured, hue, 0.0), turn)
    compute.put(node, hue, saturation, value)


@handles("HSVToRGB", follows="JAX and PyTorch, for numbers outside 0 to 1")
def _hsv_to_rgb(writer: Writer, node: Node, x: Value) -> None:
    compute = _Planes(writer, x, node.operation.data_format)
    hue, saturation, value = compute.split(compute.name)
    turned = compute("Mul", compute("Sub", hue, compute("Floor", hue)), 6.0)
    channels = []
    for center, sign, offset in ((3.0, 1.0, -1.0), (2.0, -1.0, 2.0), (4.0, -1.0, 2.0)):
        distance = compute("Abs", compute("Sub", turned, center))
        share = compute("Add", compute("Mul", distance, sign), offset)
        share = compute("Min", compute("Max", share, 0.0), 1.0)
        share = compute("Add", compute("Sub", 1.0, saturation), compute("Mul", saturation, share))
        channels.append(compute("Mul", value, share))
    compute.put(node, *channels)
