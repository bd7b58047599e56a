"""Writes `multi_head_latent_attention.npz`: the attention of DeepSeek-V2 and V3 in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_multi_head_latent_attention.py
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

from tests.oracles.parity import write_cases

SMALL = {
    "num_heads": 4,
    "nope_head_dim": 8,
    "rope_head_dim": 4,
    "value_head_dim": 8,
    "key_value_lora_rank": 16,
    "query_lora_rank": 12,
}
ODD = {
    "num_heads": 3,
    "nope_head_dim": 5,
    "rope_head_dim": 6,
    "value_head_dim": 7,
    "key_value_lora_rank": 11,
    "query_lora_rank": 13,
}
YARN = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
CASES = {  # The version, the layer, the shape of the inputs, the side of the padding.
    "v3": (3, SMALL, (2, 6, 24), None),
    "v3 yarn, left padding": (3, {**SMALL, "rope_scaling": YARN}, (3, 7, 24), "left"),
    "v3 odd sizes, halves, bias, right padding": (
        3,
        {**ODD, "use_interleaved_pairs": False, "use_bias": True},
        (3, 5, 21),
        "right",
    ),
    "v2 yarn, no query compression": (
        2,
        {**SMALL, "query_lora_rank": None, "rope_scaling": {**YARN, "mscale_all_dim": 0.707}},
        (2, 9, 24),
        None,
    ),
    "v2 uneven sizes, bias, left padding": (  # Its rotation takes even strides only.
        2,
        {**ODD, "nope_head_dim": 10, "key_value_lora_rank": 14, "use_bias": True},
        (3, 8, 27),
        "left",
    ),
    "v2 few heads, absorbed at every length": (
        2,
        {**SMALL, "num_heads": 2, "key_value_lora_rank": 6, "query_lora_rank": None},
        (1, 11, 16),
        None,
    ),
    "v2 yarn, right padding": (2, {**SMALL, "rope_scaling": YARN}, (2, 7, 24), "right"),
    "v3 no query compression, left padding": (
        3,
        {**ODD, "query_lora_rank": None},
        (2, 4, 15),
        "left",
    ),
}


def make_config(config_class: Any, arguments: dict[str, Any], dim: int, **more: Any) -> Any:
    """Returns the config of a model with such attention."""
    return config_class(
        hidden_size=dim,
        num_attention_heads=arguments["num_heads"],
        num_key_value_heads=arguments["num_heads"],
        qk_nope_head_dim=arguments["nope_head_dim"],
        qk_rope_head_dim=arguments["rope_head_dim"],
        v_head_dim=arguments["value_head_dim"],
        kv_lora_rank=arguments["key_value_lora_rank"],
        q_lora_rank=arguments["query_lora_rank"],
        attention_bias=arguments.get("use_bias", False),
        max_position_embeddings=2560,
        rope_parameters={
            **arguments.get("rope_scaling", {"rope_type": "default"}),
            "rope_theta": 10000.0,
        },
        **more,
    )


def make_attention(version: int, arguments: dict[str, Any], dim: int) -> tuple[Any, Any, Any]:
    """Returns the module with random weights, its rotary module, and their config."""
    module, config_class = ((v2, DeepseekV2Config), (v3, DeepseekV3Config))[version - 2]
    names = {"rope_interleave": arguments.get("use_interleaved_pairs", True)} if version > 2 else {}
    config = make_config(config_class, arguments, dim, **names)
    config._attn_implementation = "eager"
    kind = f"DeepseekV{version}"
    attention = getattr(module, f"{kind}Attention")(config, layer_idx=0).eval()
    perturb(attention)
    return attention, getattr(module, f"{kind}RotaryEmbedding")(config), config


def perturb(module: torch.nn.Module) -> None:
    """Moves all weights at random: ones and zeros hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def make_mask(shape: tuple[int, ...], padding: str | None) -> torch.Tensor:
    """Returns which tokens are real: fewer in each further sequence."""
    batch_size, length, _ = shape
    mask = torch.ones(batch_size, length, dtype=torch.bool)
    for row in range(1, batch_size):
        if padding == "left":
            mask[row, : 2 * row] = False
        if padding == "right":
            mask[row, length - row :] = False
    return mask


