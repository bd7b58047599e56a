"""Operations on images, written as ONNX, compute what Keras computes."""

import numpy as np
import pytest
from keras import ops

from keras_deepseek.deploy.onnx_writer import NoEntryError
from tests.oracles.operation_case import check_operation

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((3, 7, 10, 3), "float32")
PLANES = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
BYTES = (255 * IMAGES).astype("uint8")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(3, 4), (14, 5), (21, 30), (1, 1), (7, 10), (13, 29)], ids=str)
def test_images_are_resized(size, interpolation):
    check_operation(lambda x: ops.image.resize(x, size, interpolation), IMAGES)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_images_with_the_channels_first_are_resized(interpolation):
    check_operation(
        lambda x: ops.image.resize(x, (5, 16), interpolation, data_format="channels_first"), PLANES
    )


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float16"])
def test_images_of_other_dtypes_are_resized(dtype):
    def function(x):
        return ops.image.resize(x, (5, 16), "nearest" if "int" in dtype else "bilinear")

    check_operation(function, (120 * IMAGES).astype(dtype), tolerance=1e-3)


def test_interpolated_integers_are_refused():
    with pytest.raises(NoEntryError, match="uint8"):
        check_operation(lambda x: ops.image.resize(x, (5, 16)), BYTES)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 4), (14, 5), (7, 30), (1, 1)], ids=str)
def test_images_are_resized_without_aliases(size, interpolation):
    check_operation(lambda x: ops.image.resize(x, size, interpolation, antialias=True), IMAGES)


@pytest.mark.parametrize("size", [(3, 4), (14, 5), (4, 12), (7, 10)], ids=str)
@pytest.mark.parametrize("ratio", ["crop_to_aspect_ratio", "pad_to_aspect_ratio"])
def test_the_ratio_of_the_sides_is_kept(ratio, size):
    check_operation(lambda x: ops.image.resize(x, size, **{ratio: True}, fill_value=0.5), IMAGES)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_images_of_any_size_are_resized(interpolation):
    check_operation(lambda x: ops.image.resize(x, (5, 6), interpolation), IMAGES, free_axes=[1, 2])


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos3"])
def test_what_the_backends_resize_differently_is_refused(interpolation):
    with pytest.raises(NoEntryError, match="interpolation"):
        check_operation(lambda x: ops.image.resize(x, (5, 6), interpolation), IMAGES)


BORDERS = {
    "padded on all sides": lambda x: ops.image.pad_images(x, 1, 2, 3, 4),
    "padded to a size": lambda x: ops.image.pad_images(
        x, top_padding=1, right_padding=2, target_height=12, target_width=15
    ),
    "cropped on all sides": lambda x: ops.image.crop_images(x, 1, 2, 1, 0),
    "cropped to a size from the top": lambda x: ops.image.crop_images(
        x, top_cropping=1, left_cropping=2, target_height=1, target_width=3
    ),
    "cropped to a size from the bottom": lambda x: ops.image.crop_images(
        x, bottom_cropping=1, right_cropping=0, target_height=1, target_width=3
    ),
}


@pytest.mark.parametrize("case", BORDERS)
def test_borders_are_added_and_cut(case):
    check_operation(BORDERS[case], IMAGES)
    check_operation(BORDERS[case], BYTES)


ANY_SIZE = {
    "padded": BORDERS["padded on all sides"],
    "padded to a height": lambda x: ops.image.pad_images(
        x, top_padding=1, right_padding=2, target_height=5000, target_width=12
    )[:, :3, -5:],
    "cropped from the top": BORDERS["cropped to a size from the top"],
    "cropped from the bottom": BORDERS["cropped to a size from the bottom"],
}


@pytest.mark.parametrize("case", ANY_SIZE)
def test_borders_of_images_of_any_size(case):
    images = RANDOM.random((3, 8, 8, 1), "float32")
    axes = [1] if case == "padded to a height" else [1, 2]
    check_operation(ANY_SIZE[case], images, free_axes=axes, lengths=(5, 9))


