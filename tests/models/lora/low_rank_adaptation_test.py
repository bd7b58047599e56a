import gc

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import ServingEngine
from keras_deepseek.models import (
    DeepSeekV2CausalLM,
    DeepSeekV3CausalLM,
    DeepSeekV4CausalLM,
    DeepSeekV32CausalLM,
    enable_lora,
    merge_lora,
)
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer
from tests.oracles import language_models
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import compute, make_model, make_v4_model, tune

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def draw_data():
    batch = language_models.draw_batch(31)
    return batch, np.roll(batch["token_ids"], -1, axis=1)


def frozen_values(model):
    return [
        to_numpy(variable)
        for variable in model.non_trainable_variables
        if not variable.path.endswith("expert_load")
    ]


@pytest.mark.parametrize("is_trainer", [True, False], ids=["trainer", "fit"])
def test_the_lora_alone_is_trained(is_trainer):
    model = make_model(num_prediction_layers=1)
    old_logits = compute(model)
    paths = enable_lora(model, 2)
    assert_close(compute(model), old_logits)
    names = [variable.path for variable in model.trainable_variables]
    assert len(set(names)) == len(names) == 2 * len(paths)
    assert all(path.rpartition("/")[2].startswith("lora_kernel_") for path in names)
    assert f"{paths[0]}/lora_kernel_a" in names
    frozen = frozen_values(model)
    optimizer = keras.optimizers.Adam(0.02)
    if is_trainer:
        trainer = Trainer(model, optimizer=optimizer, loss=LOSS, seed=0)
    else:
        model.compile(optimizer, LOSS)
        trainer = model
    losses = trainer.fit(*draw_data(), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert len(optimizer.variables) == 2 + 2 * len(names)
    for value, now in zip(frozen, frozen_values(model), strict=True):
        np.testing.assert_array_equal(now, value)


def test_a_training_with_a_lora_is_resumed(tmp_path):
    def fit(epochs, folder):
        model = make_model()
        enable_lora(model, 2, target_names=["query_up", "output"])
        trainer = Trainer(
            model,
            optimizer=keras.optimizers.Adam(0.02),
            loss=LOSS,
            seed=0,
            checkpoint_dir=tmp_path / folder,
            checkpoint_every=1,
        )
        trainer.fit(*draw_data(), epochs=epochs, verbose=0, resume=True)
        return model

    fit(1, "resumed")
    assert_close(compute(fit(3, "resumed")), compute(fit(3, "whole")))


def test_merged_weights_compute_the_same():
    model = make_model()
    plain = compute(model)
    shapes = [tuple(weight.shape) for weight in model.weights]
    names = ["query_down", "key_up", "output", "gate", "token_embedding"]
    tune(model, target_names=names)
    predicted = model.predict(language_models.draw_batch(31), verbose=0)
    tuned = compute(model)
    assert np.abs(tuned - plain).max() > 0.1
    merge_lora(model)
    assert_close(compute(model), tuned, 1e-5)
    # A function that was compiled before it is not stale.
    assert_close(model.predict(language_models.draw_batch(31), verbose=0), predicted, 1e-5)
    assert [tuple(weight.shape) for weight in model.weights] == shapes
    assert len(model.trainable_variables) == len(make_model().trainable_variables)
    enable_lora(model, 1)
    assert_close(compute(model), tuned, 1e-5)


def test_a_kernel_keeps_its_digits_under_a_mixed_policy():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, dtype="mixed_bfloat16", name="score")]
    )
    kernel = to_numpy(model.layers[0].kernel)
    enable_lora(model, 1)
    merge_lora(model)
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel), kernel)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "task",
    [DeepSeekV2CausalLM, DeepSeekV3CausalLM, DeepSeekV32CausalLM, DeepSeekV4CausalLM],
)
def test_a_keras_file_and_a_preset_hold_the_merged_weights(tmp_path, task):
    model = make_v4_model() if task is DeepSeekV4CausalLM else make_model(task=task)
    plain = compute(model)
    tuned = compute(tune(model))
    assert np.abs(tuned - plain).max() > 0.1
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(compute(revived), tuned, 1e-5)
    model.save_to_preset(tmp_path / "preset")
    read = type(model).from_preset(tmp_path / "preset")
    assert_close(compute(read), tuned, 1e-5)
    assert len(read.trainable_variables) == len(revived.trainable_variables)
    merge_lora(model)
    assert_close(compute(model), tuned, 1e-5)


