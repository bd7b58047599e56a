"""Ordinary models of images in two forms: pooling, residual, depthwise and U-Net.

Images have 32 or 64 pixels a side. Where a stride pads, both forms pad the same sides.
"""

import itertools
from typing import Any

import keras
import torch
from keras import layers
from torch import nn
from torch_step_models import NUM_CLASSES, Form, Made, make_floats

BATCH_SIZE = 16


def _build_pooling(size: int) -> keras.Model:
    make, inputs = Made(), keras.Input((size, size, 3), name="x")
    x = inputs
    for width in (16, 32, 64):
        x = make(layers.Conv2D(width, 3, padding="same", activation="relu"))(x)
        x = layers.MaxPooling2D()(x)
    return make.model(inputs, make(layers.Dense(NUM_CLASSES))(layers.Flatten()(x)))


class PlainPooling(nn.Module):
    """Three times a convolution and a pooling."""

    def __init__(self, size: int) -> None:
        super().__init__()
        dims = (3, 16, 32, 64)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(dim, width, 3, padding=1) for dim, width in itertools.pairwise(dims)
        )
        self.head = nn.Linear(64 * (size // 8) ** 2, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            x = nn.functional.max_pool2d(torch.relu(convolution(x)), 2)
        return self.head(x.permute(0, 2, 3, 1).flatten(1))  # In Keras's order.


def _normalized(make: Made, layer: keras.Layer, x: Any) -> Any:
    x = make(layer)(x)
    return make(layers.BatchNormalization(epsilon=1e-5, momentum=0.9))(x)


def _build_residual(size: int) -> keras.Model:
    make, inputs = Made(), keras.Input((size, size, 3), name="x")

    def convolve(x: Any, width: int, kernel: int, stride: int) -> Any:
        if stride > 1 and kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2)(x)
        padding = "same" if stride == 1 else "valid"
        return _normalized(make, layers.Conv2D(width, kernel, stride, padding, use_bias=False), x)

    x = layers.ReLU()(convolve(inputs, 32, 3, 1))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1)):
        y = convolve(layers.ReLU()(convolve(x, width, 3, stride)), width, 3, 1)
        if x.shape[-1] != width:
            x = convolve(x, width, 1, stride)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return make.model(inputs, make(layers.Dense(NUM_CLASSES))(x))


def _plain_normalized(*args: Any, **options: Any) -> nn.Sequential:
    convolution = nn.Conv2d(*args, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


class PlainResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, dim: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = _plain_normalized(dim, width, 3, stride, padding=1)
        self.second = _plain_normalized(width, width, 3, padding=1)
        is_same = dim == width
        self.shortcut = nn.Identity() if is_same else _plain_normalized(dim, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class PlainResidual(nn.Module):
    """A small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _plain_normalized(3, 32, 3, padding=1)
        sizes = ((32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.blocks = nn.Sequential(*(PlainResidualBlock(*size) for size in sizes))
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, ceil_mode=True)
        return self.head(self.blocks(x).mean((2, 3)))


MOBILE_STAGES = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
"""Width and stride of the depthwise separable convolutions of the small MobileNet."""


def _build_mobile(size: int) -> keras.Model:
    make, inputs = Made(), keras.Input((size, size, 3), name="x")
    stem = layers.Conv2D(32, 3, padding="same", use_bias=False)
    x = layers.ReLU(6.0)(_normalized(make, stem, inputs))
    for width, stride in MOBILE_STAGES:
        if stride > 1:
            x = layers.ZeroPadding2D(1)(x)
        padding = "same" if stride == 1 else "valid"
        depthwise = layers.DepthwiseConv2D(3, stride, padding, use_bias=False)
        x = layers.ReLU(6.0)(_normalized(make, depthwise, x))
        x = layers.ReLU(6.0)(_normalized(make, layers.Conv2D(width, 1, use_bias=False), x))
    x = layers.GlobalAveragePooling2D()(x)
    return make.model(inputs, make(layers.Dense(NUM_CLASSES))(x))


class PlainMobile(nn.Module):
    """A small MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        parts, dim = [_plain_normalized(3, 32, 3, padding=1), nn.ReLU6()], 32
        for width, stride in MOBILE_STAGES:
            parts += [_plain_normalized(dim, dim, 3, stride, padding=1, groups=dim), nn.ReLU6()]
            parts += [_plain_normalized(dim, width, 1), nn.ReLU6()]
            dim = width
        self.parts, self.head = nn.Sequential(*parts), nn.Linear(dim, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.parts(x).mean((2, 3)))


def _build_unet(size: int) -> keras.Model:
    make, inputs = Made(), keras.Input((size, size, 3), name="x")

    def convolve(x: Any, width: int) -> Any:
        for _ in range(2):
            x = make(layers.Conv2D(width, 3, padding="same", activation="relu"))(x)
        return x

    fine = convolve(inputs, 16)
    middle = convolve(layers.MaxPooling2D()(fine), 32)
    x = convolve(layers.MaxPooling2D()(middle), 64)
    x = make(layers.Conv2DTranspose(32, 2, strides=2))(x)
    x = convolve(layers.Concatenate()([x, middle]), 32)
    x = convolve(layers.Concatenate()([layers.UpSampling2D()(x), fine]), 16)
    x = make(layers.Conv2D(NUM_CLASSES, 1))(x)
    return make.model(inputs, layers.GlobalAveragePooling2D()(x))


class PlainUnet(nn.Module):
    """A U-Net of two scales, and the mean of its outputs."""

    def __init__(self) -> None:
        super().__init__()

        def convolve(dim: int, width: int) -> nn.Sequential:
            first, second = (nn.Conv2d(size, width, 3, padding=1) for size in (dim, width))
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

        self.fine, self.middle, self.coarse = convolve(3, 16), convolve(16, 32), convolve(32, 64)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.join_middle, self.join_fine = convolve(64, 32), convolve(48, 16)
        self.head = nn.Conv2d(16, NUM_CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        middle = self.middle(nn.functional.max_pool2d(fine, 2))
        x = self.up(self.coarse(nn.functional.max_pool2d(middle, 2)))
        x = self.join_middle(torch.cat([x, middle], 1))
        x = nn.functional.interpolate(x, scale_factor=2)
        return self.head(self.join_fine(torch.cat([x, fine], 1))).mean((2, 3))


def _forms(size: int) -> dict[str, Form]:
    make_inputs = make_floats(size, size, 3)
    pairs = {
        "pooling": (lambda: _build_pooling(size), lambda: PlainPooling(size)),
        "ResNet": (lambda: _build_residual(size), PlainResidual),
        "MobileNet": (lambda: _build_mobile(size), PlainMobile),
        "U-Net": (lambda: _build_unet(size), PlainUnet),
    }
    return {
        f"{name} {size}": Form(build, module, make_inputs, BATCH_SIZE)
        for name, (build, module) in pairs.items()
    }


IMAGE_MODELS = _forms(32) | _forms(64)
"""The models by name and pixels a side."""
