"""Language models whose experts are quantized, and the LoRA that is trained on them."""

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.layers.quantized_layers import describe_quantized
from keras_deepseek.models import (
    DeepSeekV2CausalLM,
    DeepSeekV3CausalLM,
    DeepSeekV4CausalLM,
    DeepSeekV32CausalLM,
    enable_lora,
    load_lora_weights,
    merge_lora,
    save_lora_weights,
)
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import compute, make_model, make_v4_model, tune
from tests.oracles.quantization import MODES, in_each_mode, needs_blocks

EXPERTS = ["expert_gate", "expert_up", "expert_down"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method"),
    pytest.mark.filterwarnings("ignore:The use of `x.T`"),  # Of Keras, for an embedding on torch.
]


def make(task=DeepSeekV3CausalLM, mode=None):
    model = make_v4_model() if task is DeepSeekV4CausalLM else make_model(task=task)
    if mode is not None:
        model.quantize(**MODES[mode])
    return model


@in_each_mode
def test_all_of_a_deepseek_is_quantized_and_loads(tmp_path, mode):
    check_quantized(DeepSeekV3CausalLM, mode, tmp_path)


@pytest.mark.parametrize("task", [DeepSeekV2CausalLM, DeepSeekV32CausalLM, DeepSeekV4CausalLM])
@pytest.mark.nightly
def test_all_of_each_family_is_quantized_and_loads(tmp_path, task):
    check_quantized(task, "int8", tmp_path)


def check_quantized(task, mode, folder):
    model = make(task)
    plain = compute(model)
    model.quantize(**MODES[mode])
    quantized = compute(model)
    assert np.abs(quantized - plain).max() < 0.3 * np.abs(plain).max()
    floats = {
        weight.path.rpartition("/")[0].rpartition("/")[2]
        for weight in model.weights
        if weight.dtype == "float32" and weight.name in ("kernel", "embeddings")
    }
    assert "router" in floats
    assert not floats & {*EXPERTS, "gate", "up", "down", "query_up", "key_up", "token_embedding"}
    model.save(folder / "model.keras")
    revived = keras.saving.load_model(folder / "model.keras")
    assert describe_quantized(revived).keys() == describe_quantized(model).keys()
    np.testing.assert_array_equal(compute(revived), quantized)


@needs_blocks
def test_a_block_that_does_not_fit_is_refused_before_any_layer_is_quantized():
    model = make()
    plain = compute(model)
    with pytest.raises(InvalidInputError, match=r"divides the \d+ rows .*expert_.*received 128"):
        model.quantize("int4")
    assert not describe_quantized(model)
    model.quantize("int4", filters="query")  # Without the experts.
    assert set(describe_quantized(model)) != set()
    assert np.abs(compute(model) - plain).max() < 0.3 * np.abs(plain).max()


@in_each_mode
def test_a_lora_on_quantized_weights_is_trained_and_resumed_exactly(tmp_path, mode):
    class Stop(keras.callbacks.Callback):
        """Ends a training within its second epoch, as a signal does."""

        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 4:
                raise KeyboardInterrupt

    def fit(folder, callbacks=()):
        model = make(mode=mode)
        enable_lora(model, 2, target_names=[*EXPERTS, "query_up"])
        trainer = Trainer(
            model,
            optimizer=keras.optimizers.Adam(0.02),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            seed=0,
            checkpoint_dir=tmp_path / folder,
            checkpoint_every=1,
            callbacks=list(callbacks),
        )
        tokens = np.random.default_rng(0).integers(1, 31, (6, 5)).astype("int32")
        batch = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
        targets = np.roll(tokens, -1, axis=1)
        history = trainer.fit(batch, targets, batch_size=2, epochs=3, verbose=0, resume=True)
        return model, history.history["loss"]

    frozen = [to_numpy(weight) for weight in make(mode=mode).weights if weight.dtype == "int8"]
    with pytest.raises(KeyboardInterrupt):
        fit("resumed", [Stop()])
    resumed, _ = fit("resumed")
    whole, losses = fit("whole")
    assert losses[-1] < losses[0]
    for ours, expected in zip(resumed.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(expected), ours.path)
    for weight, value in zip(
        [weight for weight in whole.weights if weight.dtype == "int8"], frozen, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(weight), value)


@in_each_mode
def test_a_lora_of_quantized_weights_is_saved_alone_and_merged_into_the_plain_model(tmp_path, mode):
    model = tune(make(mode=mode), target_names=[*EXPERTS, "query_up", "key_value_down"])
    save_lora_weights(model, tmp_path / "tuned.safetensors")
    other = make(mode=mode)
    load_lora_weights(other, tmp_path / "tuned.safetensors")
    assert_close(compute(other), compute(model))
    with pytest.raises(NotSupportedError, match="nothing was merged"):
        merge_lora(model)
    plain = make()
    load_lora_weights(plain, tmp_path / "tuned.safetensors")
    merge_lora(plain)
    expected = compute(tune(make(), target_names=[*EXPERTS, "query_up", "key_value_down"]))
    assert_close(compute(plain), expected, 1e-5)
