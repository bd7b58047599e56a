"""Writes `rotary_embedding.npz`: what transformers rotates by, for each kind of scaling.

Run by hand, where torch and transformers are installed:

    python tests/oracles/golden/make_rotary_embedding.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

DIM = 16
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 32.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 40.0],
}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 16}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic short": DYNAMIC,
    "dynamic long": DYNAMIC,
    "yarn": YARN,
    "yarn mscale": {
        **YARN,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "yarn untruncated": {**YARN, "truncate": False, "attention_factor": 1.25},
    "llama3": LLAMA3,
    "longrope short": LONGROPE,
    "longrope long": LONGROPE,
}
LENGTHS = {"dynamic long": 24, "longrope long": 24}
THETA = {"llama3": 500000.0}


def compute_frequencies(name: str, length: int) -> tuple[torch.Tensor, float]:
    """Returns the angles a token and the amplitude."""
    scaling = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        head_dim=DIM,
        max_position_embeddings=scaling.get("original_max_position_embeddings", 64),
        rope_parameters={**scaling, "rope_theta": THETA.get(name, 10000.0)},
    )
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, seq_len=length)


def main() -> None:
    """Writes the file beside this script."""
    arrays: dict[str, np.ndarray] = {}
    torch.manual_seed(0)
    for name, scaling in SCALINGS.items():
        length = LENGTHS.get(name, 12)
        frequencies, amplitude = compute_frequencies(name, length)
        x = torch.randn(1, 2, length, DIM)  # batch, heads, length, dim
        angles = torch.arange(length).float()[None, :, None] * frequencies
        doubled = torch.cat([angles, angles], dim=-1)
        halves, _ = apply_rotary_pos_emb(x, x, doubled.cos() * amplitude, doubled.sin() * amplitude)
        turns = torch.polar(torch.ones_like(angles), angles) * amplitude
        pairs, _ = apply_rotary_emb(x, x, turns)
        settings = {"scaling": scaling, "max_wavelength": THETA.get(name, 10000.0)}
        arrays[f"{name}/settings"] = np.array(json.dumps(settings))
        arrays[f"{name}/frequencies"] = frequencies.numpy()
        arrays[f"{name}/amplitude"] = np.array(amplitude)
        for key, tensor in (("inputs", x), ("halves", halves), ("interleaved", pairs)):
            arrays[f"{name}/{key}"] = tensor.transpose(1, 2).numpy()
    path = Path(__file__).with_name("rotary_embedding.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, {', '.join(SCALINGS)}")


if __name__ == "__main__":
    main()