def to_weights(tensors: dict[str, torch.Tensor], config: Any) -> dict[str, np.ndarray]:
    """Returns weights or their gradients by our names and in our layout."""
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    weights = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        array = tensor.detach().numpy().T
        kind = "bias" if kind == "bias" else "kernel"
        if module in ("q_proj", "q_b_proj"):
            weights["query_up/kernel"] = array.reshape(len(array), heads, -1)
        elif module == "q_a_proj":
            weights[f"query_down/{kind}"] = array
        elif module in ("q_a_layernorm", "kv_a_layernorm"):
            weights[f"{'query' if module[0] == 'q' else 'key_value'}_norm/scale"] = array
        elif module == "kv_a_proj_with_mqa":
            weights[f"key_value_down/{kind}"] = array[..., :rank]
            weights[f"key_rope/{kind}"] = array[..., rank:]
        elif module == "kv_b_proj":
            array = array.reshape(rank, heads, -1)
            weights["key_up/kernel"] = array[..., : config.qk_nope_head_dim]
            weights["value_up/kernel"] = array[..., config.qk_nope_head_dim :]
        elif module == "o_proj":
            shape = array.shape if kind == "bias" else (heads, -1, array.shape[-1])
            weights[f"output/{kind}"] = array.reshape(shape)
        elif module.startswith("indexer"):  # DeepSeek-V3.2 alone.
            path, array = to_indexer_weight(module, name.rpartition(".")[2], array, config)
            weights[path] = array
        else:
            raise AssertionError(name)
    return weights


def to_indexer_weight(
    module: str, kind: str, array: np.ndarray, config: Any
) -> tuple[str, np.ndarray]:
    """Returns a weight of the indexer, or its gradient, by our name and in our layout."""
    if module == "indexer.wq_b":
        shape = (len(array), config.index_n_heads, config.index_head_dim)
        return "indexer/query_up/kernel", array.reshape(shape)
    if module == "indexer.k_norm":
        return f"indexer/key_norm/{'beta' if kind == 'bias' else 'gamma'}", array
    names = {"indexer.wk": "key", "indexer.weights_proj": "head_weight"}
    return f"indexer/{names[module]}/kernel", array


def make_case(
    modules: tuple[Any, Any, Any], arguments: dict[str, Any], shape: Any, padding: str | None
) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs at real tokens, and gradients."""
    attention, rotary, config = modules
    inputs = torch.randn(shape, requires_grad=True)
    mask = make_mask(shape, padding)
    length = shape[1]
    allowed = mask[:, None, None, :] & torch.ones(length, length).tril().bool()
    turns = rotary(inputs, torch.arange(length)[None])
    outputs, _ = attention(
        inputs,
        position_embeddings=turns,
        attention_mask=torch.where(allowed, 0.0, torch.finfo(torch.float32).min),
    )
    outputs = outputs * mask[..., None]
    direction = torch.randn(shape)
    (outputs * direction).sum().backward()
    parameters = dict(attention.named_parameters())
    gradients = {  # The indexer of DeepSeek-V3.2 has none.
        key: parameter.grad for key, parameter in parameters.items() if parameter.grad is not None
    }
    arrays = {
        "layer": np.array("MultiHeadLatentAttention"),
        "arguments": np.array(json.dumps(arguments)),
        "inputs": inputs.detach().numpy(),
        "mask": mask.numpy(),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
    }
    for prefix, tensors in (("weight", parameters), ("gradient", gradients)):
        for key, array in to_weights(tensors, config).items():
            arrays[f"{prefix}/{key}"] = array
    return arrays


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs at real tokens, and gradients."""
    version, arguments, shape, padding = CASES[name]
    return make_case(make_attention(version, arguments, shape[-1]), arguments, shape, padding)


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("multi_head_latent_attention", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