@pytest.mark.nightly
def test_a_model_that_has_one_is_exported_and_computes_the_same(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32", name="tokens"),
            keras.layers.Embedding(9, 6, name="table"),
            keras.layers.EinsumDense("btd,dhe->bthe", (None, 2, 3), name="heads"),
            keras.layers.Dense(2, name="score"),
        ]
    )
    tune(model, target_names=["table", "heads", "score"])
    rows = np.array([[1, 2, 3, 8], [0, 5, 5, 7]], "int32")
    expected = to_numpy(model(rows))
    form = "savedmodel" if keras.backend.backend() == "tensorflow" else "onnx"
    Exporter(model, form, verbose=False).export(tmp_path / "bundle")
    with ServingEngine(tmp_path / "bundle") as engine:
        served = engine.predict({"tokens": rows})
    assert_close(served, expected, 1e-5)


@pytest.mark.each_backend
def test_merged_weights_train_again():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    enable_lora(model, 1)
    merge_lora(model)
    old_values = [to_numpy(variable) for variable in model.variables]
    model.compile("sgd", loss="mse")
    model.fit(np.ones((4, 3)), np.full((4, 1), 9.0), verbose=0)
    assert all(variable.trainable for variable in model.variables)
    new_values = [to_numpy(variable) for variable in model.variables]
    assert not any(np.array_equal(*pair) for pair in zip(old_values, new_values, strict=True))


def test_a_merge_collects_no_garbage_for_each_layer(monkeypatch):
    """Each collection goes through all objects of the process: a merge took seconds."""
    collections = []
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(1)])
    enable_lora(model, 1)
    monkeypatch.setattr(gc, "collect", lambda *_: collections.append(1))
    merge_lora(model)
    assert not collections


class Adapting(keras.Model):
    """Adds a LoRA to its own layers, as backbones of KerasHub do."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(2)

    def call(self, inputs):
        return self.hidden(inputs)

    def enable_lora(self, rank):
        self.hidden.enable_lora(rank)


def test_layers_of_a_backbone_that_has_an_enable_lora_are_found():
    model = Adapting()
    model(np.ones((1, 3), "float32"))
    assert [path.rpartition("/")[2] for path in enable_lora(model, 1)] == [model.hidden.name]


def test_any_keras_model_may_have_one():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(3, 2, name="stem"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="score"),
        ]
    )
    assert len(enable_lora(model, 1)) == 2
    assert not model.get_layer("norm").trainable
    assert len(model.trainable_variables) == 4


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_what_is_quantized_is_not_merged_and_stays_as_it_is(mode):
    model = keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8) for _ in range(2))])
    model.layers[1].quantize(mode)
    enable_lora(model, rank=2)
    for layer in model.layers:
        layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=(2, 8)))
    x = np.random.default_rng(1).normal(size=(3, 8)).astype("float32")
    expected = to_numpy(model(x))
    with pytest.raises(NotSupportedError, match=r"1 of the 2 layers .* nothing was merged"):
        merge_lora(model)
    assert all(layer.lora_enabled for layer in model.layers)
    np.testing.assert_array_equal(to_numpy(model(x)), expected)


def test_bad_input_is_one_clear_error():
    model = make_model()
    with pytest.raises(InvalidInputError, match=r"did you mean 'query_up'\?"):
        enable_lora(model, 2, target_names=["query_upp"])
    with pytest.raises(InvalidInputError, match="which is a `ExpertRouter`"):
        enable_lora(model, 2, target_names=["output", "router"])
    with pytest.raises(InvalidInputError, match="list of layer names"):
        enable_lora(model, 2, target_names="output")
    for rank in (0, -1, 1.5):
        with pytest.raises(InvalidInputError, match="`rank`"):
            enable_lora(model, rank)
    with pytest.raises(InvalidInputError, match="`lora_alpha`"):
        enable_lora(model, 2, lora_alpha=0)
    with pytest.raises(InvalidInputError, match="has no LoRA"):
        merge_lora(model)
    assert len(model.trainable_variables) == len(make_model().trainable_variables)
    enable_lora(model, 2, target_names=["output"])
    with pytest.raises(InvalidInputError, match="LoRA of rank 2 already, in 2 layers"):
        enable_lora(model, 2)
    unbuilt = keras.Sequential([keras.layers.Dense(2, name="score")])
    with pytest.raises(InvalidInputError, match="score have no weights yet"):
        enable_lora(unbuilt, 2)
    for function in (lambda wrong: enable_lora(wrong, 2), merge_lora):
        with pytest.raises(InvalidInputError, match=r"`model` must be a .*, received 3"):
            function(3)
    plain = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])
    with pytest.raises(InvalidInputError, match="no layer that a LoRA can be added to"):
        enable_lora(plain, 2)
