import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models import (
    LlamaCausalLM,
    Qwen2CausalLM,
    Qwen3CausalLM,
    enable_lora,
    load_peft_adapter,
    save_peft_adapter,
)
from keras_deepseek.testing import assert_close
from tests.oracles import golden_language_models, language_models
from tests.oracles.golden_language_models import read_case

TASKS = {"llama": LlamaCausalLM, "qwen2": Qwen2CausalLM, "qwen3": Qwen3CausalLM}
SIZES = {"vocabulary_size": 31, "hidden_dim": 24, "intermediate_dim": 20}


def make_model(task, **overrides):
    config = task.config_class.from_preset("tiny", **SIZES, **overrides)
    return language_models.perturb(task(config))


@pytest.fixture(scope="module")
def model():
    """A model with windows, norms and biases."""
    types = ("sliding_attention", "full_attention")
    return make_model(Qwen3CausalLM, sliding_window=3, layer_types=types, use_attention_bias=True)


@pytest.mark.parametrize("name", TASKS)
def test_a_checkpoint_of_transformers_gives_its_logits_loss_and_gradients(name):
    case, task = read_case(name), TASKS[name]
    model = task(task.config_class.from_checkpoint_config(case.config))
    golden_language_models.assign(model.checkpoint_entries(), case.tensors)
    golden_language_models.check_outputs(model, case)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_written_checkpoint_is_read_again(task, tmp_path):
    model = make_model(task, tie_word_embeddings=task is Qwen2CausalLM)
    golden_language_models.check_entries(model, model.checkpoint_entries())
    model.save_to_preset(tmp_path / "preset", max_shard_bytes=20000, verbose=False)
    revived = task.from_preset(tmp_path / "preset", verbose=False)
    assert revived.config == type(model.config).from_checkpoint_config(
        model.config.to_checkpoint_config()
    )
    batch = language_models.draw_batch(31)
    real = language_models.real
    assert_close(real(revived(batch), batch), real(model(batch), batch))


def test_it_survives_saving(model, tmp_path):
    language_models.check_saving(model, tmp_path / "model.keras")


def test_cached_decoding_is_the_full_forward_pass(model):
    language_models.check_cached_decoding(model, [(0, 4), (4, 5), (5, 7)])


def test_padding_counts_for_nothing(model):
    language_models.check_padding_counts_for_nothing(model)


def test_it_computes_in_half_precision(model):
    language_models.check_half_precision(model, "bfloat16")


def test_it_learns():
    config = Qwen2CausalLM.config_class.from_preset("tiny", **SIZES)
    language_models.check_fit(Qwen2CausalLM(config))


def test_an_adapter_of_peft_has_the_rank_of_ours(tmp_path):
    model, batch = make_model(Qwen2CausalLM), language_models.draw_batch(31)
    enable_lora(model, 2, target_names=["query", "value", "output"])
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(1).normal(scale=0.2, size=variable.shape))
    save_peft_adapter(model, tmp_path / "adapter")
    other = make_model(Qwen2CausalLM)
    load_peft_adapter(other, tmp_path / "adapter")
    real = language_models.real
    assert_close(real(other(batch), batch), real(model(batch), batch))
    shapes = {tuple(variable.shape) for variable in other.trainable_variables}
    assert {min(shape) for shape in shapes} == {2}


@pytest.mark.nightly
def test_it_is_quantized(model):
    quantized = type(model)(model.config)
    quantized.set_weights(model.get_weights())
    quantized.quantize("int8")
    layers = [layer for layer in quantized._flatten_layers() if layer.quantization_mode]
    assert len(layers) == 1 + 2 * 7
    batch = language_models.draw_batch(31)
    expected = language_models.real(model(batch), batch)
    error = np.abs(language_models.real(quantized(batch), batch) - expected)
    assert np.median(error) < 0.05 * np.abs(expected).max()
    assert keras.backend.standardize_dtype(quantized.weights[0].dtype) == "int8"


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_layers_are_quantized_while_they_are_read(mode, tmp_path):
    model = make_model(Qwen2CausalLM)
    model.save_to_preset(tmp_path / "preset", verbose=False)
    loaded = Qwen2CausalLM.from_preset(tmp_path / "preset", quantization=mode, verbose=False)
    model.quantize(mode)
    for weight, expected in zip(loaded.weights, model.weights, strict=True):
        first, second = map(keras.ops.convert_to_numpy, (weight, expected))
        np.testing.assert_array_equal(first, second, weight.path)


def test_an_unknown_quantization_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InvalidInputError, match="`quantization`"):
        Qwen2CausalLM.from_preset(tmp_path / "none", quantization="int3")
