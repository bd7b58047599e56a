"""Writes `language_models.npz`: a tiny model of each family, as transformers computes it.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/write_language_models.py
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity_tests.language_model_cases import (
    GROUPS,
    LLAMA,
    LONG,
    QWEN2,
    QWEN3,
    SCALINGS,
    V2,
    V3,
    V4,
    V4_YARN,
    V32,
    WINDOWS,
    Family,
)
from parity_tests.written_checkpoints import (
    call_theirs,
    draw_batch,
    make_theirs,
    their_gradients,
    write_theirs,
)
from tests.oracles.golden_language_models import PATH, direction, pack

SMALL = {
    **GROUPS,
    **LONG,
    "num_hidden_layers": 2,
    "vocab_size": 19,
    "hidden_size": 14,
    "intermediate_size": 11,
    "moe_intermediate_size": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
}
SMALL_V4 = {
    "vocab_size": 19,
    "hidden_size": 10,
    "moe_intermediate_size": 5,
    "head_dim": 6,
    "qk_rope_head_dim": 4,
    "q_lora_rank": 7,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "index_head_dim": 4,
    "index_topk": 2,
    "hc_mult": 2,
    "rope_parameters": V4_YARN,
}
SMALL_DENSE = {
    "num_hidden_layers": 2,
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 11,
    "head_dim": 6,
}
CASES = {
    V2.name: (V2, {**SMALL, "topk_method": "group_limited_greedy"}),
    V3.name: (V3, SMALL),
    V32.name: (V32, SMALL),
    V4.name: (V4, SMALL_V4),
    LLAMA.name: (LLAMA, {**SMALL_DENSE, **SCALINGS["llama3"], "mlp_bias": True}),
    QWEN2.name: (QWEN2, {**SMALL_DENSE, **WINDOWS, "tie_word_embeddings": True}),
    QWEN3.name: (QWEN3, {**SMALL_DENSE, **SCALINGS["yarn"], "attention_bias": True}),
}


def run_case(family: Family, arguments: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Returns what the file holds of a model."""
    single_case = replace(family, cases={"golden": arguments})
    model = make_theirs(single_case, "golden")
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not name.endswith("inv_freq"):  # It is computed, not read.
                tensor.copy_(tensor.half())  # As they will be read.
    tensors = write_theirs(model, folder / "weights")
    batch = draw_batch(model.config.vocab_size, family.sides[0])
    logits, loss = call_theirs(model, batch)
    loss.backward()
    arrays = {
        "config": np.array((folder / "weights/config.json").read_text()),
        **pack(tensors),
        **batch,
        "logits": logits.detach().numpy(),
        "loss": np.array(loss.item()),
    }
    gradients = their_gradients(model, folder / "gradients")
    slopes = [np.vdot(direction(gradients[name]), gradients[name]) for name in tensors]
    return {**arrays, "slopes": np.array(slopes)}


def main() -> None:
    """Writes the file beside this script."""
    arrays = {}
    for name, (family, arguments) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = run_case(family, arguments, Path(folder))
        arrays |= {f"{name}|{key}": array for key, array in case.items()}
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {len(CASES)} models, {PATH.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
