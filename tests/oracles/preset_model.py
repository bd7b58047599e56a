"""A small model with every kind of checkpoint entry, and folders of it that others have written."""

import json
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.models.checkpoints.checkpoint_config import check_keys
from keras_deepseek.models.checkpoints.checkpoint_entry import (
    copied_entry,
    kernel_entry,
    reshaped_entry,
    split_kernel_entry,
    stacked_entry,
)
from keras_deepseek.models.checkpoints.merged_kernels import own_variable
from keras_deepseek.models.checkpoints.preset_model import PresetModel

KEYS = {"vocab_size": "vocabulary_size", "hidden_size": "hidden_dim", "n_experts": "num_experts"}


@dataclass(frozen=True)
class SmallConfig:
    vocabulary_size: int = 40
    hidden_dim: int = 6
    num_experts: int = 3

    @classmethod
    def from_checkpoint_config(cls, checkpoint_config):
        check_keys(checkpoint_config, KEYS)
        return cls(**{name: checkpoint_config[key] for key, name in KEYS.items()})

    def to_checkpoint_config(self):
        return {"model_type": "small", **{key: getattr(self, name) for key, name in KEYS.items()}}


@keras.saving.register_keras_serializable("tests_of_checkpoints")
class SmallMixer(keras.layers.Layer):
    """Projections to and from heads, two kernels that a file has as one, and stacked experts."""

    def __init__(self, hidden_dim, num_experts, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.num_experts = num_experts

    def build(self, shape):
        dim = self.hidden_dim
        self.up = keras.layers.EinsumDense("btd,dhn->bthn", (None, 2, 3), bias_axes="hn", name="up")
        self.down = keras.layers.EinsumDense("bthn,hnd->btd", (None, dim), name="down")
        self.gate = keras.layers.Dense(5, use_bias=False, name="gate")
        self.value = keras.layers.Dense(5, use_bias=False, name="value")
        self.up.build(shape)
        self.down.build((None, None, 2, 3))
        self.gate.build(shape)
        self.value.build(shape)
        self.experts = self.add_weight(name="experts", shape=(self.num_experts, 5, dim))
        self.order = self.add_weight(
            name="order", shape=(4,), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x):
        x = x + self.down(self.up(x))
        hidden = ops.silu(self.gate(x)) * self.value(x)
        return x + ops.einsum("btf,efd->btd", hidden, self.experts)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        sizes = {"hidden_dim": self.hidden_dim, "num_experts": self.num_experts}
        return {**super().get_config(), **sizes}


@keras.saving.register_keras_serializable("tests_of_checkpoints")
class SmallModel(PresetModel):
    architectures = ("SmallForCausalLM", "OldSmallForCausalLM")
    config_class = SmallConfig
    ignored_tensors = ("*.inv_freq",)
    float32_tensors = ("norm.*",)

    def __init__(self, config, *, dtype=None, **kwargs):
        policy = keras.dtype_policies.get(dtype)
        ids = keras.Input((None,), dtype="int32", name="token_ids")
        mask = keras.Input((None,), dtype="int32", name="padding_mask")
        embedding = keras.layers.Embedding(
            config.vocabulary_size, config.hidden_dim, dtype=policy, name="token_embedding"
        )
        mixer = SmallMixer(config.hidden_dim, config.num_experts, dtype=policy, name="mixer")
        norm = keras.layers.LayerNormalization(dtype=policy, name="norm")
        head = keras.layers.Dense(
            config.vocabulary_size, use_bias=False, dtype=policy, name="logits"
        )
        x = embedding(ids) * ops.cast(mask, embedding.compute_dtype)[..., None]
        super().__init__({"token_ids": ids, "padding_mask": mask}, head(norm(mixer(x))), **kwargs)
        self.config = config
        self.layers_policy = policy
        self.small_layers = {"embedding": embedding, "mixer": mixer, "norm": norm, "head": head}

    def checkpoint_entries(self, tensors=()):
        layers = self.small_layers
        mixer = layers["mixer"]
        return [
            copied_entry(own_variable(layers["embedding"], "embeddings"), "embed.weight"),
            kernel_entry(own_variable(mixer.up), "up.weight"),
            reshaped_entry(mixer.up.bias, "up.bias", (6,)),
            kernel_entry(own_variable(mixer.down), "down.weight", num_input_axes=2),
            split_kernel_entry(
                (own_variable(mixer.gate), own_variable(mixer.value)), "gate_value.weight"
            ),
            stacked_entry(
                mixer.experts,
                [f"experts.{number}.weight" for number in range(mixer.num_experts)],
            ),
            copied_entry(mixer.order, "order"),
            copied_entry(layers["norm"].gamma, "norm.weight"),
            copied_entry(layers["norm"].beta, "norm.bias"),
            kernel_entry(own_variable(layers["head"]), "head.weight"),
        ]


def make_model(seed: int = 0, **config: Any) -> SmallModel:
    """Returns a model whose every weight is random."""
    model = SmallModel(SmallConfig(**config))
    random = np.random.default_rng(seed)
    for variable in model.weights:
        if "int" in variable.dtype:
            variable.assign(random.integers(0, 9, variable.shape))
        else:
            variable.assign(random.normal(size=variable.shape))
    return model


def read_weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights of a model by their paths below the model, in float32."""
    return {
        variable.path.partition("/")[2] if model.name in variable.path else variable.path: (
            keras.ops.convert_to_numpy(variable.value).astype("float32")
        )
        for variable in model.weights
    }


def make_tensors(model: SmallModel) -> dict[str, np.ndarray]:
    """Returns the tensors of the checkpoint of a model by name."""
    tensors = {}
    for entry in model.checkpoint_entries():
        values = [keras.ops.convert_to_numpy(variable.value) for variable in entry.variables]
        tensors.update(zip(entry.tensors, entry.to_tensors(values), strict=True))
    return tensors


def encode_safetensors(tensors: dict[str, np.ndarray], names: dict[str, str]) -> bytes:
    """Returns the bytes of a file, written here anew; `names` are the form's names of dtypes."""
    header, data = {}, b""
    for name, array in tensors.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_preset(folder, model: SmallModel, tensors=None, **config: Any) -> None:
    """Writes a preset of one file in the plainest way."""
    folder.mkdir(exist_ok=True)
    tensors = make_tensors(model) if tensors is None else tensors
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, NAMES))
    written = {
        **model.config.to_checkpoint_config(),
        "architectures": ["SmallForCausalLM"],
        **config,
    }
    (folder / "config.json").write_text(json.dumps(written))
