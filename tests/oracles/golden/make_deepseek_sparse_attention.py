"""Writes `deepseek_sparse_attention.npz`: the attention of DeepSeek-V3.2 in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_deepseek_sparse_attention.py
"""

from typing import Any

import numpy as np
import torch
from transformers import DeepseekV32Config
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as v32

from tests.oracles.golden.make_multi_head_latent_attention import (
    ODD,
    SMALL,
    YARN,
    make_case,
    make_config,
    perturb,
)
from tests.oracles.lightning_indexer import chosen_keys, index_scores
from tests.oracles.parity import write_cases

INDEXER = {"index_top_k": 3, "index_num_heads": 8, "index_head_dim": 12}
# The layer, the shape of the inputs, the side of the padding. The module of transformers always
# compresses the queries, and its main rotation is always of neighbours.
CASES = {
    "v32": ({**SMALL, **INDEXER}, (2, 7, 24), None),
    "v32 yarn, left padding": ({**SMALL, **INDEXER, "rope_scaling": YARN}, (3, 9, 24), "left"),
    "v32 odd sizes, bias, right padding, chunks": (
        {
            **ODD,
            "index_top_k": 2,
            "index_num_heads": 7,
            "index_head_dim": 9,
            "use_bias": True,
            "chunk_size": 4,
        },
        (3, 7, 21),
        "right",
    ),
    "v32 yarn, as many keys as tokens": (
        {**SMALL, **INDEXER, "index_top_k": 6, "rope_scaling": YARN},
        (2, 6, 24),
        None,
    ),
    "v32 one key, few heads": (
        {**SMALL, **INDEXER, "num_heads": 2, "index_top_k": 1, "key_value_lora_rank": 6},
        (1, 11, 16),
        None,
    ),
}
LEAST_GAP = 1e-4


def make_attention(arguments: dict[str, Any], dim: int) -> tuple[Any, Any, Any]:
    """Returns the module with random weights, its rotary module, and their config."""
    config = make_config(
        DeepseekV32Config,
        arguments,
        dim,
        index_topk=arguments["index_top_k"],
        index_n_heads=arguments["index_num_heads"],
        index_head_dim=arguments["index_head_dim"],
    )
    config._attn_implementation = "eager"
    attention = v32.DeepseekV32Attention(config, layer_idx=0).eval()
    perturb(attention)
    return attention, v32.DeepseekV32RotaryEmbedding(config), config


def choose(modules: tuple[Any, Any, Any], case: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """Returns which keys of a case are chosen, and how clear the choice is."""
    attention, rotary, config = modules
    inputs = torch.from_numpy(case["inputs"])
    with torch.no_grad():
        compressed = attention.q_a_layernorm(attention.q_a_proj(inputs)).numpy()
    weights = {
        key.removeprefix("weight/indexer/"): array
        for key, array in case.items()
        if key.startswith("weight/indexer/")
    }
    scores = index_scores(
        case["inputs"], compressed, weights, rotary.inv_freq.numpy(), rotary.attention_scaling
    )
    length = scores.shape[1]
    visible = np.tri(length, dtype=bool) & case["mask"][:, None, :]
    return chosen_keys(scores, visible, config.index_topk)


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs at real tokens, gradients, and the chosen keys."""
    arguments, shape, padding = CASES[name]
    while True:  # Until no two keys are so near that rounding would choose between them.
        modules = make_attention(arguments, shape[-1])
        case = make_case(modules, arguments, shape, padding)
        chosen, gap = choose(modules, case)
        if gap > LEAST_GAP:
            return {**case, "layer": np.array("DeepSeekSparseAttention"), "chosen": chosen}


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("deepseek_sparse_attention", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
