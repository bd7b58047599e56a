"""Writes `bert_masked_lm.npz`: what `BertForMaskedLM` of transformers computes.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python -m tests.oracles.golden.models.make_bert_masked_lm
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.oracles.model_parity import write_cases

SMALL = {
    "vocab_size": 13,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 8,
}
CASES: dict[str, dict[str, Any]] = {
    "tied, gelu": {},
    "untied, gelu by tanh, three segments": {
        "tie_word_embeddings": False,
        "hidden_act": "gelu_new",
        "type_vocab_size": 3,
    },
    "odd sizes, relu, one head, a large epsilon": {
        "vocab_size": 11,
        "hidden_size": 7,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 5,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-2,
    },
    "silu, one segment, the longest sequence": {
        "hidden_act": "silu",
        "type_vocab_size": 1,
        "max_position_embeddings": 6,
    },
    "untied, tanh, wide": {
        "tie_word_embeddings": False,
        "hidden_act": "tanh",
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 16,
    },
}
LENGTH = 6


def make_model(name: str) -> Any:
    """Returns a model of a case whose weights are drawn by torch's global seed."""
    config = BertConfig(**{**SMALL, **CASES[name]})
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # Ones and zeros hide mistakes.
        # Untied, there is a second bias, which is not used.
        model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    return model


def draw_inputs(model: Any, batch_size: int = 3) -> dict[str, Any]:
    """Returns the inputs of a batch, some of whose sequences are padded, by the names of ours."""
    shape = (batch_size, LENGTH)
    lengths = torch.randint(2, LENGTH + 1, (batch_size, 1))
    lengths[0] = LENGTH
    mask = (torch.arange(LENGTH) < lengths).long()
    # Real tokens are none of padding's, through whose row torch sends no gradient.
    return {
        "token_ids": torch.randint(1, model.config.vocab_size, shape) * mask,
        "padding_mask": mask,
        "segment_ids": torch.randint(0, model.config.type_vocab_size, shape),
    }


def compute_logits(model: Any, inputs: dict[str, Any]) -> Any:
    """Returns the logits of all tokens."""
    return model(
        input_ids=inputs["token_ids"],
        attention_mask=inputs["padding_mask"],
        token_type_ids=inputs["segment_ids"],
    ).logits


def run_case(name: str) -> dict[str, np.ndarray]:
    """Returns config, inputs, weights, logits and gradients."""
    model = make_model(name)
    inputs = draw_inputs(model)
    logits = compute_logits(model, inputs)
    direction = torch.randn(logits.shape)
    (logits * direction * inputs["padding_mask"][..., None]).sum().backward()
    arrays = {
        "config": np.array(json.dumps(model.config.to_diff_dict())),
        "logits": logits.detach().numpy(),
        "direction": direction.numpy(),
    }
    for key, tensor in inputs.items():
        arrays[f"input/{key}"] = tensor.numpy().astype("int32")
    for key, parameter in model.named_parameters():  # Each shared one by its first name.
        if "pooler" in key:
            continue
        arrays[f"weight/{key}"] = parameter.detach().numpy().copy()
        if parameter.grad is not None:
            arrays[f"gradient/{key}"] = parameter.grad.numpy()
    return arrays


def main() -> None:
    """Writes the file beside this script."""
    torch.manual_seed(0)
    write_cases("bert_masked_lm", {name: run_case(name) for name in CASES})


if __name__ == "__main__":
    main()
