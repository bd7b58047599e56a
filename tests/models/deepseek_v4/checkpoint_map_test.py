import re

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import CheckpointError
from keras_deepseek.models import DeepSeekV4CausalLM, DeepSeekV4Config
from keras_deepseek.models.deepseek_v4.checkpoint_map import checkpoint_entries
from tests.oracles import golden_language_models, release_folders
from tests.oracles.deepseek_v4_models import make_config, perturb
from tests.oracles.golden_language_models import read_case

TRANSFORMERS = ("model.layers.0.self_attn.sinks",)


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make_model(**kwargs):
    return perturb(DeepSeekV4CausalLM(make_config(**kwargs)))


def write(model, names=()):
    """The tensors of a model by their names in a checkpoint."""
    tensors = {}
    for entry in checkpoint_entries(model, names):
        arrays = entry.to_tensors([to_numpy(variable) for variable in entry.variables])
        assert [array.shape for array in arrays] == entry.tensor_shapes()
        tensors.update(zip(entry.tensors, arrays, strict=True))
    return tensors


def read(model, tensors):
    for entry in checkpoint_entries(model, tensors):
        arrays = entry.to_variables([tensors[name] for name in entry.tensors])
        for variable, array in zip(entry.variables, arrays, strict=True):
            variable.assign(np.asarray(array))


def test_a_checkpoint_of_transformers_gives_its_logits_its_loss_and_its_gradients():
    case = read_case("deepseek_v4")
    model = DeepSeekV4CausalLM(DeepSeekV4Config.from_checkpoint_config(case.config))
    entries = checkpoint_entries(model, case.tensors)
    golden_language_models.assign(entries, case.tensors)
    golden_language_models.check_outputs(model, case, entries)


@pytest.mark.parametrize("names", [(), TRANSFORMERS], ids=["release", "transformers"])
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_what_was_written_is_read_again(names, tie_word_embeddings):
    sizes = {"tie_word_embeddings": tie_word_embeddings, "num_prediction_layers": 2}
    model, other = make_model(**sizes), DeepSeekV4CausalLM(make_config(**sizes))
    entries = checkpoint_entries(model, {*names, "lm_head.weight"})
    copies = {name for entry in entries for name in entry.copies}
    assert copies == ({"head.weight", "lm_head.weight"} if tie_word_embeddings else set())
    named = {name for entry in entries for name in entry.tensors}
    assert ("lm_head.weight" in named) is not tie_word_embeddings
    read(other, write(model, names))
    for weight, expected in zip(other.weights, model.weights, strict=True):
        if "load" not in weight.path:
            np.testing.assert_array_equal(to_numpy(weight), to_numpy(expected), weight.path)


def test_every_variable_but_the_load_has_one_entry():
    model = make_model(num_prediction_layers=1)
    mapped = [id(variable) for entry in checkpoint_entries(model) for variable in entry.variables]
    expected = [id(weight) for weight in model.weights if "expert_load" not in weight.path]
    assert sorted(mapped) == sorted(expected)


