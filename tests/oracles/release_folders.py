"""Tiny folders in the form in which DeepSeek released V3 and V4, of random bytes.

By what is known of the releases: names, shapes and dtypes of tensors, and their `config.json`. A
float8 or float4 code is drawn, not rounded to, and what it stands for is told by
`scaled_weights`; no code of the package takes part.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.oracles import scaled_weights

V4_CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "compress_ratios": [0, 4, 0],
    "compress_rope_theta": 160000,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 5,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 64,
    "index_head_dim": 32,
    "index_n_heads": 16,
    "index_topk": 3,
    "initializer_range": 0.02,
    "max_position_embeddings": 256,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 64,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 4,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "use_cache": True,
    "vocab_size": 40,
}
V3_CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_deepseek.DeepseekV3Config",
        "AutoModel": "modeling_deepseek.DeepseekV3Model",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
    },
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "kv_lora_rank": 24,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 16,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 8,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
    "v_head_dim": 16,
    "vocab_size": 40,
}


class Tensor(NamedTuple):
    """What a release has of a tensor; `block` is that of its scales, where it has some."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    block: tuple[int, int] | None = None


class Stored(NamedTuple):
    """A tensor as it lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


class Release(NamedTuple):
    """A checkpoint: its config, its tensors as they lie in files, and their numbers by name."""

    config: dict[str, Any]
    stored: dict[str, Stored]
    numbers: dict[str, np.ndarray]

    def write(self, folder: Path) -> Path:
        """Writes the folder, and returns it."""
        write_stored(folder, self.config, self.stored)
        return folder

    def write_plain(self, folder: Path) -> Path:
        """Writes one with the numbers in float32 and no quantization, and returns it."""
        config = {key: x for key, x in self.config.items() if key != "quantization_config"}
        stored = {
            name: Stored("I64" if array.dtype.kind == "i" else "F32", array.shape, array.tobytes())
            for name, array in self.numbers.items()
        }
        write_stored(folder, config, stored)
        return folder


def draw_v4(**config: Any) -> Release:
    """Returns a checkpoint as of V4."""
    values = {**V4_CONFIG, **config}
    return Release(values, *draw_stored(list_v4(values), ".scale", "F8_E8M0"))


def draw_v3(**config: Any) -> Release:
    """Returns a checkpoint as of V3, whose module for further tokens has copies of two tensors."""
    values = {**V3_CONFIG, **config}
    stored, numbers = draw_stored(list_v3(values), ".weight_scale_inv", "F32")
    further = f"model.layers.{values['num_hidden_layers']}."
    for name, copy in (
        ("model.embed_tokens.weight", f"{further}embed_tokens.weight"),
        ("lm_head.weight", f"{further}shared_head.head.weight"),
    ):
        stored[copy], numbers[copy] = stored[name], numbers[name]
    return Release(values, stored, numbers)


def write_stored(folder: Path, config: dict[str, Any], stored: dict[str, Stored]) -> None:
    """Writes a folder of two shards and their index."""
    folder.mkdir(exist_ok=True)
    names, weight_map = list(stored), {}
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for number, half in enumerate(halves, 1):
        file_name = f"model-{number:05}-of-00002.safetensors"
        header, data = {}, b""
        for name in half:
            content = stored[name].content
            header[name] = {
                "dtype": stored[name].dtype,
                "shape": list(stored[name].shape),
                "data_offsets": [len(data), len(data) + len(content)],
            }
            data += content
            weight_map[name] = file_name
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        (folder / file_name).write_bytes(len(text).to_bytes(8, "little") + text + data)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def draw_stored(
    tensors: Iterator[Tensor], scale_suffix: str, scale_dtype: str
) -> tuple[dict[str, Stored], dict[str, np.ndarray]]:
    """Returns random tensors as they lie in files, scales among them, and their numbers."""
    rng = np.random.default_rng(0)
    stored: dict[str, Stored] = {}
    numbers: dict[str, np.ndarray] = {}
    for name, dtype, shape, block in tensors:
        if block is None:
            stored[name], numbers[name] = _draw_plain(rng, name, dtype, shape)
            continue
        columns = shape[1] // 2 if dtype == "I8" else shape[1]
        codes = rng.integers(0, 256, (shape[0], columns)).astype("uint8")
        if dtype == "I8":
            values, exponent = scaled_weights.decode_float4(codes), -5
        else:
            codes[codes % 128 == 127] = 0  # Which are no numbers.
            values, exponent = scaled_weights.decode_float8(codes), -9
        grid = tuple(-(-size // block_size) for size, block_size in zip(shape, block, strict=True))
        scales = 2.0 ** rng.integers(exponent - 1, exponent + 2, grid)
        if scale_dtype == "F32":
            scales *= rng.uniform(1, 2, grid)
            scales = scales.astype("float32")
            content = scales.tobytes()
        else:
            content = (127 + np.log2(scales)).astype("uint8").tobytes()
        stored[name] = Stored(dtype, codes.shape, codes.tobytes())
        scale_name = name.removesuffix(".weight") + scale_suffix
        stored[scale_name] = Stored(scale_dtype, grid, content)
        numbers[name] = scaled_weights.multiply(values, scales, block)
    return stored, numbers


def _draw_plain(
    rng: np.random.Generator, name: str, dtype: str, shape: tuple[int, ...]
) -> tuple[Stored, np.ndarray]:
    if dtype == "I64":  # Which experts a token goes to: no two the same.
        numbers = np.stack([rng.permutation(shape[1] + 2)[: shape[1]] for _ in range(shape[0])])
        return Stored(dtype, shape, numbers.astype("<i8").tobytes()), numbers
    is_scale = "norm" in name
    numbers = (is_scale + 0.2 * rng.normal(size=shape)).astype("<f4")
    if dtype == "F32":
        return Stored(dtype, shape, numbers.tobytes()), numbers
    upper = (numbers.view("<u4") >> 16).astype("<u2")  # The half of the bits that bfloat16 has.
    return Stored(dtype, shape, upper.tobytes()), (upper.astype("<u4") << 16).view("<f4")


def list_v4(config: dict[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors of a V4, those with scales aside."""
    dim, vocabulary = config["hidden_size"], config["vocab_size"]
    streams = config["hc_mult"]
    yield Tensor("embed.weight", "BF16", (vocabulary, dim))
    yield Tensor("head.weight", "BF16", (vocabulary, dim))
    yield Tensor("norm.weight", "BF16", (dim,))
    yield from _list_streams("hc_head_", streams, streams, 1, dim)
    for index, ratio in enumerate(config["compress_ratios"]):
        further = index - config["num_hidden_layers"]
        prefix = f"layers.{index}." if further < 0 else f"mtp.{further}."
        yield from _list_v4_attention(config, prefix + "attn.", ratio)
        yield from _list_v4_experts(config, prefix + "ffn.", index)
        for kind in ("attn", "ffn"):
            yield Tensor(f"{prefix}{kind}_norm.weight", "BF16", (dim,))
            width = (2 + streams) * streams
            yield from _list_streams(f"{prefix}hc_{kind}_", width, streams, 3, dim)
        if further >= 0:
            block = tuple(config["quantization_config"]["weight_block_size"])
            yield from _list_streams(f"{prefix}hc_head_", streams, streams, 1, dim)
            for name in ("e_proj", "h_proj"):
                yield Tensor(f"{prefix}{name}.weight", "F8_E4M3", (dim, dim), block)
            for name in ("enorm", "hnorm", "norm"):
                yield Tensor(f"{prefix}{name}.weight", "BF16", (dim,))


