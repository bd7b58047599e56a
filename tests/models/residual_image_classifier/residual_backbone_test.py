import keras
import numpy as np
import pytest

from keras_deepseek.models import ResidualBackbone, ResidualImageClassifierConfig


def make_config(**kwargs):
    return ResidualImageClassifierConfig(
        **{
            "num_classes": 4,
            "filters_per_stage": (4, 8, 8),
            "image_shape": (None, None, 1),
            "blocks_per_stage": (1, 2, 1),
            **kwargs,
        }
    )


@pytest.mark.parametrize(("size", "expected"), [((8, 8), (2, 2)), ((17, 12), (5, 3))])
def test_each_stage_but_the_first_halves_the_image(size, expected):
    backbone = ResidualBackbone(make_config())
    features = backbone(np.ones((2, *size, 1), "float32"))
    assert tuple(features.shape) == (2, *expected, 8)


def test_only_a_block_that_changes_the_shape_convolves_its_shortcut():
    backbone = ResidualBackbone(make_config())
    shortcuts = [layer.name for layer in backbone.layers if layer.name.endswith("shortcut_conv")]
    assert shortcuts == ["stage_1_block_0_shortcut_conv", "stage_2_block_0_shortcut_conv"]


def test_a_shortcut_is_a_strided_convolution_of_another_form():
    backbone = ResidualBackbone(make_config(blocks_per_stage=(1, 1, 1)))
    convolution = backbone.get_layer("stage_1_block_0_shortcut_conv")
    input_model = keras.Model(backbone.input, backbone.get_layer("stage_0_block_0_relu").output)
    shortcut_model = keras.Model(backbone.input, convolution.output)
    images = np.random.default_rng(0).normal(size=(2, 7, 8, 1)).astype("float32")
    strided = keras.ops.conv(
        input_model(images),
        convolution.kernel,
        strides=2,
        padding="same",
        data_format="channels_last",
    )
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(shortcut_model(images)),
        keras.ops.convert_to_numpy(strided),
        atol=1e-6,
    )
    # What is strided and 1x1 has PyTorch write beyond its memory.
    strides = {x.kernel_size: x.strides for x in backbone.layers if hasattr(x, "kernel_size")}
    assert strides[(1, 1)] == (1, 1)


def test_a_block_without_its_convolutions_is_its_shortcut():
    backbone = ResidualBackbone(make_config(filters_per_stage=(4,), blocks_per_stage=(1,)))
    backbone.get_layer("stage_0_block_0_2_norm").gamma.assign(np.zeros(4))
    stem = keras.Model(backbone.input, backbone.get_layer("stem_relu").output)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(backbone(images)),
        keras.ops.convert_to_numpy(stem(images)),
        rtol=1e-6,
    )


def test_the_round_trip_through_its_config_keeps_config_and_policy():
    backbone = ResidualBackbone(make_config(), dtype="mixed_bfloat16", name="body")
    revived = ResidualBackbone.from_config(backbone.get_config())
    assert revived.config == backbone.config
    assert revived.name == "body"
    assert revived.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert [weight.path for weight in revived.weights] == [w.path for w in backbone.weights]
