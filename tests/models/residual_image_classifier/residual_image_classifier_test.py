import json

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.models import ResidualImageClassifier, ResidualImageClassifierConfig
from keras_deepseek.testing import assert_close


def make_model(dtype=None, **kwargs):
    sizes = {"filters_per_stage": (4, 8), "image_shape": (None, None, 1), **kwargs}
    return ResidualImageClassifier(
        ResidualImageClassifierConfig(num_classes=10, **sizes), dtype=dtype
    )


def draw_images(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


@pytest.mark.nightly
def test_it_learns_the_digits():
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    model = make_model(filters_per_stage=(16, 32))
    model.compile(
        keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(images[:1400], labels[:1400], batch_size=50, epochs=4, verbose=0)
    _, accuracy = model.evaluate(images[1400:], labels[1400:], verbose=0)
    assert accuracy > 0.9


def test_it_gives_probabilities():
    outputs = keras.ops.convert_to_numpy(make_model()(draw_images(3, 8, 8, 1)))
    np.testing.assert_allclose(outputs.sum(axis=-1), np.ones(3), rtol=1e-5)


def test_it_gives_logits_whose_softmax_are_the_probabilities():
    images = draw_images(3, 8, 8, 1)
    probabilities, logits = make_model(), make_model(activation=None)
    logits.set_weights(probabilities.get_weights())
    assert_close(
        keras.ops.convert_to_numpy(keras.ops.softmax(logits(images))),
        keras.ops.convert_to_numpy(probabilities(images)),
    )


@pytest.mark.parametrize("size", [(8, 8), (11, 32)])
def test_it_takes_images_of_any_size_compiled(size):
    model = make_model()
    named = NamedModel(model)
    infer = backend.current().inference.compile_inference(named)
    images = draw_images(2, *size, 1)
    (outputs,) = infer({"images": images}).values()
    assert_close(outputs, keras.ops.convert_to_numpy(model(images)))


def test_a_saved_model_is_the_same_after_loading(tmp_path):
    model = make_model(dropout=0.25)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(revived, ResidualImageClassifier)
    assert revived.config == model.config
    images = draw_images(2, 8, 8, 1)
    assert_close(
        keras.ops.convert_to_numpy(revived(images)), keras.ops.convert_to_numpy(model(images))
    )


def test_the_round_trip_through_its_config_keeps_the_weights_shapes():
    model = make_model(blocks_per_stage=(2, 1))
    revived = ResidualImageClassifier.from_config(model.get_config())
    assert [tuple(w.shape) for w in revived.weights] == [tuple(w.shape) for w in model.weights]
    assert revived.config == model.config


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_under_a_mixed_policy_the_head_stays_in_float32_through_saving(dtype, tmp_path):
    make_model(dtype=dtype).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    outputs = model(draw_images(2, 8, 8, 1))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert model.backbone.get_layer("stem_conv").compute_dtype == dtype.removeprefix("mixed_")
    assert np.all(np.isfinite(keras.ops.convert_to_numpy(outputs)))


def test_dropout_acts_in_training_alone():
    model = make_model(dropout=0.5)
    images = draw_images(1, 8, 8, 1)
    first, second = (keras.ops.convert_to_numpy(model(images)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (keras.ops.convert_to_numpy(model(images, training=True)) for _ in range(2))
    assert np.any(first != second)


def make_trained_model(**kwargs):
    """Returns a model whose moving statistics are others than at the start."""
    model = make_model(**kwargs)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(draw_images(8, 8, 8, 1), np.arange(8), batch_size=4, verbose=0)
    return model


def moving_statistics(model):
    return [
        keras.ops.convert_to_numpy(weight)
        for weight in model.non_trainable_weights
        if weight.name in {"moving_mean", "moving_variance"}
    ]


def test_a_preset_has_the_moving_statistics_too(tmp_path):
    model = make_trained_model(image_shape=(None, 8, 1), activation=None, dropout=0.2)
    model.save_to_preset(tmp_path / "preset", verbose=False)
    again = ResidualImageClassifier.from_preset(tmp_path / "preset", verbose=False)
    assert again.config == model.config
    assert len(moving_statistics(again)) == 2 * 6  # A stem, two blocks of two, and a shortcut.
    assert all(statistic.std() > 0 for statistic in moving_statistics(again))
    for weight, expected in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(weight), keras.ops.convert_to_numpy(expected)
        )
    images = draw_images(3, 8, 8, 1)
    assert_close(
        keras.ops.convert_to_numpy(again(images)), keras.ops.convert_to_numpy(model(images))
    )


def test_a_preset_of_half_precision_has_its_statistics_in_single(tmp_path):
    model = make_model()
    variance = moving_statistics(model)[1]
    weight = model.backbone.get_layer("stem_norm").moving_variance
    weight.assign(np.full(variance.shape, 1e6))  # Infinite in float16.
    model.save_to_preset(tmp_path / "preset", dtype="float16", verbose=False)
    again = ResidualImageClassifier.from_preset(tmp_path / "preset", verbose=False)
    moving_variance = again.backbone.get_layer("stem_norm").moving_variance
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(moving_variance), np.full(variance.shape, 1e6)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_type": "basic"}, "unknown keys: 'layer_type': 'basic'"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        (
            {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"},
            "of ResNetForImageClassification architecture .model_type 'resnet'., and Residual",
        ),
    ],
)
def test_a_preset_that_is_none_of_it_is_refused(change, message, tmp_path):
    make_model().save_to_preset(tmp_path, verbose=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InvalidInputError, match=message):
        ResidualImageClassifier.from_preset(tmp_path, verbose=False)