@pytest.mark.nightly
@pytest.mark.parametrize("size", [1, 7, 40, 55])
def test_every_size_is_resized_to_every_other_by_the_nearest(size):
    sizes = [(height, 1) for height in (1, 3, 12, 13, 21, 40, 49)]
    check_operation(
        lambda x: [ops.image.resize(x, new_size, "nearest") for new_size in sizes],
        np.arange(size, dtype="float32").reshape(1, size, 1, 1),
    )


def test_sizes_at_which_the_backends_round_differently_are_refused():
    with pytest.raises(NoEntryError, match="6 rows to 37"):
        check_operation(lambda x: ops.image.resize(x, (37, 3), "nearest"), IMAGES[:, :6])


def test_borders_with_the_channels_first():
    def function(x):
        x = ops.image.pad_images(x, 1, 2, 3, 4, data_format="channels_first")
        return ops.image.crop_images(x, 2, 1, 0, 3, data_format="channels_first")

    check_operation(function, PLANES)


PATCHES = {
    "side by side": {"size": 3},
    "of unequal sides": {"size": (2, 3)},
    "overlapping": {"size": 3, "strides": 1},
    "with padding": {"size": 3, "strides": 2, "padding": "same"},
    "with gaps": {"size": 2, "strides": 1, "dilation_rate": 2},
}


@pytest.mark.parametrize("case", PATCHES)
def test_patches_are_extracted(case):
    check_operation(lambda x: ops.image.extract_patches(x, **PATCHES[case]), IMAGES)


@pytest.mark.nightly
def test_patches_of_volumes_are_extracted():
    volumes = RANDOM.random((2, 4, 5, 4, 2), "float32")
    check_operation(lambda x: ops.image.extract_patches(x, (2, 2, 3)), volumes)


def test_colours_become_grey():
    check_operation(ops.image.rgb_to_grayscale, IMAGES)
    check_operation(ops.image.rgb_to_grayscale, IMAGES[..., :1])
    check_operation(lambda x: ops.image.rgb_to_grayscale(x, "channels_first"), PLANES)


def test_grey_of_integers_is_refused():
    with pytest.raises(NoEntryError, match="uint8"):
        check_operation(ops.image.rgb_to_grayscale, BYTES)


EDGES = np.array(
    [
        [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.3, 0.3, 0.3], [1, 0.2, 0.2]],
    ],
    "float32",
)


@pytest.mark.parametrize("array", [IMAGES, EDGES[None]], ids=["colours", "edges"])
def test_colours_and_hues(array):
    check_operation(ops.image.rgb_to_hsv, array)
    check_operation(ops.image.hsv_to_rgb, array)
    check_operation(
        lambda x: ops.image.rgb_to_hsv(x, "channels_first"), array.transpose(0, 3, 1, 2)
    )


def _transforms():
    angle = np.array([0.3, -1.2, 2.0])
    zero = np.zeros(3)
    columns = [np.cos(angle), -np.sin(angle), zero + 2, np.sin(angle), np.cos(angle), zero - 1]
    return np.stack([*columns, zero, zero], -1).astype("float32")


@pytest.mark.parametrize("fill", [("constant", 0), ("constant", 0.5), ("nearest", 0)], ids=str)
def test_images_are_turned(fill):
    fill_mode, fill_value = fill

    def function(x, transforms):
        return ops.image.affine_transform(
            x, transforms * 1.0, "bilinear", fill_mode=fill_mode, fill_value=fill_value
        )

    check_operation(function, IMAGES, _transforms(), tolerance=2e-5)


def test_what_the_backends_turn_differently_is_refused():
    for options in ({"interpolation": "nearest"}, {"fill_mode": "reflect"}):
        with pytest.raises(NoEntryError, match="AffineTransform"):
            check_operation(
                lambda x, t, options=options: ops.image.affine_transform(x, t, **options),
                IMAGES,
                _transforms(),
            )


def test_images_after_a_convolution_keep_their_layout():
    def function(x):
        x = ops.average_pool(x, 2, 1)
        x = ops.image.resize(x, (8, 8), "nearest")
        return ops.image.rgb_to_hsv(ops.image.crop_images(x, 1, 1, 1, 1))

    check_operation(function, IMAGES)
