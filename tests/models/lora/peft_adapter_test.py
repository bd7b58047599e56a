import json

import keras
import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError, InvalidInputError, NotSupportedError
from keras_deepseek.models import enable_lora, load_peft_adapter, save_peft_adapter
from keras_deepseek.models.checkpoints.weights_writer import write_tensors
from keras_deepseek.models.lora.lora_weights import read_tensors
from keras_deepseek.testing import assert_close
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import ATTENTION, compute, make_model, make_v4_model, tune

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model.model.layers"


@pytest.mark.parametrize("overrides", [{}, {"query_lora_rank": None}, {"num_prediction_layers": 1}])
def test_a_folder_comes_back(tmp_path, overrides):
    names = [*ATTENTION, "token_embedding"]
    if "num_prediction_layers" in overrides:
        names.append("projection_1")
    if "query_lora_rank" in overrides:
        names = names[1:]
    model = tune(make_model(**overrides), target_names=names)
    save_peft_adapter(model, tmp_path / "adapter")
    fresh = make_model(**overrides)
    load_peft_adapter(fresh, tmp_path / "adapter")
    assert_close(compute(fresh), compute(model))
    for ours, theirs in zip(fresh.trainable_variables, model.trainable_variables, strict=True):
        assert ours.path == theirs.path
        assert_close(to_numpy(ours), to_numpy(theirs))
    load_peft_adapter(fresh, tmp_path / "adapter")
    assert_close(compute(fresh), compute(model))


def test_the_folder_is_what_peft_computes_with(tmp_path):
    """Each `Linear` of the checkpoint has changed by `lora_alpha / r * B A`."""
    model = make_model()
    plain = {n: x for e in model.checkpoint_entries() for n, x in read_entry(e)}
    tune(model, target_names=ATTENTION)
    save_peft_adapter(model, tmp_path / "adapter")
    model.save_to_preset(tmp_path / "merged")
    merged = read_tensors(tmp_path / "merged" / "model.safetensors")
    tensors = read_tensors(tmp_path / "adapter" / WEIGHTS)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    for name in config["target_modules"]:
        down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        pattern = name.replace(".", r"\.")
        assert config["rank_pattern"][pattern] == len(down)
        scale = config["alpha_pattern"][pattern] / len(down)
        changed = merged[f"{name}.weight"] - plain[f"{name}.weight"]
        assert_close(scale * (up @ down), changed, 1e-5)
    changed = {name for name in merged if not np.array_equal(merged[name], plain[name])}
    assert changed == {f"{name}.weight" for name in config["target_modules"]}
    assert len(tensors) == 2 * len(config["target_modules"]) == 2 * 2 * 5


def read_entry(entry):
    values = [keras.ops.convert_to_numpy(variable) for variable in entry.variables]
    return [(n, np.array(x)) for n, x in zip(entry.tensors, entry.to_tensors(values), strict=True)]


def write_adapter(folder, shapes, **config):
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_tensors(
        folder / WEIGHTS, {name: rng.normal(size=x).astype("float32") for name, x in shapes.items()}
    )
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, **config}
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


def shapes_of(name, inputs, outputs, rank=3):
    return {f"{name}.lora_A.weight": (rank, inputs), f"{name}.lora_B.weight": (outputs, rank)}


def test_an_adapter_of_peft_is_read(tmp_path):
    name = f"{PREFIX}.1.self_attn.kv_a_proj_with_mqa"
    folder = write_adapter(tmp_path / "a", shapes_of(name, 24, 40), use_rslora=True)
    model = make_model()
    plain = {n: x for e in model.checkpoint_entries() for n, x in read_entry(e)}
    load_peft_adapter(model, folder)
    assert len(model.trainable_variables) == 4  # Two layers here.
    model.save_to_preset(tmp_path / "merged")
    merged = read_tensors(tmp_path / "merged" / "model.safetensors")
    tensors, tensor = read_tensors(folder / WEIGHTS), name.removeprefix("base_model.model.")
    product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    changed = merged[f"{tensor}.weight"] - plain[f"{tensor}.weight"]
    assert_close(changed, 6 / 3**0.5 * product, 1e-5)


@pytest.mark.parametrize("query_lora_rank", [12, None])
def test_an_adapter_of_a_projection_to_heads_is_read(tmp_path, query_lora_rank):
    """Of a rank by which the queries have an A a head, and keys and values a whole matrix."""
    model = make_model(query_lora_rank=query_lora_rank)
    plain = {n: x for e in model.checkpoint_entries() for n, x in read_entry(e)}
    names = ["q_proj" if query_lora_rank is None else "q_b_proj", "kv_b_proj", "o_proj"]
    names = [f"model.layers.{index}.self_attn.{name}" for index in (0, 1) for name in names]
    shapes = {}
    for name in names:
        outputs, inputs = plain[f"{name}.weight"].shape
        shapes |= shapes_of(f"base_model.model.{name}", inputs, outputs, rank=5)
    folder = write_adapter(tmp_path / "a", shapes)
    load_peft_adapter(model, folder)
    model.save_to_preset(tmp_path / "merged")
    merged = read_tensors(tmp_path / "merged" / "model.safetensors")
    tensors = read_tensors(folder / WEIGHTS)
    assert {n for n in merged if not np.array_equal(merged[n], plain[n])} == {
        f"{name}.weight" for name in names
    }
    for name in names:
        down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert_close(merged[f"{name}.weight"] - plain[f"{name}.weight"], 6 / 5 * up @ down, 1e-5)
    save_peft_adapter(model, tmp_path / "again")
    fresh = make_model(query_lora_rank=query_lora_rank)
    load_peft_adapter(fresh, tmp_path / "again")
    assert_close(compute(fresh), compute(model))


