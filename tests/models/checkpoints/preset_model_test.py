import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError, InvalidInputError, NotSupportedError
from keras_deepseek.models import BertMaskedLM, load_lora_weights, load_peft_adapter
from keras_deepseek.models.checkpoints.checkpoint_entry import copied_entry
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.preset_config import PresetConfig
from tests.models.checkpoints.weights_reader_test import assert_equal, scale
from tests.oracles.preset_model import (
    SmallModel,
    make_model,
    make_tensors,
    read_weights_of,
    write_preset,
)

INPUTS = {
    "token_ids": np.array([[1, 2, 3, 4], [5, 6, 7, 0]], "int32"),
    "padding_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], "int32"),
}


def predict(model):
    return keras.ops.convert_to_numpy(model(INPUTS))


def write_vocabulary(folder, size):
    vocabulary = {f"t{number}": number for number in range(size)}
    content = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "t1"}')


@pytest.fixture
def preset(tmp_path):
    write_preset(tmp_path / "preset", make_model(1))
    return tmp_path / "preset"


def test_a_model_that_was_written_is_read_again(tmp_path):
    model = make_model(1, hidden_dim=8)
    model.save_to_preset(tmp_path / "preset")
    again = SmallModel.from_preset(tmp_path / "preset")
    assert again.config == model.config
    assert_equal(read_weights_of(again), read_weights_of(model))


def test_a_preset_of_others_is_read(preset):
    model = SmallModel.from_preset(preset)
    assert_equal(read_weights_of(model), read_weights_of(make_model(1)))
    assert model.tokenizer is None
    assert model.generation_config == {}