def _list_streams(
    prefix: str, width: int, streams: int, num_scales: int, dim: int
) -> Iterator[Tensor]:
    yield Tensor(f"{prefix}fn", "F32", (width, streams * dim))
    yield Tensor(f"{prefix}base", "F32", (width,))
    yield Tensor(f"{prefix}scale", "F32", (num_scales,))


def _list_v4_attention(config: dict[str, Any], prefix: str, ratio: int) -> Iterator[Tensor]:
    dim, heads, head_dim = (
        config[key] for key in ("hidden_size", "num_attention_heads", "head_dim")
    )
    rank, groups, down = (config[key] for key in ("q_lora_rank", "o_groups", "o_lora_rank"))
    block = tuple(config["quantization_config"]["weight_block_size"])
    for name, shape in (
        ("wq_a", (rank, dim)),
        ("wq_b", (heads * head_dim, rank)),
        ("wkv", (head_dim, dim)),
        ("wo_a", (groups * down, heads * head_dim // groups)),
        ("wo_b", (dim, groups * down)),
    ):
        yield Tensor(f"{prefix}{name}.weight", "F8_E4M3", shape, block)
    yield Tensor(f"{prefix}q_norm.weight", "BF16", (rank,))
    yield Tensor(f"{prefix}kv_norm.weight", "BF16", (head_dim,))
    yield Tensor(f"{prefix}attn_sink", "F32", (heads,))
    if ratio:
        yield from _list_compressor(f"{prefix}compressor.", ratio, head_dim, dim)
    if ratio == 4:
        count, size = config["index_n_heads"], config["index_head_dim"]
        yield Tensor(f"{prefix}indexer.wq_b.weight", "F8_E4M3", (count * size, rank), block)
        yield Tensor(f"{prefix}indexer.weights_proj.weight", "BF16", (count, dim))
        yield from _list_compressor(f"{prefix}indexer.compressor.", ratio, size, dim)


def _list_compressor(prefix: str, ratio: int, head_dim: int, dim: int) -> Iterator[Tensor]:
    width = 2 * head_dim if ratio == 4 else head_dim  # Where windows overlap.
    yield Tensor(f"{prefix}wkv.weight", "BF16", (width, dim))
    yield Tensor(f"{prefix}wgate.weight", "BF16", (width, dim))
    yield Tensor(f"{prefix}ape", "F32", (ratio, width))
    yield Tensor(f"{prefix}norm.weight", "BF16", (head_dim,))


def _list_v4_experts(config: dict[str, Any], prefix: str, index: int) -> Iterator[Tensor]:
    dim, hidden, count = (
        config[key] for key in ("hidden_size", "moe_intermediate_size", "n_routed_experts")
    )
    block = tuple(config["quantization_config"]["weight_block_size"])
    yield Tensor(f"{prefix}gate.weight", "BF16", (count, dim))
    if index < config["num_hash_layers"]:
        shape = (config["vocab_size"], config["num_experts_per_tok"])
        yield Tensor(f"{prefix}gate.tid2eid", "I64", shape)
    else:
        yield Tensor(f"{prefix}gate.bias", "F32", (count,))
    for name, shape in (("w1", (hidden, dim)), ("w2", (dim, hidden)), ("w3", (hidden, dim))):
        yield Tensor(f"{prefix}shared_experts.{name}.weight", "F8_E4M3", shape, block)
        is_float4 = config.get("expert_dtype") == "fp4"
        dtype, expert_block = ("I8", (1, 32)) if is_float4 else ("F8_E4M3", block)
        for expert in range(count):
            yield Tensor(f"{prefix}experts.{expert}.{name}.weight", dtype, shape, expert_block)


def list_v3(config: dict[str, Any]) -> Iterator[Tensor]:
    """Yields the tensors of a V3, those with scales aside."""
    dim, vocabulary = config["hidden_size"], config["vocab_size"]
    count = config["num_hidden_layers"]
    yield Tensor("model.embed_tokens.weight", "BF16", (vocabulary, dim))
    yield Tensor("lm_head.weight", "BF16", (vocabulary, dim))
    yield Tensor("model.norm.weight", "BF16", (dim,))
    for index in range(count + config["num_nextn_predict_layers"]):
        prefix = f"model.layers.{index}."
        yield from _list_v3_layer(config, prefix, index)
        if index >= count:
            yield Tensor(f"{prefix}embed_tokens.weight", "BF16", (vocabulary, dim))
            yield Tensor(f"{prefix}shared_head.head.weight", "BF16", (vocabulary, dim))
            yield Tensor(f"{prefix}eh_proj.weight", "BF16", (dim, 2 * dim))
            for name in ("enorm", "hnorm", "shared_head.norm"):
                yield Tensor(f"{prefix}{name}.weight", "BF16", (dim,))


def _list_v3_layer(config: dict[str, Any], prefix: str, index: int) -> Iterator[Tensor]:
    dim, heads, value = (
        config[key] for key in ("hidden_size", "num_attention_heads", "v_head_dim")
    )
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    query, latent = config["q_lora_rank"], config["kv_lora_rank"]
    block = tuple(config["quantization_config"]["weight_block_size"])
    for name, shape in (
        ("q_a_proj", (query, dim)),
        ("q_b_proj", (heads * (nope + rope), query)),
        ("kv_a_proj_with_mqa", (latent + rope, dim)),
        ("kv_b_proj", (heads * (nope + value), latent)),
        ("o_proj", (dim, heads * value)),
    ):
        yield Tensor(f"{prefix}self_attn.{name}.weight", "F8_E4M3", shape, block)
    yield Tensor(f"{prefix}self_attn.q_a_layernorm.weight", "BF16", (query,))
    yield Tensor(f"{prefix}self_attn.kv_a_layernorm.weight", "BF16", (latent,))
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield Tensor(f"{prefix}{name}.weight", "BF16", (dim,))
    widths = {"mlp.": config["intermediate_size"]}
    if index >= config["first_k_dense_replace"]:
        count, hidden = config["n_routed_experts"], config["moe_intermediate_size"]
        yield Tensor(f"{prefix}mlp.gate.weight", "BF16", (count, dim))
        yield Tensor(f"{prefix}mlp.gate.e_score_correction_bias", "F32", (count,))
        layer_prefixes = [
            "mlp.shared_experts.",
            *(f"mlp.experts.{number}." for number in range(count)),
        ]
        widths = dict.fromkeys(layer_prefixes, hidden)
    for layer_prefix, width in widths.items():
        for name in ("gate_proj", "up_proj"):
            yield Tensor(f"{prefix}{layer_prefix}{name}.weight", "F8_E4M3", (width, dim), block)
        yield Tensor(f"{prefix}{layer_prefix}down_proj.weight", "F8_E4M3", (dim, width), block)
