"""Operations on images as ONNX nodes.

What Keras's backends compute differently has no entry: Lanczos resizing, and bicubic resizing with
aliases; interpolated integers, and their shades of grey; turned images with reflected edges.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.deploy.onnx_writer.table.neural import convolve, spatial
from keras_deepseek.deploy.onnx_writer.table.operand import Operand, where
from keras_deepseek.deploy.onnx_writer.table.shapes import (
    in_layout,
    numbers,
    pad_axes,
    positions,
    slice_axes,
)
from keras_deepseek.deploy.onnx_writer.writer import NoEntryError, Writer, handles
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


def image_axes(node: Node, x: Value) -> tuple[int, int, int]:
    """Returns the axes of height, width and channels."""
    rank = len(x.shape)
    if node.operation.data_format == "channels_last":
        return rank - 3, rank - 2, rank - 1
    return rank - 2, rank - 1, rank - 3


# Sizes.


@handles(
    "Resize",
    follows="PyTorch, for NaN, or JAX with `antialias`; PyTorch and TensorFlow, for free sizes",
)
def _resize(writer: Writer, node: Node, x: Value) -> None:
    resize_to(writer, node, x, node.operation.size)


def resize_to(writer: Writer, node: Node, x: Value, size: Sequence[int]) -> None:
    """Puts images resized to a height and a width, by the options of an operation or a layer.

    To keep the ratio of their sides, they are cropped or padded first.
    """
    options = node.operation
    is_nearest = options.interpolation == "nearest"
    is_smooth = options.antialias and not is_nearest
    dtype = x.dtype if is_nearest else "float32"
    modes = tuple(_KERNELS) if is_smooth else ("bilinear",)
    if not is_nearest and (options.interpolation not in modes or x.dtype not in _RESIZED):
        raise NoEntryError(f"Resize of {x.dtype} by {options.interpolation} interpolation")
    images, sizes, channels, layout = spatial(writer, x, options.data_format)
    if len(sizes) != len(size):
        raise NoEntryError("Resize of a single image")
    images = images.cast(dtype)
    has_ratio = options.pad_to_aspect_ratio or options.crop_to_aspect_ratio
    is_free = any(isinstance(number, Size) or writer.is_free(number) for number in (*sizes, *size))
    if is_free and (has_ratio or is_smooth):
        raise NoEntryError("Resize of free sizes, without aliases or to a ratio of the sides")
    if has_ratio:
        fill = images.like(options.fill_value)
        images, sizes = _with_ratio(
            images, sizes, size, fill if options.pad_to_aspect_ratio else None
        )
    if is_nearest:
        images = _resize_to_nearest(images, sizes, size)
    elif is_smooth:
        images = _resize_smoothly(images, sizes, size, _KERNELS[options.interpolation])
    else:
        target = numbers(writer, [writer.axis_size(x, 0), channels, *size])
        attributes = {"coordinate_transformation_mode": "half_pixel", "mode": "linear"}
        name = writer.add("Resize", images.name, None, None, target, **attributes)
        images = Operand(writer, name, dtype)
    writer.put(Value(node), images.cast(node.spec.dtype).name, layout)


def _resize_to_nearest(images: Operand, sizes: Sequence[int], target: Sequence[int]) -> Operand:
    """Takes the nearest rows and columns of images, with the channels first."""
    writer = images.writer
    for axis, (size, new_size) in enumerate(zip(sizes, target, strict=True), start=2):
        if not isinstance(new_size, Size) and not writer.is_free(size):
            index = writer.constant(_nearest_index(size, new_size))
            if size == new_size:
                continue
        else:
            length = Operand(writer, writer.shape_of(images.name, axis), "int64")
            new_length = Operand(writer, numbers(writer, [new_size]), "int64")
            scale = length.cast("float32") / new_length.cast("float32")
            position = Operand(writer, positions(writer, new_size), "int64")
            nearest = ((position.cast("float32") + 0.5) * scale).cast("int64")
            index = nearest.apply("Min", length.apply("Sub", writer.integers(1))).name
        images = images.apply("Gather", index, axis=axis)
    return images


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
    images: Operand, sizes: Sequence[int], target: Sequence[int], kernel: Callable[[Array], Array]
) -> Operand:
    """Resizes images, with the channels first, without aliases: by a product for each side.

    onnxruntime's own way to do so computes other numbers than all of Keras's backends.
    """
    weights = []
    for size, new_size in zip(sizes, target, strict=True):
        step = size / new_size
        centers = (np.arange(new_size) + 0.5) * step - 0.5
        distances = np.abs(centers[:, None] - np.arange(size)) / max(step, 1)
        weight = kernel(distances)
        weights.append(weight / weight.sum(1, keepdims=True))
    rows, columns = weights
    if len(rows) != sizes[0]:
        images = images.like(rows).apply("MatMul", images)
    if len(columns) != sizes[1]:
        images = images.apply("MatMul", images.like(columns.T))
    return images


def _with_ratio(
    images: Operand, sizes: Sequence[int], target: Sequence[int], fill: Operand | None
) -> tuple[Operand, list[int]]:
    """Pads images, with the channels first, to the ratio of other sizes, or crops them."""
    (height, width), (target_height, target_width) = sizes, target
    fitting = int(width * target_height / target_width), int(height * target_width / target_height)
    writer = images.writer
    if fill is not None:
        margins = [(max(fit, size) - size) // 2 for fit, size in zip(fitting, sizes, strict=True)]
        pads = writer.integers(*[0, 0, *margins] * 2)
        images = images.apply("Pad", pads, fill) if any(margins) else images
        return images, [size + 2 * margin for size, margin in zip(sizes, margins, strict=True)]
    lengths = [max(min(fit, size), 1) for fit, size in zip(fitting, sizes, strict=True)]
    starts = [(size - length) // 2 for size, length in zip(sizes, lengths, strict=True)]
    slices = {
        axis: slice(start, start + length)
        for axis, start, length in zip((2, 3), starts, lengths, strict=True)
    }
    return Operand(writer, slice_axes(writer, images.name, slices), images.dtype), lengths


def _sides(node: Node, x: Value, change: str) -> Iterator[tuple[int, Any, Any, Any]]:
    """Yields the axes of height and width, the changes before and after, and the new sizes."""
    options = vars(node.operation)
    height_axis, width_axis, _ = image_axes(node, x)
    for axis, first, last, size in (
        (height_axis, "top", "bottom", "height"),
        (width_axis, "left", "right", "width"),
    ):
        changes = (options[f"{side}_{change}"] for side in (first, last))
        yield axis, *changes, options[f"target_{size}"]


@handles("PadImages")
def _pad_images(writer: Writer, node: Node, x: Value) -> None:
    pads: list[tuple[int | str, int | str]] = [(0, 0)] * len(x.shape)
    for axis, first, last, target in _sides(node, x, "padding"):
        size = writer.axis_size(x, axis)
        if first is not None and last is not None:
            pads[axis] = (first, last)
            continue
        remaining: int | str = target - (last if first is None else first)
        if isinstance(size, str):
            remaining = writer.add("Sub", numbers(writer, [remaining]), size)
        else:
            remaining = int(remaining) - size
        pads[axis] = (remaining, last) if first is None else (first, remaining)
    pad_axes(writer, node, x, pads)


@handles("CropImages")
def _crop_images(writer: Writer, node: Node, x: Value) -> None:
    name, layout, axes = in_layout(writer, x)
    slices: dict[int, slice] = {}
    for axis, first, last, length in _sides(node, x, "cropping"):
        if first is None:
            start, stop = (-last - length, -last or None) if length else (0, 0)
        else:
            start, stop = first, -last or None if length is None else first + length
        slices[axes[axis]] = slice(start, stop)
    writer.put(Value(node), slice_axes(writer, name, slices), layout)


@handles("ExtractPatches")
def _extract_patches(writer: Writer, node: Node, x: Value) -> None:
    """Writes a convolution by a unit matrix, as Keras computes it: NaN fills the whole patch."""
    operation, window = node.operation, tuple(node.operation.size)
    if "float" not in x.dtype or len(x.shape) != len(window) + 2:
        raise NoEntryError(f"ExtractPatches of {x.dtype}, or of a single image")
    channels = int(x.shape[-1 if operation.data_format == "channels_last" else 1])
    length = channels * math.prod(window)
    kernel = np.moveaxis(np.eye(length).reshape(*window, channels, length), (-1, -2), (0, 1))
    name = writer.constant(kernel, node.spec.dtype)
    writer.put(Value(node), *convolve(writer, node, x, name, window))


@handles("AffineTransform", follows="TensorFlow, where the last two entries are not 0")
def _affine_transform(writer: Writer, node: Node, x: Value, transform: Any) -> None:
    """Writes a sampling of a grid, by the documented formula."""
    operation = node.operation
    fill = operation.fill_value if operation.fill_mode == "constant" else 0
    edges = {"constant": "zeros", "nearest": "border"}.get(operation.fill_mode)
    if operation.interpolation != "bilinear" or edges is None or "float" not in x.dtype:
        raise NoEntryError(f"AffineTransform of {x.dtype} by {operation.interpolation}")
    images, sizes, _, layout = spatial(writer, x, operation.data_format)
    if len(sizes) != 2 or len(transform.shape) != 2:  # noqa: PLR2004 - height and width
        raise NoEntryError("AffineTransform of a single image, or by a single transform")
    images = images.cast("float32")
    offset = images.like(fill)
    images = images - offset if fill else images
    mode = "linear" if writer.opset >= _LINEAR_OPSET else "bilinear"
    grid = _affine_grid(writer, images.name, writer.tensor(transform, "float32"))
    images = images.apply("GridSample", grid, mode=mode, padding_mode=edges, align_corners=0)
    images = images + offset if fill else images
    writer.put(Value(node), images.cast(node.spec.dtype).name, layout)


def _affine_grid(writer: Writer, images: str, transform: str) -> str:
    """Returns where each pixel of images, with the channels first, comes from, between -1 and 1."""
    entries = Operand(writer, transform, "float32")

    def entry(index: int) -> Operand:
        column = entries.apply("Slice", *map(writer.integers, (index, index + 1, 1)))
        return column.unsqueeze(2)

    def line(index: int) -> Operand:
        """Returns two entries times x and y."""
        return entry(index) * columns + entry(index + 1) * rows

    one = entries.like(1)
    sizes = {axis: Operand(writer, writer.shape_of(images, axis), "int64") for axis in (2, 3)}
    rows, columns = (
        Operand(writer, positions(writer, sizes[axis].name), "int64")
        .cast("float32")
        .unsqueeze(0, other_axis)
        for axis, other_axis in ((2, 2), (3, 1))
    )
    scale = line(6) + one
    parts = []
    for first, axis in ((0, 3), (3, 2)):
        position = (line(first) + entry(first + 2)) / scale
        size = sizes[axis].cast("float32")
        share = (position + position + one) / size - one
        parts.append(share.unsqueeze(-1).name)
    return writer.add("Concat", *parts, axis=-1)


# Colours.


def _colours(writer: Writer, node: Node, x: Value) -> tuple[Operand, str, int]:
    """Returns images in a dtype to compute in, their layout, and the axis of the colours."""
    if "float" not in x.dtype:
        raise NoEntryError(f"colours of {x.dtype}, which Keras's backends round differently")
    name, layout, axes = in_layout(writer, x)
    dtype = "float64" if x.dtype == "float64" else "float32"
    images = Operand(writer, writer.cast(name, x.dtype, dtype), dtype)
    return images, layout, axes[image_axes(node, x)[-1]]


def _split(images: Operand, axis: int) -> list[Operand]:
    """Returns the three planes of images."""
    names = images.writer.add_several("Split", images.name, axis=axis, outputs=3, num_outputs=3)
    return [Operand(images.writer, name, images.dtype) for name in names]


def _put_planes(node: Node, planes: Sequence[Operand], layout: str, axis: int) -> None:
    first, *others = planes
    images = first.apply("Concat", *others, axis=axis)
    first.writer.put(Value(node), images.cast(node.spec.dtype).name, layout)


@handles("RGBToGrayscale")
def _rgb_to_grayscale(writer: Writer, node: Node, x: Value) -> None:
    images, layout, axis = _colours(writer, node, x)
    if node.spec.shape != x.shape:
        red, green, blue = (
            plane * share for plane, share in zip(_split(images, axis), _GREY, strict=True)
        )
        images = red + green + blue
    writer.put(Value(node), images.cast(x.dtype).name, layout)


@handles("RGBToHSV", follows="JAX and PyTorch: nearly black colours are black")
def _rgb_to_hsv(writer: Writer, node: Node, x: Value) -> None:
    images, layout, axis = _colours(writer, node, x)
    is_black = abs(images) < _EPSILON[x.dtype]
    red, green, blue = _split(where(is_black, 0, images), axis)
    value = red.maximum(green).maximum(blue)
    extent = value - red.minimum(green).minimum(blue)
    is_light, is_coloured = value > 0, extent > 0
    saturation = where(is_light, extent / where(is_light, value, 1), 0)
    scale = 1 / (where(is_coloured, extent, 1) * 6)
    hue = where(value.equals(green), scale * (blue - red) + 2 / 6, scale * (red - green) + 4 / 6)
    hue = where(value.equals(red), scale * (green - blue), hue)
    turn = (hue < 0).cast(hue.dtype)
    hue = where(is_coloured, hue, 0) + turn
    _put_planes(node, [hue, saturation, value], layout, axis)


@handles("HSVToRGB", follows="JAX and PyTorch, for numbers outside 0 to 1")
def _hsv_to_rgb(writer: Writer, node: Node, x: Value) -> None:
    images, layout, axis = _colours(writer, node, x)
    hue, saturation, value = _split(images, axis)
    turned = (hue - hue.apply("Floor")) * 6
    planes = []
    for center, sign, offset in ((3, 1, -1), (2, -1, 2), (4, -1, 2)):
        share = (abs(turned - center) * sign + offset).maximum(0).minimum(1)
        planes.append(value * (1 - saturation + saturation * share))
    _put_planes(node, planes, layout, axis)
