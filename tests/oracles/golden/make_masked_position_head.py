"""Writes `masked_position_head.npz`: the prediction head of BERT in transformers.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/make_masked_position_head.py
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from tests.oracles.parity import write_cases

CASES = {  # The shape of the inputs, the vocabulary, positions, and what else is set.
    "own kernel": ((2, 7, 8), 13, 3, {"intermediate_activation": "gelu"}),
    "tied embedding": ((3, 5, 6), 17, 2, {"intermediate_activation": "gelu", "is_tied": True}),
    "odd sizes, relu, a large epsilon": ((3, 9, 7), 11, 4, {"epsilon": 1e-2}),
    "one position, silu, tied": (
        (1, 1, 5),
        19,
        1,
        {"intermediate_activation": "silu", "is_tied": True},
    ),
}


def to_arrays(head: Any, is_tied: bool, attribute: str) -> dict[str, np.ndarray]:
    """Returns the weights, or their gradients, by our names and in our layout."""
    table = getattr(head.decoder.weight, attribute).detach().numpy()
    dense, norm = head.transform.dense, head.transform.LayerNorm
    tensors = {
        "bias": head.decoder.bias,
        "intermediate_dense/kernel": dense.weight.T if attribute == "data" else dense.weight,
        "intermediate_dense/bias": dense.bias,
        "intermediate_layer_norm/gamma": norm.weight,
        "intermediate_layer_norm/beta": norm.bias,
    }
    arrays = {key: getattr(tensor, attribute).detach().numpy() for key, tensor in tensors.items()}
    if attribute == "grad":
        arrays["intermediate_dense/kernel"] = arrays["intermediate_dense/kernel"].T
    arrays["tokens/embeddings" if is_tied else "kernel"] = table if is_tied else table.T
    return arrays


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns inputs, positions, weights, outputs and gradients."""
    shape, vocabulary_size, num_positions, settings = CASES[name]
    arguments = dict(settings)
    is_tied = arguments.pop("is_tied", False)
    config = BertConfig(
        hidden_size=shape[-1],
        num_attention_heads=1,
        vocab_size=vocabulary_size,
        hidden_act=arguments.get("intermediate_activation", "relu"),
        layer_norm_eps=arguments.setdefault("epsilon", 1e-12),
    )
    head = BertLMPredictionHead(config).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # Ones and zeros hide mistakes.
    inputs = torch.randn(shape, requires_grad=True)
    positions = torch.randint(0, shape[1], (shape[0], num_positions))
    outputs = head(inputs[torch.arange(shape[0])[:, None], positions])
    direction = torch.randn(outputs.shape)
    (outputs * direction).sum().backward()
    if is_tied:
        arguments["token_embedding"] = {
            "module": "keras.layers",
            "class_name": "Embedding",
            "config": {"input_dim": vocabulary_size, "output_dim": shape[-1], "name": "tokens"},
        }
    else:
        arguments["vocabulary_size"] = vocabulary_size
    arrays = {
        "layer": np.array("MaskedPositionHead"),
        "arguments": np.array(json.dumps(arguments)),
        "inputs": inputs.detach().numpy(),
        "call/mask_positions": positions.numpy().astype("int32"),
        "outputs": outputs.detach().numpy(),
        "direction": direction.numpy(),
        "gradient/inputs": inputs.grad.numpy(),
    }
    for prefix, attribute in (("weight", "data"), ("gradient", "grad")):
        for key, array in to_arrays(head, is_tied, attribute).items():
            arrays[f"{prefix}/{key}"] = array
    return arrays


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("masked_position_head", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
