"""Writes `deepseek_moe.npz`: the mixtures of experts of DeepSeek-V2 to V4 in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_deepseek_moe.py
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV4Config,
    DeepseekV32Config,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4SparseMoeBlock
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32MoE

from tests.oracles.parity import write_cases

GROUPS = {"num_groups": 4, "num_groups_per_token": 2}
THREE_GROUPS = {"num_groups": 3, "num_groups_per_token": 2}
VOCABULARY_SIZE = 11
CLAMP = 1.0  # Small enough to bite.

# The version, the shape of the inputs, experts, per token, intermediate size, shared experts, the
# scale of the routed ones, and what else the router takes.
CASES = {
    "v2": ("v2", (2, 5, 8), 8, 2, 6, 1, 1.0, {}),
    "v2 one token": ("v2", (1, 1, 7), 5, 3, 3, 2, 16.0, {}),
    "v2 groups": ("v2", (3, 4, 8), 8, 2, 5, 1, 1.0, GROUPS),
    "v2 three groups": ("v2", (2, 7, 6), 12, 4, 5, 2, 2.5, THREE_GROUPS),
    "v3": ("v3", (2, 5, 8), 8, 2, 6, 1, 1.0, {}),
    "v3 one token": ("v3", (1, 1, 7), 6, 3, 3, 2, 2.5, {}),
    "v3 groups": ("v3", (2, 4, 7), 8, 3, 5, 1, 2.5, GROUPS),
    "v3 many experts": ("v3", (1, 4, 6), 24, 2, 3, 1, 2.5, THREE_GROUPS),
    "v4": ("v4", (2, 5, 8), 8, 2, 6, 1, 1.0, {}),
    "v4 one token": ("v4", (1, 1, 7), 5, 3, 3, 1, 1.5, {}),
    "v4 nine experts": ("v4", (3, 4, 7), 9, 2, 5, 1, 2.5, {}),
    "v4 twelve experts": ("v4", (2, 7, 6), 12, 4, 5, 1, 1.5, {}),
    "v4 hash": ("v4 hash", (2, 5, 8), 8, 2, 6, 1, 1.5, {}),
    "v4 hash, top three": ("v4 hash", (2, 7, 6), 12, 3, 5, 1, 1.5, {}),
    "v32": ("v32", (2, 5, 8), 8, 2, 6, 1, 1.0, {}),
    "v32 one token": ("v32", (1, 1, 7), 6, 3, 3, 2, 2.5, {}),
    "v32 groups": ("v32", (2, 4, 7), 8, 3, 5, 1, 2.5, GROUPS),
    "v32 many experts": ("v32", (1, 4, 6), 24, 2, 3, 1, 2.5, THREE_GROUPS),
}
Modules = tuple[Any, dict[str, Any]]


def make_v2(sizes: dict[str, Any], scale: float, groups: dict[str, int]) -> Modules:
    """Returns the module, and what our router takes beside the sizes."""
    config = DeepseekV2Config(
        **sizes,
        topk_method="group_limited_greedy" if groups else "greedy",
        n_group=groups.get("num_groups", 1),
        topk_group=groups.get("num_groups_per_token", 1),
        routed_scaling_factor=scale,
    )
    return DeepseekV2Moe(config), {
        "scoring": "softmax",
        "group_scoring": "max",
        "normalize_weights": False,
        "use_expert_bias": False,
    }


def make_v3(
    sizes: dict[str, Any],
    scale: float,
    groups: dict[str, int],
    classes: tuple[Any, Any] = (DeepseekV3Config, DeepseekV3MoE),
) -> Modules:
    """Returns the module, and what our router takes beside the sizes."""
    config = classes[0](
        **sizes,
        n_group=groups.get("num_groups", 1),
        topk_group=groups.get("num_groups_per_token", 1),
        routed_scaling_factor=scale,
        norm_topk_prob=True,
    )
    return classes[1](config), {}


def make_v4(sizes: dict[str, Any], scale: float, layer_type: str) -> Modules:
    """Returns the module, and what our router takes beside the sizes."""
    config = DeepseekV4Config(
        **sizes,
        routed_scaling_factor=scale,
        scoring_func="sqrtsoftplus",
        swiglu_limit=CLAMP,
        vocab_size=VOCABULARY_SIZE,
        num_hidden_layers=1,
        mlp_layer_types=[layer_type],
    )
    return DeepseekV4SparseMoeBlock(config, 0), {"scoring": "sqrt_softplus"}


def make_block(name: str) -> tuple[Any, dict[str, Any]]:
    """Returns the module with random weights, and the arguments of our layer."""
    version, shape, experts, per_token, intermediate, shared, scale, groups = CASES[name]
    sizes = {
        "hidden_size": shape[-1],
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "n_routed_experts": experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": intermediate,
        "n_shared_experts": shared,
    }
    if version == "v2":
        block, router = make_v2(sizes, scale, groups)
    elif version == "v3":
        block, router = make_v3(sizes, scale, groups)
    elif version == "v32":
        block, router = make_v3(sizes, scale, groups, (DeepseekV32Config, DeepseekV32MoE))
    else:
        block, router = make_v4(sizes, scale, "hash_moe" if version == "v4 hash" else "moe")
    router_class = "HashRouter" if version == "v4 hash" else "ExpertRouter"
    if version == "v4 hash":
        router["vocabulary_size"] = VOCABULARY_SIZE
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.5)
            else:  # The table of the hash router.
                tensor.copy_(torch.rand(len(tensor), experts).argsort()[:, :per_token])
    sizes = {"num_experts": experts, "num_experts_per_token": per_token, "routed_scale": scale}
    return block, {
        "router": {
            "module": None,
            "class_name": router_class,
            "config": {"name": "router", **sizes, **router, **groups},
            "registered_name": f"keras_deepseek>{router_class}",
        },
        "intermediate_dim": intermediate,
        "num_shared_experts": shared,
        "clamp": CLAMP if version.startswith("v4") else None,
    }


def to_weights(block: Any, read: Callable[[Any], torch.Tensor]) -> dict[str, np.ndarray]:
    """Returns weights or their gradients by our names and in our layout."""
    gate, up = read(block.experts.gate_up_proj).chunk(2, dim=1)
    shared = block.shared_experts
    tensors = {
        "router/kernel": read(block.gate.weight).T,
        "expert_gate/kernel": gate.transpose(1, 2),
        "expert_up/kernel": up.transpose(1, 2),
        "expert_down/kernel": read(block.experts.down_proj).transpose(1, 2),
        "shared_experts/gate/kernel": read(shared.gate_proj.weight).T,
        "shared_experts/up/kernel": read(shared.up_proj.weight).T,
        "shared_experts/down/kernel": read(shared.down_proj.weight).T,
    }
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs, and gradients."""
    block, arguments = make_block(name)
    shape, experts = CASES[name][1:3]
    inputs = torch.randn(shape, requires_grad=True)
    arrays = {
        "layer": np.array("DeepSeekMoE"),
        "arguments": np.array(json.dumps(arguments)),
        "inputs": inputs.detach().numpy(),
        "weight/router/expert_load": np.zeros(experts, "float32"),  # A layer counts it itself.
    }
    if hasattr(block.gate, "tid2eid"):
        token_ids = torch.randint(VOCABULARY_SIZE, shape[:-1])
        arrays["call/token_ids"] = token_ids.numpy().astype("int32")
        arrays["weight/router/token_to_experts"] = block.gate.tid2eid.numpy().astype("int32")
        outputs = block(inputs, token_ids)
    else:
        if hasattr(block.gate, "e_score_correction_bias"):
            arrays["weight/router/expert_bias"] = block.gate.e_score_correction_bias.numpy()
        outputs = block(inputs)
    direction = torch.randn(shape)
    (outputs * direction).sum().backward()
    arrays |= {
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
    }
    for prefix, read in (("weight", lambda p: p.detach()), ("gradient", lambda p: p.grad)):
        for key, array in to_weights(block, read).items():
            arrays[f"{prefix}/{key}"] = array
    return arrays


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("deepseek_moe", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
