"""Writes `block_sparse_attention.npz`: the attention of Longformer and BigBird in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_block_sparse_attention.py

Longformer: its projections for global attention are set to the local ones, since
`BlockSparseAttention` has one set; the positions of the first block are global. BigBird: in
training mode, where alone its blocks are random (in inference it takes block 0 for them and counts
it again), no dropout, and with the blocks of the first head for all heads. The modules have no
projection of the output: ours is given the identity, which has no gradient to compare.
"""

import json
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from tests.oracles.parity import write_cases

DIM, NUM_HEADS = 12, 2
HEADS = (NUM_HEADS, DIM // NUM_HEADS)
CASES = {
    "longformer window": {"length": 32, "window": 4, "global": 0, "batch": 2, "padding": 0},
    "longformer global": {"length": 48, "window": 6, "global": 4, "batch": 2, "padding": 0},
    "longformer padded": {"length": 40, "window": 4, "global": 3, "batch": 2, "padding": 7},
    "longformer odd": {"length": 60, "window": 5, "global": 7, "batch": 1, "padding": 3},
    "bigbird one random": {"length": 44, "block": 4, "random": 1, "batch": 2, "padding": 0},
    "bigbird two random": {"length": 65, "block": 5, "random": 2, "batch": 1, "padding": 0},
    "bigbird three random": {"length": 48, "block": 3, "random": 3, "batch": 2, "padding": 0},
    "bigbird padded": {"length": 44, "block": 4, "random": 2, "batch": 2, "padding": 9},
}
Run = tuple[Any, torch.Tensor, dict[str, Any]]


def run_longformer(case: dict[str, int], inputs: torch.Tensor, mask: torch.Tensor) -> Run:
    """Returns the module, its outputs, and what says the layout."""
    config = transformers.LongformerConfig(
        hidden_size=DIM,
        num_attention_heads=NUM_HEADS,
        attention_window=[2 * case["window"]],
        attention_probs_dropout_prob=0.0,
    )
    module = LongformerSelfAttention(config, 0)
    perturb(module)
    for name in ("query", "key", "value"):
        setattr(module, f"{name}_global", getattr(module, name))
    is_global = torch.zeros(mask.shape, dtype=torch.bool)
    is_global[:, : case["global"]] = True
    attention_mask = torch.where(mask, torch.where(is_global, 1e4, 0.0), -1e4)
    outputs = module(inputs, attention_mask, ~mask, is_global, case["global"] > 0)[0]
    layout = {"block_size": case["global"] or 4, "sliding_window": case["window"] + 1}
    return module, outputs, layout | {"global_blocks": [0] if case["global"] else []}


def run_bigbird(case: dict[str, int], inputs: torch.Tensor, mask: torch.Tensor) -> Run:
    """Returns the module, its outputs, and what says the layout."""
    config = transformers.BigBirdConfig(
        hidden_size=DIM,
        num_attention_heads=NUM_HEADS,
        block_size=case["block"],
        num_random_blocks=case["random"],
        attention_probs_dropout_prob=0.0,
        use_bias=True,
    )
    module = BigBirdBlockSparseAttention(config, seed=3).train()
    perturb(module)
    drawn: list[np.ndarray] = []
    draw = module._bigbird_block_rand_mask_with_head

    def draw_for_the_first_head(**kwargs: Any) -> list[np.ndarray]:
        drawn[:] = draw(**kwargs)[:1]
        return drawn * NUM_HEADS

    module._bigbird_block_rand_mask_with_head = draw_for_the_first_head
    masks = transformers.BigBirdModel.create_masks_for_block_sparse_attn(
        mask.float(), case["block"]
    )
    blocked, band, from_mask, to_mask = masks
    outputs = module(inputs, band, from_mask, to_mask, blocked, blocked)[0]
    num_blocks = case["length"] // case["block"]
    layout = np.abs(np.subtract.outer(range(num_blocks), range(num_blocks))) <= 1
    layout[[0, -1]] = layout[:, [0, -1]] = True
    for row, blocks in enumerate(drawn[0], 1):
        if layout[row, blocks].any() or len(set(blocks.tolist())) < len(blocks):
            raise ValueError(f"BigBird counts a block of row {row} twice: {blocks}.")
        layout[row, blocks] = True
    return module, outputs, {"block_size": case["block"], "block_layout": layout.tolist()}


def perturb(module: Any) -> None:
    """Draws all weights, for ones and zeros hide mistakes."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs at real tokens, and gradients."""
    case = CASES[name]
    inputs = torch.randn(case["batch"], case["length"], DIM, requires_grad=True)
    mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
    if case["padding"]:
        mask[-1, -case["padding"] :] = False
    run = run_longformer if name.startswith("longformer") else run_bigbird
    module, outputs, layout = run(case, inputs, mask)
    outputs = outputs.reshape(inputs.shape) * mask[..., None]
    direction = torch.randn(inputs.shape)
    (outputs * direction).sum().backward()
    arguments = {"num_heads": NUM_HEADS, "head_dim": DIM // NUM_HEADS, **layout}
    arrays = {
        "layer": np.array("BlockSparseAttention"),
        "arguments": np.array(json.dumps(arguments)),
        "inputs": inputs.detach().numpy(),
        "mask": mask.numpy(),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
        "weight/attention_output/kernel": np.eye(DIM, dtype="float32").reshape(*HEADS, DIM),
        "weight/attention_output/bias": np.zeros(DIM, "float32"),
    }
    for part in ("query", "key", "value"):
        linear = getattr(module, part)
        for prefix, kernel, bias in (
            ("weight", linear.weight.detach(), linear.bias.detach()),
            ("gradient", linear.weight.grad, linear.bias.grad),
        ):
            arrays[f"{prefix}/{part}/kernel"] = kernel.T.reshape(DIM, *HEADS).numpy()
            arrays[f"{prefix}/{part}/bias"] = bias.reshape(HEADS).numpy()
    del arrays["gradient/key/bias"]  # A softmax lets none through: there is but rounding in it.
    return arrays


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("block_sparse_attention", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