def test_what_is_written_says_what_it_is(tmp_path):
    make_model().save_to_preset(tmp_path / "preset")
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    assert config == {
        "architectures": ["SmallForCausalLM"],
        "dtype": "float32",
        "hidden_size": 6,
        "model_type": "small",
        "n_experts": 3,
        "vocab_size": 40,
    }
    assert sorted(os.listdir(tmp_path / "preset")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_is_written_and_read_in_half_precision(tmp_path, dtype):
    model = make_model(1)
    model.save_to_preset(tmp_path / "preset", dtype=dtype)
    assert json.loads((tmp_path / "preset" / "config.json").read_text())["dtype"] == dtype
    again = SmallModel.from_preset(tmp_path / "preset", dtype=dtype)
    assert {weight.dtype for weight in again.weights} <= {dtype, "int32", "float32"}
    assert again.small_layers["head"].kernel.dtype == again.dtype_policy.name == dtype
    assert_equal(read_weights_of(again), read_weights_of(model), 0.02)
    norm = SmallModel.from_preset(tmp_path / "preset").small_layers["norm"]
    assert np.array_equal(norm.gamma, model.small_layers["norm"].gamma)  # Kept in float32.


def test_a_preset_in_shards_is_replaced_by_one_of_one_file(tmp_path):
    model = make_model(1)
    model.save_to_preset(tmp_path / "preset", max_shard_bytes=400)
    assert len(os.listdir(tmp_path / "preset")) > 4
    again = SmallModel.from_preset(tmp_path / "preset")
    assert_equal(read_weights_of(again), read_weights_of(model))
    again.save_to_preset(tmp_path / "preset")
    assert len(os.listdir(tmp_path / "preset")) == 2


def test_the_weights_may_be_left_random(preset):
    (preset / "model.safetensors").unlink()
    model = SmallModel.from_preset(preset, load_weights=False)
    assert np.abs(model.small_layers["head"].kernel).max() > 0
    with pytest.raises(CheckpointError, match=r"has neither 'model\.safetensors'"):
        SmallModel.from_preset(preset)


def test_the_config_may_name_the_file_of_the_weights(preset, tmp_path):
    model = make_model(2)
    write_preset(preset, model, transformers_weights="tuned.safetensors")
    (preset / "model.safetensors").rename(preset / "tuned.safetensors")
    write_preset(tmp_path / "other", make_model(1))
    (tmp_path / "other" / "model.safetensors").rename(preset / "model.safetensors")
    again = SmallModel.from_preset(preset)
    assert_equal(read_weights_of(again), read_weights_of(model))
    again.save_to_preset(tmp_path / "new")
    assert_equal(read_weights_of(SmallModel.from_preset(tmp_path / "new")), read_weights_of(model))


def test_values_of_the_config_are_overridden(preset):
    model = SmallModel.from_preset(preset, load_weights=False, vocabulary_size=50)
    assert model.config.vocabulary_size == 50
    with pytest.raises(InvalidInputError, match="did you mean 'vocabulary_size'"):
        SmallModel.from_preset(preset, vocabulary_sise=50)
    with pytest.raises(
        CheckpointError, match=r"'embed\.weight' has shape \(40, 6\), expected \(50, 6\)"
    ):
        SmallModel.from_preset(preset, vocabulary_size=50)


def test_float8_is_read_by_the_blocks_of_the_config(preset):
    model = make_model(1)
    tensors = make_tensors(model)
    for name in ("up.weight", "experts.1.weight"):
        tensors[name], tensors[f"{name}_scale_inv"] = scale(tensors[name], (2, 5))
    quantization = {"quant_method": "fp8", "weight_block_size": [2, 5], "fmt": "e4m3"}
    write_preset(preset, model, tensors, quantization_config=quantization)
    again = SmallModel.from_preset(preset)
    assert_equal(read_weights_of(again), read_weights_of(model), 0.2)
    again.save_to_preset(preset)
    assert "quantization_config" not in json.loads((preset / "config.json").read_text())


def test_float8_without_a_word_of_it_in_the_config_is_read_by_the_usual_blocks(preset):
    model = make_model(1)
    tensors = make_tensors(model)
    scaled, scales = scale(tensors["up.weight"], (128, 128))
    write_preset(preset, model, {**tensors, "up.weight": scaled, "up.weight_scale_inv": scales})
    assert_equal(read_weights_of(SmallModel.from_preset(preset)), read_weights_of(model), 0.2)
    scaled, scales = scale(tensors["up.weight"], (2, 5))
    write_preset(preset, model, {**tensors, "up.weight": scaled, "up.weight_scale_inv": scales})
    with pytest.raises(CheckpointError, match=r"expected \(1, 1\) for blocks of 128 by 128"):
        SmallModel.from_preset(preset)


def test_another_quantization_is_told(preset):
    write_preset(preset, make_model(), quantization_config={"quant_method": "gptq"})
    with pytest.raises(NotSupportedError, match=r"quantized by 'gptq' .*; expected 'fp8'"):
        SmallModel.from_preset(preset)


def test_a_wrong_architecture_is_told(preset):
    write_preset(preset, make_model(), architectures=["OtherModel"])
    with pytest.raises(
        InvalidInputError,
        match=r"a checkpoint of OtherModel .*and SmallModel reads SmallForCausalLM or OldSmall",
    ):
        SmallModel.from_preset(preset)
    write_preset(preset, make_model(), architectures=None)
    with pytest.raises(InvalidInputError, match=r"of no architecture \(model_type 'small'\)"):
        SmallModel.from_preset(preset)
    write_preset(preset, make_model(), architectures=["OldSmallForCausalLM"])
    SmallModel.from_preset(preset)


def test_the_error_names_the_class_that_reads_the_architecture(preset):
    write_preset(preset, make_model(), architectures=["BertForPreTraining"])
    with pytest.raises(InvalidInputError, match="Use BertMaskedLM, or set"):
        SmallModel.from_preset(preset)


def test_a_preset_of_keras_hub_is_known_as_one(preset):
    config = {"module": "keras_hub", "registered_name": "keras_hub>BertBackbone", "config": {}}
    (preset / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match="preset of KerasHub, of its class 'keras_hub>Bert"):
        SmallModel.from_preset(preset)


def test_the_class_above_reads_the_architectures_of_those_below(preset):
    assert type(PresetModel.from_preset(preset)) is SmallModel
    write_preset(preset, make_model(), architectures=["OtherModel"])
    with pytest.raises(InvalidInputError, match=r"PresetModel reads .*SmallForCausalLM"):
        PresetModel.from_preset(preset)


def test_a_dtype_that_is_none_is_told(preset):
    with pytest.raises(InvalidInputError, match=r"must be a dtype policy, .* received 'bf16'"):
        SmallModel.from_preset(preset, dtype="bf16")


def test_a_size_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=r"BertMaskedLM\(BertConfig\.from_preset\('tiny'\)"):
        BertMaskedLM.from_preset("tiny")


