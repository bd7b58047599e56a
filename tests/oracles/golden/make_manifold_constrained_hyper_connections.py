"""Writes `manifold_constrained_hyper_connections.npz`: those of DeepSeek-V4 in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_manifold_constrained_hyper_connections.py
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

from tests.oracles.parity import write_cases

CASES = {  # The shape of the inputs, and the arguments of the layer.
    "four streams, twenty rounds": ((2, 5, 4, 8), {}),
    "odd sizes, three streams": ((3, 4, 3, 7), {"sinkhorn_iterations": 5}),
    "two streams, one round, large epsilons": (
        (1, 6, 2, 9),
        {"sinkhorn_iterations": 1, "stream_epsilon": 1e-2, "epsilon": 1e-1},
    ),
    "one token, five streams": ((1, 1, 5, 6), {"sinkhorn_iterations": 8, "stream_epsilon": 1e-4}),
}


def make_connection(shape: tuple[int, ...], arguments: dict[str, Any]) -> Any:
    """Returns the module with random weights; transformers leaves them uninitialized."""
    config = DeepseekV4Config(
        hidden_size=shape[-1],
        hc_mult=shape[-2],
        hc_sinkhorn_iters=arguments.get("sinkhorn_iterations", 20),
        hc_eps=arguments.get("stream_epsilon", 1e-6),
        rms_norm_eps=arguments.get("epsilon", 1e-6),
    )
    connection = DeepseekV4HyperConnection(config)
    with torch.no_grad():
        connection.fn.copy_(0.3 * torch.randn_like(connection.fn))
        connection.base.copy_(torch.randn_like(connection.base))
        connection.scale.copy_(1 + 0.3 * torch.randn_like(connection.scale))
    return connection


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, weights, outputs and gradients of connections around a dense layer."""
    shape, arguments = CASES[name]
    dim = shape[-1]
    connection = make_connection(shape, arguments)
    inner = torch.nn.Linear(dim, dim)
    inputs = torch.randn(shape, requires_grad=True)
    post, comb, collapsed = connection(inputs)
    written = torch.tanh(inner(collapsed))
    # As the decoder layer does.
    outputs = post.unsqueeze(-1) * written.unsqueeze(-2) + torch.matmul(
        comb.transpose(-1, -2), inputs
    )
    direction = torch.randn(shape)
    (outputs * direction).sum().backward()
    tensors = {
        "kernel": (connection.fn, True),
        "bias": (connection.base, False),
        "scale": (connection.scale, False),
        "inner/kernel": (inner.weight, True),
        "inner/bias": (inner.bias, False),
    }
    layer = {
        "module": "keras.layers",
        "class_name": "Dense",
        "config": {"units": dim, "activation": "tanh", "name": "inner"},
    }
    arrays = {
        "layer": np.array("ManifoldConstrainedHyperConnections"),
        "arguments": np.array(json.dumps({"layer": layer, **arguments})),
        "inputs": inputs.detach().numpy(),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
    }
    for key, (tensor, is_transposed) in tensors.items():
        weight, gradient = tensor.detach().numpy(), tensor.grad.numpy()
        arrays[f"weight/{key}"] = weight.T if is_transposed else weight
        arrays[f"gradient/{key}"] = gradient.T if is_transposed else gradient
    return arrays


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    cases = {name: run_case(name) for name in CASES}
    write_cases("manifold_constrained_hyper_connections", cases)


if __name__ == "__main__":
    main()
