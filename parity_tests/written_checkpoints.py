"""Models of transformers with random weights, the folders that they write, and ours from these.

Weights are drawn wide enough that every tensor shows in the outputs, those among them that start at
zero or one.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from parity_tests.language_model_cases import Family

BATCH_SIZE, LENGTH = 3, 13
FEWEST_EXPERTS = 5
IGNORED = -100
"""What stands for no label in transformers."""


def make_theirs(family: Family, case: str, seed: int = 0) -> Any:
    """Returns a model of transformers."""
    torch.manual_seed(seed)
    arguments = json.loads(json.dumps({**family.sizes, **family.cases[case]}))  # It changes them.
    config = getattr(transformers, family.their_config)(**arguments)
    config._attn_implementation = config._experts_implementation = "eager"  # For odd sizes.
    model = getattr(transformers, family.their_model)(config).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not name.endswith("inv_freq"):
                draw(name, tensor)
    return model


def draw(name: str, tensor: torch.Tensor) -> None:
    """Draws a tensor: scales about one, and all others about zero."""
    is_scale = "norm" in name and name.endswith("weight")
    if name.endswith("tid2eid"):  # The experts of each token: numbers, no two the same.
        shuffled = torch.rand(len(tensor), FEWEST_EXPERTS).argsort(dim=1)
        tensor.copy_(shuffled[:, : tensor.shape[1]])
        return
    tensor.normal_(mean=float(is_scale), std=0.2)


def write_theirs(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Writes a model's folder, and returns what the files there hold."""
    model.save_pretrained(folder)
    return read_tensors(folder)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def their_gradients(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Returns the gradients of a model by the names of its tensors in a checkpoint.

    They are written as if they were its weights, by which they go through the same changes.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            gradient = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
        for buffer in model.buffers():
            buffer.zero_()
    return write_theirs(model, folder)


def make_ours(family: Family, folder: Path) -> Any:
    """Returns our model of a folder that transformers wrote, with its weights."""
    return family.model_class().from_preset(folder, verbose=False)


def perturb_ours(model: Any, seed: int = 0) -> None:
    """Draws the weights of our model as those of transformers are drawn."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.endswith(("expert_load", "token_to_experts")):
            continue
        is_scale = variable.path.endswith(("scale", "gamma"))
        variable.assign(is_scale + rng.normal(scale=0.2, size=variable.shape))


def to_tensors(
    model: Any, by_variable: dict[int, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    """Returns what is given for each variable, by the names of a checkpoint.

    Args:
        model: Our model.
        by_variable: Arrays by the `id` of a variable; zeros for those that it lacks.
        folder: The checkpoint. A family may have several names.
    """
    tensors = {}
    for entry in model.checkpoint_entries(WeightsFolder(folder).names):
        arrays = [
            by_variable.get(id(variable), np.zeros(variable.shape, "float32"))
            for variable in entry.variables
        ]
        tensors |= dict(zip(entry.tensors, entry.to_tensors(arrays), strict=True))
    return tensors


def load_theirs(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Returns the model that transformers makes of a folder, and what it says of the loading."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )


def draw_batch(vocabulary_size: int, side: str | None, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns tokens, of sequences of different lengths where they are padded on a side."""
    rng = np.random.default_rng(seed)
    mask = np.ones((BATCH_SIZE, LENGTH), "int32")
    for row in range(1, BATCH_SIZE):
        hidden = 4 * row
        if side is not None:
            mask[row, slice(hidden) if side == "left" else slice(-hidden, None)] = 0
    tokens = rng.integers(0, vocabulary_size, mask.shape).astype("int32")
    return {"token_ids": tokens, "padding_mask": mask}


def call_theirs(model: Any, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits, and the mean loss of the tokens that are real and follow one that is."""
    tokens, mask = (torch.from_numpy(batch[key]).long() for key in ("token_ids", "padding_mask"))
    counted = mask.clone()
    counted[:, 1:] *= mask[:, :-1]  # Transformers shifts the labels itself.
    labels = torch.where(counted > 0, tokens, IGNORED)
    outputs = model(input_ids=tokens, attention_mask=mask, labels=labels)
    return outputs.logits, outputs.loss
