"""Writes `deepseek_v4_attention.npz`: the three kinds of attention of DeepSeek-V4 in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_deepseek_v4_attention.py
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as v4

from tests.oracles.parity import write_cases

WINDOW, SPARSE, HEAVY = (
    "SlidingWindowAttention",
    "CompressedSparseAttention",
    "HeavilyCompressedAttention",
)
LAYER_TYPES = {
    WINDOW: "sliding_attention",
    SPARSE: "compressed_sparse_attention",
    HEAVY: "heavily_compressed_attention",
}
SMALL = {
    "num_heads": 4,
    "head_dim": 8,
    "rope_head_dim": 4,
    "query_lora_rank": 12,
    "num_output_groups": 2,
    "output_lora_rank": 6,
    "sliding_window": 4,
}
ODD = {
    "num_heads": 3,
    "head_dim": 7,
    "rope_head_dim": 2,
    "query_lora_rank": 5,
    "num_output_groups": 3,
    "output_lora_rank": 4,
    "sliding_window": 3,
}
INDEX = {"index_num_heads": 16, "index_head_dim": 5, "index_top_k": 3}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}
CASES = {  # The layer, its arguments, the shape of the inputs, whether their ends are padded.
    "window": (WINDOW, SMALL, (2, 11, 16), False),
    "window, odd sizes, padding": (WINDOW, ODD, (3, 9, 11), True),
    "window of one": (WINDOW, {**ODD, "sliding_window": 1}, (2, 5, 9), False),
    "window longer than a block": (WINDOW, {**SMALL, "sliding_window": 20}, (1, 45, 8), False),
    "csa": (SPARSE, {**SMALL, **INDEX, "compress_rate": 4}, (2, 32, 16), False),
    "csa yarn, odd sizes, padding, an open window": (
        SPARSE,
        {**ODD, **INDEX, "compress_rate": 3, "rope_scaling": YARN},
        (3, 26, 11),
        True,
    ),
    "csa that sees all entries": (
        SPARSE,
        {**SMALL, **INDEX, "compress_rate": 2, "index_top_k": 9, "rope_scaling": LINEAR},
        (2, 13, 10),
        False,
    ),
    "csa shorter than a window": (SPARSE, {**SMALL, **INDEX, "compress_rate": 4}, (2, 3, 9), False),
    "hca": (HEAVY, {**SMALL, "compress_rate": 8}, (2, 32, 16), False),
    "hca yarn, odd sizes, padding, an open window": (
        HEAVY,
        {**ODD, "compress_rate": 5, "rope_scaling": YARN},
        (3, 23, 11),
        True,
    ),
    "hca shorter than a window": (HEAVY, {**SMALL, "compress_rate": 8}, (2, 6, 9), False),
    "hca of a checkpoint's rate": (
        HEAVY,
        {**SMALL, "compress_rate": 128, "rope_scaling": LINEAR, "rope_max_wavelength": 500.0},
        (1, 260, 8),
        False,
    ),
}


def make_attention(kind: str, arguments: dict[str, Any], dim: int) -> tuple[Any, Any]:
    """Returns the module with random weights, and its rotary module."""
    rate = arguments.get("compress_rate", 4)
    wavelength = arguments.get("rope_max_wavelength")
    index = {name: arguments.get(name, 4) for name in INDEX}
    config = DeepseekV4Config(
        hidden_size=dim,
        num_hidden_layers=1,
        layer_types=[LAYER_TYPES[kind]],
        mlp_layer_types=["moe"],
        compress_rates={name: rate for name in LAYER_TYPES.values() if name != LAYER_TYPES[WINDOW]},
        num_attention_heads=arguments["num_heads"],
        head_dim=arguments["head_dim"],
        qk_rope_head_dim=arguments["rope_head_dim"],
        q_lora_rank=arguments["query_lora_rank"],
        o_groups=arguments["num_output_groups"],
        o_lora_rank=arguments["output_lora_rank"],
        sliding_window=arguments["sliding_window"],
        index_n_heads=index["index_num_heads"],
        index_head_dim=index["index_head_dim"],
        index_topk=index["index_top_k"],
        max_position_embeddings=512,
        rope_theta=10000.0,
        compress_rope_theta=wavelength or 160000.0,
        rope_parameters=dict(arguments.get("rope_scaling", {})) or None,
    )
    config._attn_implementation = "eager"
    attention = v4.DeepseekV4Attention(config, layer_idx=0).eval()
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if name == "sinks" or name.endswith("position_bias"):
                parameter.zero_()  # They are not set until a whole model is made.
            parameter.add_(0.5 * torch.randn_like(parameter))  # Ones and zeros hide mistakes.
    return attention, v4.DeepseekV4RotaryEmbedding(config)


def to_weights(tensors: dict[str, Any], arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns weights or their gradients by our names and in our layout; those that there are."""
    groups = arguments["num_output_groups"]
    heads = {"q_b_proj": "num_heads", "compressor.indexer.q_b_proj": "index_num_heads"}
    weights = {}
    for name, tensor in tensors.items():
        if tensor is None:  # The indexer's: a choice has no gradient.
            continue
        module, _, kind = name.rpartition(".")
        array = tensor.detach().numpy()
        if module in heads:
            array = array.T.reshape(array.shape[1], arguments[heads[module]], -1)
        elif module == "o_a_proj":
            array = array.reshape(groups, -1, array.shape[1]).swapaxes(1, 2)
        elif module == "o_b_proj":
            array = array.T.reshape(groups, -1, len(array))
        elif array.ndim > 1 and kind == "weight":
            array = array.T
        weights[to_path(name)] = array
    return weights


