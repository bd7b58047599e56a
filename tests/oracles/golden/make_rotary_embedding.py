"""Writes `rotary_embedding.npz`: what transformers rotates by, for each kind of scaling.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_rotary_embedding.py

A case has the angles a token (`frequencies`) and the `amplitude` as well.
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v2.modeling_deepseek_v2 import apply_rotary_emb
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.oracles.parity import write_cases

DIM = 16
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 64}
YARN_MSCALE = {**YARN, "beta_fast": 16, "beta_slow": 2, "mscale": 1.0, "mscale_all_dim": 0.7}
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
SCALINGS = {  # The scaling, and the length.
    "linear": ({"rope_type": "linear", "factor": 2.5}, 12),
    "dynamic short": (DYNAMIC, 12),
    "dynamic long": (DYNAMIC, 24),
    "yarn": (YARN, 12),
    "yarn mscale": (YARN_MSCALE, 12),
    "yarn untruncated": ({**YARN, "truncate": False, "attention_factor": 1.25}, 12),
    "llama3": (LLAMA3, 12),
    "longrope short": (LONGROPE, 12),
    "longrope long": (LONGROPE, 24),
}
CASES = [f"{name}, {pairs}" for name in SCALINGS for pairs in ("halves", "interleaved")]


def compute_frequencies(scaling: dict[str, Any], theta: float, length: int) -> tuple[Any, float]:
    """Returns the angles a token and the amplitude."""
    config = LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        head_dim=DIM,
        max_position_embeddings=scaling.get("original_max_position_embeddings", 64),
        rope_parameters={**scaling, "rope_theta": theta},
    )
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, seq_len=length)


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, outputs, the gradient, and what they are rotated by."""
    name, _, pairs = name.partition(", ")
    scaling, length = SCALINGS[name]
    theta = 500000.0 if name == "llama3" else 10000.0
    frequencies, amplitude = compute_frequencies(scaling, theta, length)
    inputs = torch.randn(1, length, 2, DIM, requires_grad=True)
    x = inputs.transpose(1, 2)  # Of the shape (batch_size, heads, length, dim).
    angles = torch.arange(length).float()[None, :, None] * frequencies
    if pairs == "interleaved":
        outputs, _ = apply_rotary_emb(x, x, torch.polar(torch.ones_like(angles), angles))
        outputs = outputs * amplitude
    else:
        angles = torch.cat([angles, angles], dim=-1)
        outputs, _ = apply_rotary_pos_emb(x, x, angles.cos() * amplitude, angles.sin() * amplitude)
    outputs = outputs.transpose(1, 2)
    direction = torch.randn(outputs.shape)
    (outputs * direction).sum().backward()
    arguments = {
        "max_wavelength": theta,
        "scaling": scaling,
        "use_interleaved_pairs": pairs == "interleaved",
    }
    return {
        "layer": np.array("RotaryEmbedding"),
        "arguments": np.array(json.dumps(arguments)),
        "frequencies": frequencies.numpy(),
        "amplitude": np.array(amplitude),
        "inputs": inputs.detach().numpy(),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
    }


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("rotary_embedding", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
