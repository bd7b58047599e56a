"""Writes `residual_stream_collapse.npz`: the collapse behind DeepSeek-V4 in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_residual_stream_collapse.py
"""

import json

import numpy as np
import torch
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperHead

from tests.oracles.parity import write_cases

CASES = {  # The shape of the inputs, and the arguments of the layer.
    "four streams": ((2, 5, 4, 8), {}),
    "odd sizes, three streams": ((3, 4, 3, 7), {"stream_epsilon": 1e-2}),
    "two streams, a large epsilon in the norm": ((1, 6, 2, 9), {"epsilon": 1e-1}),
    "one token, five streams": ((1, 1, 5, 6), {"stream_epsilon": 1e-4}),
}


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs and gradients."""
    shape, arguments = CASES[name]
    config = DeepseekV4Config(
        hidden_size=shape[-1],
        hc_mult=shape[-2],
        hc_eps=arguments.get("stream_epsilon", 1e-6),
        rms_norm_eps=arguments.get("epsilon", 1e-6),
    )
    head = DeepseekV4HyperHead(config)
    with torch.no_grad():
        head.hc_fn.copy_(0.3 * torch.randn_like(head.hc_fn))
        head.hc_base.copy_(torch.randn_like(head.hc_base))
        head.hc_scale.copy_(1 + 0.3 * torch.randn_like(head.hc_scale))
    inputs = torch.randn(shape, requires_grad=True)
    outputs = head(inputs)
    direction = torch.randn(outputs.shape)
    (outputs * direction).sum().backward()
    return {
        "layer": np.array("ResidualStreamCollapse"),
        "arguments": np.array(json.dumps(arguments)),
        "inputs": inputs.detach().numpy(),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
        "weight/kernel": head.hc_fn.detach().numpy().T,
        "weight/bias": head.hc_base.detach().numpy(),
        "weight/scale": head.hc_scale.detach().numpy(),
        "gradient/kernel": head.hc_fn.grad.numpy().T,
        "gradient/bias": head.hc_base.grad.numpy(),
        "gradient/scale": head.hc_scale.grad.numpy(),
    }


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("residual_stream_collapse", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