def to_path(name: str) -> str:
    """Returns our name of a weight."""
    module, _, kind = name.rpartition(".")
    last = module.rpartition(".")[2]
    prefix = "compressor/" if module.startswith("compressor") else ""
    if "indexer" in module:
        is_compressed = last in ("kv_proj", "gate_proj", "kv_norm") or kind == "position_bias"
        prefix = "indexer/compressor/" if is_compressed else "indexer/"
    if kind in ("sinks", "position_bias"):
        return prefix + kind
    names = {
        "q_a_proj": "query_down/kernel",
        "q_a_norm": "query_norm/scale",
        "q_b_proj": "query_up/kernel",
        "kv_proj": "value/kernel" if prefix else "key_value/kernel",
        "gate_proj": "gate/kernel",
        "kv_norm": "norm/scale" if prefix else "key_value_norm/scale",
        "o_a_proj": "output_down/kernel",
        "o_b_proj": "output/kernel",
        "weights_proj": "head_weight/kernel",
    }
    return prefix + names[last]


def make_masks(shape: tuple[int, ...], window: int, *, padded: bool) -> tuple[Any, Any]:
    """Returns which tokens are real, fewer in each further sequence, and which see which."""
    batch_size, length, _ = shape
    mask = torch.ones(batch_size, length, dtype=torch.bool)
    for row in range(1, batch_size if padded else 0):
        mask[row, length - 2 * row :] = False
    near = torch.ones(length, length).tril() * torch.ones(length, length).triu(1 - window)
    return mask, mask[:, None, None, :] & near.bool()


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs at real tokens, and gradients."""
    kind, arguments, shape, padded = CASES[name]
    attention, rotary = make_attention(kind, arguments, shape[-1])
    inputs = torch.randn(shape, requires_grad=True)
    mask, allowed = make_masks(shape, arguments["sliding_window"], padded=padded)
    positions = torch.arange(shape[1])[None]
    outputs, _ = attention(
        inputs,
        position_embeddings={
            label: rotary(inputs, positions, layer_type=label) for label in ("main", "compress")
        },
        position_ids=positions.expand(shape[0], -1),
        attention_mask=torch.where(allowed, 0.0, torch.finfo(torch.float32).min),
    )
    outputs = outputs * mask[..., None]
    direction = torch.randn(shape)
    (outputs * direction).sum().backward()
    parameters = dict(attention.named_parameters())
    gradients = {key: parameter.grad for key, parameter in parameters.items()}
    arrays = {
        "layer": np.array(kind),
        "arguments": np.array(json.dumps(arguments)),
        "inputs": inputs.detach().numpy(),
        "mask": mask.numpy(),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
    }
    for prefix, tensors in (("weight", parameters), ("gradient", gradients)):
        for key, array in to_weights(tensors, arguments).items():
            arrays[f"{prefix}/{key}"] = array
    return arrays


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("deepseek_v4_attention", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
