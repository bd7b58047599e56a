"""Files of `safetensors`, checkpoints of `transformers` and their tokenizers, there and back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import keras
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.checkpoint_config import GENERIC_KEYS
from keras_deepseek.models.checkpoints.checkpoint_entry import copied_entry
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.tokenizers import Tokenizer
from tests.oracles.trained_tokenizer import TEXT, train_tokenizer

SIZES = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DEEPSEEK = {
    **SIZES,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "deepseek": lambda: transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(**DEEPSEEK)
    ),
}


def make(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model


@dataclass(frozen=True)
class CopiedConfig:
    """The config of any model, as it is."""

    content: Mapping = field(default_factory=dict)

    @classmethod
    def from_checkpoint_config(cls, checkpoint_config):
        return cls(dict(checkpoint_config))

    def to_checkpoint_config(self):
        return dict(self.content)


class Copies(keras.layers.Layer):
    """A variable for each tensor."""

    shapes: Mapping = {}

    def build(self, shape):
        self.copies = [
            self.add_weight(name=name.replace(".", "_"), shape=shape)
            for name, shape in self.shapes.items()
        ]

    def call(self, x):
        return x


class CopiedModel(PresetModel):
    """The tensors of any checkpoint, without what is computed of them."""

    config_class = CopiedConfig

    def __init__(self, config, *, dtype=None):
        copies = Copies(dtype=dtype)
        copies.shapes = self.shapes
        inputs = keras.Input((1,))
        super().__init__(inputs, copies(inputs))
        self.config = config
        self.copies = copies

    def checkpoint_entries(self, tensors=()):
        return [
            copied_entry(variable, name)
            for variable, name in zip(self.copies.copies, self.shapes, strict=True)
        ]


def copied_class(folder, model):
    tensors = WeightsFolder(folder).tensors
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return type(
        "Copied", (CopiedModel,), {"architectures": (type(model).__name__,), "shapes": shapes}
    )


@pytest.mark.parametrize("shard_size", ["5GB", "10KB"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_was_read_and_written_and_computes_the_same(
    name, shard_size, tmp_path
):
    model = make(name)
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard_size)
    is_sharded = (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert is_sharded == (shard_size == "10KB")
    ours = copied_class(tmp_path / "theirs", model).from_preset(tmp_path / "theirs")
    ours.save_to_preset(tmp_path / "ours", max_shard_bytes=10**4 if is_sharded else 10**9)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == is_sharded
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[key] for key in report if key.endswith("_keys"))
    assert type(again) is type(model)
    assert again.generation_config.repetition_penalty == 1.5
    ids = torch.arange(12).reshape(2, 6) * 7 % 320
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_loads_half_precision(dtype, tmp_path):
    model = make("llama").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs")
    copied = copied_class(tmp_path / "theirs", model)
    copied.from_preset(tmp_path / "theirs").save_to_preset(tmp_path / "ours", dtype=dtype)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == getattr(torch, dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_shard_of_theirs_that_is_torn_is_named(tmp_path):
    model = make("llama")
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    copied = copied_class(tmp_path, model)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=f"{shard.name}' is damaged"):
        copied.from_preset(tmp_path)


def test_files_of_safetensors_are_read_in_every_dtype(tmp_path):
    kinds = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    kinds += ("int64", "int32", "int16", "int8", "uint8", "bool")
    tensors = {
        kind: torch.tensor([[0.0, 1.0, -0.5], [3.0, 2.0, 8.0]]).abs().to(getattr(torch, kind))
        for kind in kinds
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = WeightsFolder(tmp_path)
    assert not weights.damages
    with MappedFiles() as files:
        for kind, tensor in tensors.items():
            array = files.read(weights.tensors[kind])
            assert array.dtype.name == kind
            assert np.array_equal(array.astype("float32"), tensor.float().numpy())


def test_what_is_written_is_read_by_safetensors(tmp_path):
    model = make("llama")
    model.save_pretrained(tmp_path / "theirs")
    copied = copied_class(tmp_path / "theirs", model).from_preset(tmp_path / "theirs")
    copied.save_to_preset(tmp_path / "ours", dtype="bfloat16")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    for name, array in load_file(tmp_path / "theirs" / "model.safetensors").items():
        assert np.array_equal(written[name], array.astype(ml_dtypes.bfloat16)), name


def test_every_key_that_all_configs_of_transformers_have_is_known(tmp_path):
    transformers.PretrainedConfig().save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())) <= GENERIC_KEYS
    assert {key for key in transformers.PretrainedConfig().to_dict() if key[0] != "_"} <= (
        GENERIC_KEYS
    )


CONFIGS = [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}]
CONFIGS += [{"add_bos_token": False}, {**CONFIGS[1], "tokenizer_class": "LlamaTokenizerFast"}]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_tokenizer_makes_the_tokens_and_conversations_of_transformers(tmp_path, config):
    train_tokenizer(tmp_path, **config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_preset(tmp_path)
    texts = [TEXT[:60], "", "日本語 🦊", "<s>a</s>"]
    for text in texts:
        assert ours.tokenize(text) == theirs(text)["input_ids"]
        ids = ours.tokenize(text, add_special_tokens=False)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.detokenize(ids) == theirs.decode(ids, skip_special_tokens=True)
    for side in ("left", "right"):
        padded = theirs(texts, padding=True, padding_side=side)
        batch = ours(texts, padding_side=side)
        assert batch["token_ids"].tolist() == padded["input_ids"]
        assert batch["padding_mask"].tolist() == padded["attention_mask"]
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    for adds in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=adds)
        assert ours.apply_chat_template(messages, add_generation_prompt=adds) == expected


def test_the_files_that_a_tokenizer_of_transformers_writes_are_read(tmp_path):
    train_tokenizer(tmp_path / "first")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "first")
    theirs.save_pretrained(tmp_path / "second")
    ours = Tokenizer.from_preset(tmp_path / "second")
    assert ours.special_token_ids == {"pad_token": 0, "bos_token": 1, "eos_token": 2}
    messages = [{"role": "user", "content": "Hello"}]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(messages) == expected
