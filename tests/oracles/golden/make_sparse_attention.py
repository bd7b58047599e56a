"""Writes `sparse_attention.npz`: what Longformer and BigBird of transformers compute.

Run by hand, with torch, transformers and Keras installed; the tests read the file alone:

    KERAS_BACKEND=torch PYTHONPATH=. python tests/oracles/golden/make_sparse_attention.py

Longformer: its projections for global attention are set to the local ones, since `SparseAttention`
has one set; the positions of the first block are global. BigBird: in training mode, where alone
its blocks are random (in inference it takes block 0 for them and counts it again), no dropout,
and with the blocks of the first head for all heads. At hidden positions the outputs differ by
convention: they are zeroed here. Prints by how much `SparseAttention` differs.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

FILE = Path(__file__).with_name("sparse_attention.npz")
DIM, NUM_HEADS = 12, 2
CASES = {
    "longformer_window": {"length": 32, "window": 4, "global": 0, "batch": 2, "padding": 0},
    "longformer_global": {"length": 48, "window": 6, "global": 4, "batch": 2, "padding": 0},
    "longformer_padded": {"length": 40, "window": 4, "global": 3, "batch": 2, "padding": 7},
    "longformer_odd": {"length": 60, "window": 5, "global": 7, "batch": 1, "padding": 3},
    "bigbird_one_random": {"length": 44, "block": 4, "random": 1, "batch": 2, "padding": 0},
    "bigbird_two_random": {"length": 65, "block": 5, "random": 2, "batch": 1, "padding": 0},
    "bigbird_three_random": {"length": 48, "block": 3, "random": 3, "batch": 2, "padding": 0},
    "bigbird_padded": {"length": 44, "block": 4, "random": 2, "batch": 2, "padding": 9},
}


def run_longformer(case, x, mask):
    config = transformers.LongformerConfig(
        hidden_size=DIM,
        num_attention_heads=NUM_HEADS,
        attention_window=[2 * case["window"]],
        attention_probs_dropout_prob=0.0,
    )
    module = LongformerSelfAttention(config, 0)
    perturb(module)
    for name in ("query", "key", "value"):
        getattr(module, f"{name}_global").load_state_dict(getattr(module, name).state_dict())
    is_global = torch.zeros(mask.shape, dtype=torch.bool)
    is_global[:, : case["global"]] = True
    attention_mask = torch.where(mask, torch.where(is_global, 1e4, 0.0), -1e4)
    output = module(x, attention_mask, ~mask, is_global, case["global"] > 0)[0]
    arguments = {"block_size": case["global"] or 4, "sliding_window": case["window"] + 1}
    return module, output, arguments | {"global_blocks": [0] if case["global"] else []}


def run_bigbird(case, x, mask):
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
    drawn = []
    draw = module._bigbird_block_rand_mask_with_head

    def draw_for_the_first_head(**kwargs):
        drawn[:] = draw(**kwargs)[:1]
        return drawn * NUM_HEADS

    module._bigbird_block_rand_mask_with_head = draw_for_the_first_head
    masks = transformers.BigBirdModel.create_masks_for_block_sparse_attn(
        mask.float(), case["block"]
    )
    blocked, band, from_mask, to_mask = masks
    output = module(x, band, from_mask, to_mask, blocked, blocked)[0]
    num_blocks = case["length"] // case["block"]
    layout = np.abs(np.subtract.outer(range(num_blocks), range(num_blocks))) <= 1
    layout[[0, -1]] = layout[:, [0, -1]] = True
    for row, blocks in enumerate(drawn[0], 1):
        if layout[row, blocks].any() or len(set(blocks.tolist())) < len(blocks):
            raise ValueError(f"BigBird counts a block of row {row} twice: {blocks}.")
        layout[row, blocks] = True
    return module, output, {"block_size": case["block"], "block_layout": layout.tolist()}


def perturb(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def compute(name, case):
    """Returns a case's arrays: input, mask, weights in Keras's form, output and gradients."""
    torch.manual_seed(len(name))
    x = torch.randn(case["batch"], case["length"], DIM, requires_grad=True)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    if case["padding"]:
        mask[-1, -case["padding"] :] = False
    run = run_longformer if name.startswith("longformer") else run_bigbird
    module, output, arguments = run(case, x, mask)
    output = output.reshape(x.shape) * mask[..., None]
    cotangent = torch.randn(x.shape) * mask[..., None]
    (gradient,) = torch.autograd.grad((output * cotangent).sum(), x)
    shape = (NUM_HEADS, DIM // NUM_HEADS)
    arrays = {"x": x, "mask": mask, "output": output, "cotangent": cotangent, "gradient": gradient}
    for part in ("query", "key", "value"):
        linear = getattr(module, part)
        arrays[f"{part}_kernel"] = linear.weight.T.reshape(DIM, *shape)
        arrays[f"{part}_bias"] = linear.bias.reshape(shape)
    arrays = {key: array.detach().numpy() for key, array in arrays.items()}
    return arrays | {"arguments": np.array(json.dumps(arguments))}


def main():
    computed = {name: compute(name, case) for name, case in CASES.items()}
    np.savez_compressed(
        FILE, **{f"{n}/{key}": array for n, case in computed.items() for key, array in case.items()}
    )
    print(f"{FILE.name}: {FILE.stat().st_size} bytes, transformers {transformers.__version__}")
    from tests.oracles.golden.read_sparse_attention import compare  # It reads what is written.

    for name in CASES:
        print(f"{name:24}", "output {:.1e}, gradient {:.1e}".format(*compare(name)))


if __name__ == "__main__":
    main()