def test_the_names_of_the_release():
    tensors = write(make_model(num_prediction_layers=1))
    kinds = {re.sub(r"\d+", "*", name) for name in tensors if "experts" not in name}
    assert {
        "embed.weight",
        "head.weight",
        "hc_head_fn",
        "layers.*.attn.attn_sink",
        "layers.*.attn.compressor.ape",
        "layers.*.attn.indexer.compressor.wgate.weight",
        "layers.*.attn.indexer.weights_proj.weight",
        "layers.*.ffn.gate.bias",
        "layers.*.ffn.gate.tid*eid",
        "layers.*.hc_ffn_scale",
        "mtp.*.attn.wq_a.weight",
        "mtp.*.e_proj.weight",
        "mtp.*.hc_head_base",
        "mtp.*.norm.weight",
    } <= kinds
    assert not [kind for kind in kinds if kind.startswith("mtp.*.attn.compressor")]
    assert "layers.2.ffn.experts.4.w2.weight" in tensors
    # As PyTorch has them: outputs by inputs.
    assert tensors["layers.0.attn.wq_a.weight"].shape == (7, 12)
    assert tensors["layers.0.attn.wo_a.weight"].shape == (2 * 5, 4 * 6 // 2)
    assert tensors["layers.0.ffn.experts.0.w1.weight"].shape == (8, 12)
    assert tensors["layers.0.hc_attn_fn"].shape == ((2 + 3) * 3, 3 * 12)


def test_the_names_of_transformers():
    tensors = write(make_model(), TRANSFORMERS)
    assert tensors["model.layers.1.mlp.experts.gate_up_proj"].shape == (5, 2 * 8, 12)
    assert tensors["model.layers.1.mlp.experts.down_proj"].shape == (5, 12, 8)
    assert "model.layers.1.self_attn.compressor.indexer.scorer.weights_proj.weight" in tensors
    assert "model.layers.1.self_attn.compressor.indexer.kv_norm.weight" in tensors
    assert "model.hc_head.hc_base" in tensors
    assert "lm_head.weight" in tensors


def test_names_that_transformers_writes_are_read():
    model = make_model(num_prediction_layers=1)
    written = {}
    for name, array in write(model).items():
        spelled = {
            "embed.weight": "model.embed_tokens.weight",
            "head.weight": "head.weight",
            "hc_head_fn": "model.hc_head.hc_fn",
            "hc_head_base": "model.hc_head.hc_base",
            "hc_head_scale": "model.hc_head.hc_scale",
        }
        is_own = name.startswith("mtp")  # Which it leaves alone.
        other = f"model.{name}".replace(".attn.kv_norm.", ".attn.norm.")
        written[name if is_own else spelled.get(name, other)] = array
    other = DeepSeekV4CausalLM(make_config(num_prediction_layers=1))
    read(other, written)
    for weight, expected in zip(other.weights, model.weights, strict=True):
        if "load" not in weight.path:
            np.testing.assert_array_equal(to_numpy(weight), to_numpy(expected), weight.path)


def test_a_folder_of_the_release_has_the_numbers_that_its_codes_and_scales_stand_for(tmp_path):
    release = release_folders.draw_v4()
    arguments = {"num_prediction_layers": 1, "verbose": False}
    model = DeepSeekV4CausalLM.from_preset(release.write(tmp_path / "release"), **arguments)
    plain = DeepSeekV4CausalLM.from_preset(release.write_plain(tmp_path / "plain"), **arguments)
    for weight, expected in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), to_numpy(expected), weight.path)
    # And some by hand.
    layer, numbers = model.backbone.transformer_layers[1], release.numbers
    further = model.multi_token_prediction
    for kernel, name in (
        (layer.attention.query_up.kernel, "layers.1.attn.wq_b"),
        (layer.feed_forward.gate_kernel[3], "layers.1.ffn.experts.3.w1"),
        (layer.feed_forward.down_kernel[0], "layers.1.ffn.experts.0.w2"),
        (further.hidden_projections[0].kernel, "mtp.0.h_proj"),
        (further.blocks[0].feed_forward.up_kernel[2], "mtp.0.ffn.experts.2.w3"),
    ):
        expected = numbers[f"{name}.weight"].T
        np.testing.assert_array_equal(to_numpy(kernel).reshape(expected.shape), expected, name)


def test_experts_may_be_in_float8_and_further_layers_have_copies_of_the_embedding(tmp_path):
    release = release_folders.draw_v4(expert_dtype=None, compress_ratios=[0, 0, 0])
    stored = release.stored
    stored["mtp.0.emb.tok_emb.weight"] = stored["embed.weight"]
    stored["mtp.0.head.weight"] = stored["head.weight"]
    model = DeepSeekV4CausalLM.from_preset(
        release.write(tmp_path), num_prediction_layers=1, verbose=False
    )
    for index, layer in enumerate(model.backbone.transformer_layers):
        expected = release.numbers[f"layers.{index}.ffn.experts.1.w2.weight"].T
        np.testing.assert_array_equal(to_numpy(layer.feed_forward.down_kernel[1]), expected)


def test_scales_that_are_missing_or_do_not_fit_are_one_error(tmp_path):
    release = release_folders.draw_v4(compress_ratios=[0, 0, 0])
    stored = release.stored
    del stored["layers.0.attn.wq_a.scale"], stored["layers.1.ffn.experts.3.w2.scale"]
    for name, changes in (
        ("layers.0.attn.wq_b.scale", {"shape": (1, 2)}),
        ("layers.1.ffn.experts.0.w1.scale", {"shape": (64, 1)}),
        ("layers.1.attn.wkv.scale", {"dtype": "U8"}),
        ("layers.1.ffn.experts.1.w3.weight", {"shape": (64, 16)}),
        ("layers.1.ffn_norm.weight", {"dtype": "I8", "shape": (128,)}),
    ):
        stored[name] = stored[name]._replace(**changes)
    with pytest.raises(CheckpointError) as caught:
        DeepSeekV4CausalLM.from_preset(release.write(tmp_path), verbose=False)
    for part in (
        "does not fit the model, and nothing was loaded: ",
        "missing: 'layers.0.attn.wq_a.scale', 'layers.1.ffn.experts.3.w2.scale'",
        "'layers.0.attn.wq_b.scale' has shape (1, 2), expected (2, 1)",
        "'layers.1.ffn.experts.0.w1.scale' has shape (64, 1), expected (32, 2)",
        "'layers.1.attn.wkv.scale' has dtype U8, expected F8_E8M0 or F32 or BF16 or F16",
        "'layers.1.ffn.experts.1.w3.weight' has shape (64, 16), expected (32, 32), two numbers",
        "'layers.1.ffn_norm.weight' has dtype I8, which only matrices may have",
    ):
        assert part in str(caught.value), part