def test_an_adapter_of_dense_layers_and_the_embedding_is_read(tmp_path):
    """As `peft` wrote them on transformers 4, a copy of the table among them."""
    gate, embedding = f"{PREFIX}.0.mlp.gate_proj", "base_model.model.model.embed_tokens"
    shapes = {
        **shapes_of(gate, 24, 128),
        f"{embedding}.lora_embedding_A": (3, 31),
        f"{embedding}.lora_embedding_B": (24, 3),
    }
    folder = write_adapter(tmp_path / "a", shapes)
    model = make_model()
    plain = {n: x for e in model.checkpoint_entries() for n, x in read_entry(e)}
    tensors = read_tensors(folder / WEIGHTS)
    table = plain["model.embed_tokens.weight"]
    write_tensors(folder / WEIGHTS, {**tensors, f"{embedding}.base_layer.weight": table})
    load_peft_adapter(model, folder)
    model.save_to_preset(tmp_path / "merged")
    merged = read_tensors(tmp_path / "merged" / "model.safetensors")
    changes = {name: merged[name] - plain[name] for name in merged}
    assert {name for name, change in changes.items() if change.any()} == {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
    }
    product = tensors[f"{gate}.lora_B.weight"] @ tensors[f"{gate}.lora_A.weight"]
    assert_close(changes["model.layers.0.mlp.gate_proj.weight"], 2 * product, 1e-5)
    a, b = (tensors[f"{embedding}.lora_embedding_{x}"] for x in "AB")
    assert_close(changes["model.embed_tokens.weight"], 2 * (b @ a).T, 1e-5)
    write_tensors(folder / WEIGHTS, {**tensors, f"{embedding}.base_layer.weight": 2 * table})
    with pytest.raises(InvalidInputError, match="differ from the model's"):
        load_peft_adapter(make_model(), folder)


def test_of_v4_it_goes_by_the_names_of_transformers(tmp_path):
    model = tune(make_v4_model(), target_names=["query_down", "query_up", "head_weight", "gate"])
    save_peft_adapter(model, tmp_path / "adapter")
    names = json.loads((tmp_path / "adapter" / CONFIG).read_text())["target_modules"]
    assert set(names) == {
        "model.layers.0.self_attn.q_a_proj",
        "model.layers.0.self_attn.q_b_proj",
        "model.layers.0.self_attn.compressor.gate_proj",
        "model.layers.0.self_attn.compressor.indexer.gate_proj",
        "model.layers.0.self_attn.compressor.indexer.q_b_proj",
        "model.layers.0.self_attn.compressor.indexer.scorer.weights_proj",
        "model.layers.0.mlp.shared_experts.gate_proj",
    }
    fresh = make_v4_model()
    load_peft_adapter(fresh, tmp_path / "adapter")
    assert_close(compute(fresh), compute(model))
    with pytest.raises(NotSupportedError, match=r"output_down can't be written for `peft`"):
        save_peft_adapter(tune(make_v4_model(), target_names=["output_down"]), tmp_path / "a")


def test_what_is_no_such_adapter_is_refused(tmp_path):
    model = make_model()
    some = tune(make_model(), target_names=["key_up"])
    heads = shapes_of(f"{PREFIX}.0.self_attn.kv_b_proj", 32, 128)
    with pytest.raises(NotSupportedError, match=r"layers\.0\.self_attn\.kv_b_proj that Keras"):
        load_peft_adapter(some, write_adapter(tmp_path / "heads", heads))
    other = shapes_of(f"{PREFIX}.7.self_attn.o_proj", 64, 24)
    with pytest.raises(InvalidInputError, match=r"layers\.7\.self_attn\.o_proj not in the model"):
        load_peft_adapter(model, write_adapter(tmp_path / "other", other))
    for name in ("experts.0.up_proj", "experts.base_layer", "experts", "gate"):
        expert = shapes_of(f"{PREFIX}.1.mlp.{name}", 24, 32)
        with pytest.raises(NotSupportedError, match=rf"1\.mlp\.{name} that Keras layers"):
            load_peft_adapter(model, write_adapter(tmp_path / name, expert))
    wide = shapes_of(f"{PREFIX}.0.self_attn.o_proj", 63, 24)
    with pytest.raises(InvalidInputError, match="do not fit"):
        load_peft_adapter(model, write_adapter(tmp_path / "wide", wide))
    with pytest.raises(NotSupportedError, match="`use_dora`"):
        load_peft_adapter(model, write_adapter(tmp_path / "dora", other, use_dora=True))
    half = dict(list(other.items())[:1])
    with pytest.raises(CheckpointError, match="Unexpected or missing tensors"):
        load_peft_adapter(model, write_adapter(tmp_path / "half", half))
    with pytest.raises(CheckpointError, match="can't be read"):
        load_peft_adapter(model, tmp_path / "none")
    assert len(model.trainable_variables) == len(make_model().trainable_variables)


def test_what_peft_has_no_form_of_is_not_written(tmp_path):
    with pytest.raises(NotSupportedError, match=r"treats .* as experts"):
        save_peft_adapter(tune(make_model(), target_names=["gate"]), tmp_path / "a")
    tied = tune(make_model(tie_word_embeddings=True), target_names=["token_embedding"])
    with pytest.raises(NotSupportedError, match="token_embedding can't be written for"):
        save_peft_adapter(tied, tmp_path / "a")
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    enable_lora(plain, 1)
    with pytest.raises(InvalidInputError, match="Use save_lora_weights"):
        save_peft_adapter(plain, tmp_path / "a")
    assert not (tmp_path / "a").exists()
