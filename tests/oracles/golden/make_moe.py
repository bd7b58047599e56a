"""Writes the golden files of the mixture of experts from the MoE blocks of `transformers`.

Run by hand, in an environment with torch and transformers 5.24:

    python tests/oracles/golden/make_moe.py

`moe_deepseek_v2.npz`, `..._v3.npz` and `..._v4.npz` hold a few cases each. A case has its settings
in the words of our layer, the weights in its shapes, the inputs, the outputs, and the gradients of
`sum(outputs * objective)`. Everything is drawn at random, zero-initialized tensors too.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV4Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4SparseMoeBlock

FOLDER = Path(__file__).parent

# shape, experts, per token, intermediate, shared, groups, groups per token, scale
CASES = {
    "v2": [
        ((2, 5, 8), 8, 2, 6, 1, 1, 1, 1.0),
        ((1, 1, 7), 5, 3, 3, 2, 1, 1, 16.0),
        ((3, 4, 8), 8, 2, 5, 1, 4, 2, 1.0),
        ((2, 40, 6), 12, 4, 5, 2, 3, 2, 2.5),
    ],
    "v3": [
        ((2, 5, 8), 8, 2, 6, 1, 1, 1, 1.0),
        ((1, 1, 7), 6, 3, 3, 2, 1, 1, 2.5),
        ((3, 4, 8), 8, 3, 5, 1, 4, 2, 2.5),
        ((2, 40, 6), 12, 4, 5, 2, 3, 2, 2.5),
    ],
    "v4": [
        ((2, 5, 8), 8, 2, 6, 1, 1, 1, 1.0),
        ((1, 1, 7), 5, 3, 3, 1, 1, 1, 1.5),
        ((3, 9, 8), 9, 2, 5, 1, 1, 1, 2.5),
        ((2, 40, 6), 12, 4, 5, 1, 1, 1, 1.5),
    ],
    "v4_hash": [
        ((2, 5, 8), 8, 2, 6, 1, 1, 1, 1.5),
        ((2, 30, 6), 12, 3, 5, 1, 1, 1, 1.5),
    ],
}
VOCABULARY_SIZE = 11
CLAMP = 1.0  # Small enough to bite.


def make_v2(dim, experts, per_token, intermediate, shared, groups, groups_per_token, scale):
    limited = groups > 1
    config = DeepseekV2Config(
        hidden_size=dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        n_routed_experts=experts,
        num_experts_per_tok=per_token,
        moe_intermediate_size=intermediate,
        n_shared_experts=shared,
        topk_method="group_limited_greedy" if limited else "greedy",
        n_group=groups,
        topk_group=groups_per_token,
        routed_scaling_factor=scale,
    )
    router = {
        "scoring": "softmax",
        "group_scoring": "max",
        "normalize_weights": False,
        "use_expert_bias": False,
    }
    return DeepseekV2Moe(config), router, None


def make_v3(dim, experts, per_token, intermediate, shared, groups, groups_per_token, scale):
    config = DeepseekV3Config(
        hidden_size=dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        n_routed_experts=experts,
        num_experts_per_tok=per_token,
        moe_intermediate_size=intermediate,
        n_shared_experts=shared,
        n_group=groups,
        topk_group=groups_per_token,
        routed_scaling_factor=scale,
        norm_topk_prob=True,
    )
    return DeepseekV3MoE(config), {}, None


def make_v4(dim, experts, per_token, intermediate, shared, *_, scale, kind="moe"):
    config = DeepseekV4Config(
        hidden_size=dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        n_routed_experts=experts,
        num_experts_per_tok=per_token,
        moe_intermediate_size=intermediate,
        n_shared_experts=shared,
        routed_scaling_factor=scale,
        scoring_func="sqrtsoftplus",
        swiglu_limit=CLAMP,
        vocab_size=VOCABULARY_SIZE,
        num_hidden_layers=1,
        mlp_layer_types=[kind],
    )
    return DeepseekV4SparseMoeBlock(config, 0), {"scoring": "sqrt_softplus"}, CLAMP


def make_case(kind, shape, *sizes):
    experts, per_token, intermediate, shared, groups, groups_per_token, scale = sizes
    if kind.startswith("v4"):
        name = "hash_moe" if kind == "v4_hash" else "moe"
        block, router, clamp = make_v4(shape[-1], *sizes[:-1], scale=scale, kind=name)
    else:
        block, router, clamp = {"v2": make_v2, "v3": make_v3}[kind](shape[-1], *sizes)
    rng = np.random.default_rng(sum(shape) + experts)
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(rng.normal(size=tensor.shape) * 0.5))
            else:  # The hash router's table.
                rows = [rng.permutation(experts)[:per_token] for _ in range(len(tensor))]
                tensor.copy_(torch.from_numpy(np.stack(rows)))
    arrays = run(block, shape, rng, kind == "v4_hash")
    settings = {
        "router": {
            "num_experts": experts,
            "num_experts_per_token": per_token,
            "num_groups": groups,
            "num_groups_per_token": groups_per_token,
            "routed_scale": scale,
            **router,
        },
        "intermediate_dim": intermediate,
        "num_shared_experts": shared,
        "clamp": clamp,
    }
    return {"settings": np.array(json.dumps(settings)), **arrays}


def run(block, shape, rng, needs_token_ids):
    inputs = torch.tensor(rng.normal(size=shape), dtype=torch.float32, requires_grad=True)
    objective = rng.normal(size=shape).astype("float32")
    arrays = {"inputs": inputs.detach().numpy(), "objective": objective}
    arguments = [inputs]
    if needs_token_ids:
        arrays["token_ids"] = rng.integers(0, VOCABULARY_SIZE, size=shape[:-1]).astype("int32")
        arguments.append(torch.from_numpy(arrays["token_ids"]).long())
        arrays["token_to_experts"] = block.gate.tid2eid.numpy().astype("int32")
    elif hasattr(block.gate, "e_score_correction_bias"):
        arrays["expert_bias"] = block.gate.e_score_correction_bias.numpy()
    outputs = block(*arguments)
    (outputs * torch.from_numpy(objective)).sum().backward()
    arrays |= {"outputs": outputs.detach().numpy(), "gradient/inputs": inputs.grad.numpy()}
    for prefix, read in (("weight", lambda p: p.detach()), ("gradient", lambda p: p.grad)):
        for name, array in in_our_shapes(block, read).items():
            arrays[f"{prefix}/{name}"] = np.ascontiguousarray(array)
    return arrays


def in_our_shapes(block, read):
    gate, up = read(block.experts.gate_up_proj).chunk(2, dim=1)
    shared = block.shared_experts
    return {
        "router": read(block.gate.weight).T.numpy(),
        "gate": gate.transpose(1, 2).numpy(),
        "up": up.transpose(1, 2).numpy(),
        "down": read(block.experts.down_proj).transpose(1, 2).numpy(),
        "shared_gate": read(shared.gate_proj.weight).T.numpy(),
        "shared_up": read(shared.up_proj.weight).T.numpy(),
        "shared_down": read(shared.down_proj.weight).T.numpy(),
    }


def main():
    for kind, cases in CASES.items():
        arrays = {
            f"{index}/{name}": array
            for index, case in enumerate(cases)
            for name, array in make_case(kind, *case).items()
        }
        path = FOLDER / f"moe_deepseek_{kind}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