def test_quantized_layers_are_not_written(tmp_path):
    model = SmallModel(make_model().config)
    model.small_layers["mixer"].up.quantize("int8")
    with pytest.raises(NotSupportedError, match=r"1 layers are quantized, such as '.*up'"):
        model.save_to_preset(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_an_unknown_key_of_the_config_is_told(preset):
    write_preset(preset, make_model(), rope_scaling={"factor": 4})
    with pytest.raises(InvalidInputError, match="unknown keys: 'rope_scaling'"):
        SmallModel.from_preset(preset)


def test_a_tokenizer_that_does_not_fit_is_told_when_read_and_when_written(preset, tmp_path):
    write_vocabulary(preset, 41)
    words = "token ids up to 40, and the model has embeddings for only 40"
    with pytest.raises(InvalidInputError, match=words):
        SmallModel.from_preset(preset)
    model = make_model()
    model._tokenizer_files = {"tokenizer.json": (preset / "tokenizer.json").read_bytes()}
    with pytest.raises(InvalidInputError, match=words):
        model.save_to_preset(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_older_tokenizer_is_kept_and_is_none(preset, tmp_path):
    (preset / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (preset / "tokenizer_config.json").write_text("{}")
    model = SmallModel.from_preset(preset)
    assert model.tokenizer is None
    model.save_to_preset(tmp_path / "new")
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (preset / name).read_bytes()


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_small_files_that_are_torn_are_told_before_the_weights_are_read(preset, monkeypatch, name):
    if name == "tokenizer_config.json":
        pytest.importorskip("tokenizers")
        write_vocabulary(preset, 40)
    monkeypatch.setattr(
        "keras_deepseek.models.checkpoints.preset_model.read_weights",
        lambda *args, **kwargs: pytest.fail("The weights were read."),
    )
    (preset / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"{name}' is not JSON"):
        SmallModel.from_preset(preset)


def test_architectures_that_are_no_list_are_told(preset):
    write_preset(preset, make_model(), architectures="SmallForCausalLM")
    with pytest.raises(InvalidInputError, match=r"must be a list, .* received 'SmallForCausalLM'"):
        SmallModel.from_preset(preset)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told(preset, name):
    (preset / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614\nsize 12345\n"
    )
    with pytest.raises(CheckpointError, match=rf"'{name}' is a pointer of Git LFS"):
        SmallModel.from_preset(preset)


def test_what_is_no_tokenizer_is_not_written(tmp_path):
    model = make_model()
    model.tokenizer = "x"
    with pytest.raises(InvalidInputError, match=r"must be a .*Tokenizer .*received 'x'"):
        model.save_to_preset(tmp_path / "new")


def test_a_tokenizer_that_does_not_fit_leaves_an_older_file_as_it_was(preset, tmp_path):
    path = tmp_path / "model.keras"
    model = make_model()
    model.save(path)
    written = path.read_bytes()
    write_vocabulary(preset, 41)
    model._tokenizer_files = {"tokenizer.json": (preset / "tokenizer.json").read_bytes()}
    with pytest.raises(InvalidInputError, match="token ids up to 40"):
        model.save(path)
    assert path.read_bytes() == written
    with pytest.raises(InvalidInputError, match="token ids up to 40"):
        keras.saving.save_model(model, tmp_path / "other.keras")


def test_a_model_whose_tokenizer_was_taken_away_is_saved_without(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "keras_deepseek.models.checkpoints.preset_assets.is_installed", lambda: False
    )
    write_vocabulary(preset, 40)
    model = SmallModel.from_preset(preset)
    model.tokenizer = None
    model.save_to_preset(preset)
    assert sorted(os.listdir(preset)) == ["config.json", "model.safetensors"]
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras")._tokenizer_files == {}


def test_a_tokenizer_that_was_set_goes_in_place_of_the_presets(preset, tmp_path):
    write_vocabulary(preset, 40)
    model = SmallModel.from_preset(preset)
    files = {"tokenizer.json": b'{"model": {"vocab": {"a": 0}}}'}
    model.tokenizer = SimpleNamespace(files=files)
    model.save_to_preset(tmp_path / "new")
    assert not (tmp_path / "new" / "tokenizer_config.json").exists()
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == files["tokenizer.json"]


@pytest.mark.parametrize("name", ["load_weights", "verbose"])
def test_options_that_are_no_booleans_are_told(preset, name):
    with pytest.raises(InvalidInputError, match=f"`{name}` must be True or False, received 'no'"):
        SmallModel.from_preset(preset, **{name: "no"})


@pytest.mark.parametrize("load_weights", [True, False])
def test_a_policy_that_quantizes_is_refused(preset, load_weights):
    with pytest.raises(NotSupportedError, match="`dtype` can't be 'float8_from_float32'"):
        SmallModel.from_preset(preset, dtype="float8_from_float32", load_weights=load_weights)


@pytest.mark.parametrize("is_installed", [True, False])
def test_tokenizer_and_generation_config_go_along(preset, tmp_path, monkeypatch, is_installed):
    if is_installed:
        pytest.importorskip("tokenizers")
    monkeypatch.setattr(
        "keras_deepseek.models.checkpoints.preset_assets.is_installed", lambda: is_installed
    )
    write_vocabulary(preset, 40)
    (preset / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    model = SmallModel.from_preset(preset)
    assert (model.tokenizer is not None) is is_installed
    assert model.generation_config["eos_token_id"] == [1, 2]
    model.save_to_preset(tmp_path / "new")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (preset / name).read_bytes()
    assert SmallModel.from_preset(tmp_path / "new").generation_config == model.generation_config
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.generation_config == model.generation_config
    assert (again.tokenizer is not None) is is_installed
    assert again._tokenizer_files == model._tokenizer_files


def test_a_lora_is_written_with_its_kernel(preset, tmp_path):
    model = SmallModel.from_preset(preset)
    for layer in (model.small_layers["mixer"].up, model.small_layers["embedding"]):
        layer.enable_lora(2)
        for variable in layer.trainable_variables:
            variable.assign(np.random.default_rng(3).normal(size=variable.shape))
    model.save_to_preset(tmp_path / "new")
    merged = SmallModel.from_preset(tmp_path / "new")
    assert np.abs(predict(merged)).max() > 0.01
    assert np.allclose(predict(merged), predict(model), atol=1e-4)


def test_a_wrong_dtype_or_size_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(InvalidInputError, match="Unknown `dtype` 'float8'"):
        make_model().save_to_preset(tmp_path / "preset", dtype="float8")
    with pytest.raises(InvalidInputError, match="`max_shard_bytes` must be a positive integer"):
        make_model().save_to_preset(tmp_path / "preset", max_shard_bytes=0)
    assert os.listdir(tmp_path) == []


def test_a_map_that_leaves_a_variable_out_or_has_it_twice_is_told(preset, monkeypatch):
    entries_of = SmallModel.checkpoint_entries
    monkeypatch.setattr(SmallModel, "checkpoint_entries", lambda self, _: entries_of(self)[1:])
    with pytest.raises(InvalidInputError, match=r"\['.*embeddings'\] have none or several"):
        SmallModel.from_preset(preset)
    monkeypatch.setattr(
        SmallModel,
        "checkpoint_entries",
        lambda self, _: [*entries_of(self), copied_entry(self.small_layers["norm"].beta, "more")],
    )
    with pytest.raises(InvalidInputError, match=r"\['.*beta'\] have none or several"):
        SmallModel.from_preset(preset)


def test_it_is_a_plain_model_that_keras_saves_and_clones(preset, tmp_path):
    model = SmallModel.from_preset(preset)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_equal(read_weights_of(again), read_weights_of(model))
    assert isinstance(again, keras.Model)
    again.save_to_preset(tmp_path / "again")
    assert_equal(
        read_weights_of(SmallModel.from_preset(tmp_path / "again")), read_weights_of(model)
    )


def test_a_folder_needs_no_other_package(preset, tmp_path, monkeypatch):
    for name in ("safetensors", "tokenizers", "huggingface_hub", "transformers", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    SmallModel.from_preset(preset).save_to_preset(tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").exists()


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras shards variables on JAX alone")
def test_of_sharded_variables_each_device_is_given_its_part(tmp_path):
    root = Path(__file__).parents[3]
    program = root / "tests" / "oracles" / "sharded_preset.py"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env={**os.environ, **flags},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["are_equal"]
    assert report["is_written_alike"]
    assert report["is_sharded_still"]
    assert report["rows"] == [[0, 2], [2, 4], [4, 6], [6, 8]]
    parts = report["parts"]
    assert parts["token_embedding/embeddings"] == [10, 6]
    assert parts["logits/kernel"] == [6, 10]
    assert parts["mixer/experts"] == [2, 5, 6]
    assert parts["mixer/gate/kernel"] == [6, 5]


@pytest.mark.nightly
def test_several_processes_read_their_parts_and_one_of_them_writes(tmp_path):
    source = make_model(1, num_experts=8)
    source.save_to_preset(tmp_path / "one", verbose=False)
    root = Path(__file__).parents[3]
    launch = [sys.executable, "-m", "keras_deepseek.cli", "launch", "--nproc", "2"]
    result = subprocess.run(
        [*launch, str(root / "tests" / "oracles" / "shared_preset.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    experts = keras.ops.convert_to_numpy(source.small_layers["mixer"].experts)
    for report in reports:
        # Keras shares variables out on JAX alone.
        assert report["experts"] == [4 if keras.backend.backend() == "jax" else 8, 5, 6]
        assert report["sum"] == pytest.approx(experts.sum(), abs=1e-4)
    assert [report["num_written"] for report in reports] == [1, 0]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert [report["adapted"] for report in reports] == [["logits"]] * 2
    load_lora_weights(source, tmp_path / "lora.safetensors")
    check_counted(source)
    other = make_model(1, num_experts=8)
    load_peft_adapter(other, tmp_path / "peft")
    check_counted(other)


def check_counted(model):
    """The matrices are those that each process has given its own."""
    assert len(model.trainable_variables) == 2
    for variable in model.trainable_variables:
        counted = np.arange(np.prod(variable.shape)).reshape(variable.shape)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), counted)


@dataclass(frozen=True)
class WidthConfig(PresetConfig):
    width: int


class OwnModel(PresetModel):
    """A family of a user's own: it says what it is called, and nothing of its tensors."""

    architectures = ("OwnModel",)
    config_class = WidthConfig

    def __init__(self, config, *, dtype=None, **kwargs):
        inputs = keras.Input((3,))
        hidden = keras.layers.Dense(config.width, dtype=dtype)(inputs)
        super().__init__(inputs, keras.layers.Dense(2, dtype=dtype)(hidden), **kwargs)
        self.config = config
        self.layers_policy = keras.dtype_policies.get(dtype)


def test_a_family_of_ones_own_goes_by_the_paths_of_its_variables(tmp_path):
    model = OwnModel(WidthConfig(width=4))
    model.save_to_preset(tmp_path / "preset", verbose=False)
    assert json.loads((tmp_path / "preset" / "config.json").read_text()) == {
        "architectures": ["OwnModel"],
        "dtype": "float32",
        "width": 4,
    }
    again = OwnModel.from_preset(tmp_path / "preset", verbose=False)
    assert again.config == model.config
    assert_equal(read_weights_of(again), read_weights_of(model))
    with pytest.raises(CheckpointError, match=r"'dense/bias' has shape \(4,\), expected \(5,\)"):
        OwnModel.from_preset(tmp_path / "preset", verbose=False, width=5)


def test_a_family_without_a_name_is_not_written(tmp_path):
    class Nameless(OwnModel):
        architectures = ()

    with pytest.raises(InvalidInputError, match="Nameless has no `architectures`"):
        Nameless(WidthConfig(width=4)).save_to_preset(tmp_path / "preset", verbose=False)
    assert not list(tmp_path.iterdir())
