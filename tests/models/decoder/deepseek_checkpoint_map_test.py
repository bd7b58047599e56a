import fnmatch

import keras
import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models import (
    DeepSeekV2CausalLM,
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    DeepSeekV32CausalLM,
)
from keras_deepseek.models.decoder.deepseek_checkpoint_map import (
    deepseek_entries,
    unread_tensors,
)
from tests.oracles import golden_language_models, release_folders
from tests.oracles.golden_language_models import read_case
from tests.oracles.preset_model import NAMES, encode_safetensors

FAMILIES = {
    "deepseek_v2": DeepSeekV2CausalLM,
    "deepseek_v3": DeepSeekV3CausalLM,
    "deepseek_v32": DeepSeekV32CausalLM,
}


@pytest.mark.parametrize(
    "name",
    ["deepseek_v3", "deepseek_v2", "deepseek_v32"],
)
@pytest.mark.torch_alone
def test_a_checkpoint_of_transformers_gives_its_logits_loss_and_gradients(name):
    case, task = read_case(name), FAMILIES[name]
    model = task(task.config_class.from_checkpoint_config(case.config))
    golden_language_models.assign(deepseek_entries(model), case.tensors)
    golden_language_models.check_outputs(model, case)


@pytest.mark.parametrize("task", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize(
    "overrides", [{}, {"tie_word_embeddings": True, "use_attention_bias": True}]
)
def test_every_weight_has_its_tensors_and_they_give_it_back(task, overrides):
    model = task(task.config_class.from_preset("tiny", num_prediction_layers=2, **overrides))
    golden_language_models.check_entries(model, deepseek_entries(model))


def make_model(**overrides):
    return DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny", **overrides))


def tensors_of(model):
    """Returns every tensor by its name."""
    tensors = {}
    for entry in deepseek_entries(model):
        arrays = [keras.ops.convert_to_numpy(variable) for variable in entry.variables]
        tensors |= dict(zip(entry.tensors, map(np.asarray, entry.to_tensors(arrays)), strict=True))
    return tensors


def test_a_module_for_further_tokens_has_the_names_of_the_release():
    tensors = tensors_of(make_model(num_prediction_layers=1))
    module = "model.layers.2"
    names = {name.removeprefix(f"{module}.") for name in tensors if name.startswith(module)}
    assert names >= {
        "embed_tokens.weight",
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
        "input_layernorm.weight",
        "mlp.gate.e_score_correction_bias",
    }
    np.testing.assert_array_equal(
        tensors[f"{module}.embed_tokens.weight"], tensors["model.embed_tokens.weight"]
    )
    np.testing.assert_array_equal(
        tensors[f"{module}.shared_head.head.weight"], tensors["lm_head.weight"]
    )


def test_a_folder_of_the_release_has_the_numbers_that_its_codes_and_scales_stand_for(tmp_path):
    release = release_folders.draw_v3()
    arguments = {"num_prediction_layers": 1, "verbose": False}
    model = DeepSeekV3CausalLM.from_preset(release.write(tmp_path / "release"), **arguments)
    # Without what it has twice, which is read once in any case.
    for name in ("embed_tokens", "shared_head.head"):
        del release.numbers[f"model.layers.2.{name}.weight"]
    plain = DeepSeekV3CausalLM.from_preset(release.write_plain(tmp_path / "plain"), **arguments)
    for weight, expected in zip(model.weights, plain.weights, strict=True):
        first, second = map(keras.ops.convert_to_numpy, (weight, expected))
        np.testing.assert_array_equal(first, second, weight.path)
    # And some by hand: 160 rows, a scale for the first 128 and one for the rest.
    layers, numbers = model.backbone.transformer_layers, release.numbers
    for kernel, name in (
        (layers[0].attention.query_up.kernel, "model.layers.0.self_attn.q_b_proj"),
        (layers[1].feed_forward.up_kernel[3], "model.layers.1.mlp.experts.3.up_proj"),
    ):
        expected = numbers[f"{name}.weight"].T
        kernel_values = keras.ops.convert_to_numpy(kernel).reshape(expected.shape)
        np.testing.assert_array_equal(kernel_values, expected, name)


def test_the_embedding_comes_first_in_the_projection_of_a_checkpoint():
    model = make_model(num_prediction_layers=1)
    kernel = keras.ops.convert_to_numpy(model.multi_token_prediction.projections[0].kernel)
    projection = tensors_of(model)["model.layers.2.eh_proj.weight"]
    half = len(kernel) // 2
    np.testing.assert_array_equal(projection[:, :half].T, kernel[half:])


@pytest.mark.parametrize("count", [0, 1])
def test_modules_that_are_not_built_are_passed_over_and_no_other_tensors(count):
    model = make_model(num_prediction_layers=count)
    patterns = unread_tensors(model.config)

    def is_passed_over(name):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    assert not any(map(is_passed_over, tensors_of(model)))
    assert is_passed_over(f"model.layers.{2 + count}.enorm.weight")


def test_a_checkpoint_with_more_layers_than_its_config_is_refused(tmp_path):
    config = DeepSeekV3Config.from_preset("tiny", vocabulary_size=20, num_layers=3)
    DeepSeekV3CausalLM(config).save_to_preset(tmp_path, verbose=False)
    with pytest.raises(CheckpointError, match=r"more layers than its config.*'model\.layers\.2\."):
        DeepSeekV3CausalLM.from_preset(tmp_path, num_layers=2, verbose=False)


@pytest.mark.parametrize("count", [0, 1])
def test_a_tied_folder_may_hold_the_head_too_and_one_of_other_numbers_is_read_untied(
    count, tmp_path
):
    sizes = {"num_experts": None, "num_layers": 1, "num_prediction_layers": count}
    source = make_model(**sizes, tie_word_embeddings=True)
    source.save_to_preset(tmp_path, verbose=False)
    tensors = tensors_of(source)
    table = tensors["model.embed_tokens.weight"]
    arguments = {"num_prediction_layers": count, "verbose": False}

    def read(head, **overrides):
        written = {**tensors, "lm_head.weight": head}
        (tmp_path / "model.safetensors").write_bytes(encode_safetensors(written, NAMES))
        return DeepSeekV3CausalLM.from_preset(tmp_path, **arguments, **overrides)

    model = read(table)
    assert len(model.weights) == len(source.weights)
    with pytest.raises(
        CheckpointError, match=r"'lm_head\.weight' and 'model\.embed_tokens\.weight'"
    ):
        read(3 * table)
    embedding = read(3 * table, tie_word_embeddings=False).backbone.token_embedding
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(embedding.reverse_embeddings), 3 * table.T
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(embedding.embeddings), table)


def test_with_a_lora_it_is_the_kernel_itself_that_is_read():
    model = make_model()
    block = model.backbone.transformer_layers[0]
    block.feed_forward.gate.enable_lora(2)
    entries = {name: entry for entry in deepseek_entries(model) for name in entry.tensors}
    (variable,) = entries["model.layers.0.mlp.gate_proj.weight"].variables
    assert variable.path.endswith("gate/kernel")
