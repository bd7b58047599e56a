"""Language models that transformers computed, in `golden/language_models.npz`, and ours.

The file is written by `golden/write_language_models.py`: for each family one tiny model with its
`config.json`, its tensors by their names in a checkpoint, a padded batch, and what it came to.
"""

import json
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.layers.heads.token_losses import compute_token_losses
from keras_deepseek.testing import assert_close
from tests.oracles.parity import FOLDER

PATH = FOLDER / "language_models.npz"


@dataclass(frozen=True)
class GoldenModel:
    """What is known of one model.

    Args:
        config: Its `config.json`.
        tensors: Its weights by their names in a checkpoint.
        batch: Tokens and their padding mask.
        logits: What it gives at every place; of no meaning at padding.
        loss: The mean over the tokens that follow a real one.
        slopes: For each tensor the product of its gradient and `direction(tensor)`.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    batch: dict[str, np.ndarray]
    logits: np.ndarray
    loss: float
    slopes: dict[str, float]


def direction(array):
    """Numbers in the shape of a tensor that no other order of its entries has."""
    return np.cos(np.arange(array.size, dtype="float64")).reshape(array.shape)


def pack(tensors):
    """Returns tensors of half precision as one array, and what `unpack` needs beside it."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    flat = np.concatenate([tensor.ravel() for tensor in tensors.values()]).astype("float16")
    return {"tensors": flat, "shapes": np.array(json.dumps(shapes))}


def unpack(arrays):
    """Returns tensors by their names."""
    shapes = json.loads(str(arrays["shapes"]))
    ends = np.cumsum([np.prod(shape, dtype="int64") for shape in shapes.values()])
    parts = np.split(arrays["tensors"].astype("float32"), ends[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def read_case(name):
    """Returns the model of a family."""
    with np.load(PATH) as file:
        arrays = {
            key.partition("|")[2]: file[key] for key in file.files if key.startswith(f"{name}|")
        }
    tensors = unpack(arrays)
    return GoldenModel(
        config=json.loads(str(arrays["config"])),
        tensors=tensors,
        batch={key: arrays[key] for key in ("token_ids", "padding_mask")},
        logits=arrays["logits"],
        loss=float(arrays["loss"]),
        slopes=dict(zip(tensors, arrays["slopes"].tolist(), strict=True)),
    )


def as_array(array):
    return np.stack(array.arrays) if hasattr(array, "arrays") else np.asarray(array)


def assign(entries, tensors):
    """Gives a model its weights; no tensor may be left over."""
    unassigned = set(tensors)
    for entry in entries:
        arrays = entry.to_variables([tensors[name] for name in entry.tensors])
        for variable, array in zip(entry.variables, arrays, strict=True):
            variable.assign(as_array(array))
        unassigned -= set(entry.tensors)
    assert unassigned == set()


def check_outputs(model, case, entries=None):
    """Fails unless a model gives the logits, the loss and the gradients of a case."""
    mask = case.batch["padding_mask"]
    logits = keras.ops.convert_to_numpy(model(case.batch))
    assert_close(logits[mask > 0], case.logits[mask > 0], 2e-5)
    counted = (mask[:, :-1] * mask[:, 1:]).astype("float32")
    targets = keras.ops.convert_to_tensor(case.batch["token_ids"][:, 1:])

    def loss():
        losses = compute_token_losses(model(case.batch)[:, :-1], targets)
        return keras.ops.sum(keras.ops.multiply(losses, counted)) / float(counted.sum())

    assert_close(keras.ops.convert_to_numpy(loss()), case.loss, 1e-5)
    variables = model.trainable_variables
    _, gradients = backend.current().compute.compute_gradients(loss, [], variables)
    by_variable = dict(zip(map(id, variables), gradients, strict=True))
    slopes = {}
    for entry in entries or model.checkpoint_entries():
        arrays = [by_variable.get(id(v), np.zeros(v.shape, "float32")) for v in entry.variables]
        for name, array in zip(entry.tensors, entry.to_tensors(arrays), strict=True):
            slopes[name] = float(np.vdot(direction(array), np.asarray(array, "float64")))
    assert set(slopes) == set(case.slopes)
    names = sorted(slopes)
    assert_close([slopes[name] for name in names], [case.slopes[name] for name in names], 1e-4)


def check_entries(model, entries):
    """Every variable but counters has one entry, whose functions are each other's inverse."""
    written = [id(variable) for entry in entries for variable in entry.variables]
    expected = {id(v) for v in model.variables if not v.path.endswith("expert_load")}
    assert len(written) == len(set(written))
    assert set(written) == expected
    names = [name for entry in entries for name in entry.tensors]
    assert len(names) == len(set(names))
    for entry in entries:
        arrays = [keras.ops.convert_to_numpy(variable) for variable in entry.variables]
        tensors = [np.asarray(tensor) for tensor in entry.to_tensors(arrays)]
        assert [tensor.shape for tensor in tensors] == entry.tensor_shapes()
        for array, back in zip(arrays, entry.to_variables(tensors), strict=True):
            np.testing.assert_array_equal(as_array(back), array)


def count_parameters(config):
    """Returns how many numbers a model of a `DeepSeekConfig` has, those of an indexer too."""
    dim, heads = config.hidden_dim, config.num_heads
    head_dim = config.nope_head_dim + config.rope_head_dim
    rank, query_dim = config.key_value_lora_rank, config.query_lora_rank or dim
    attention = query_dim * heads * head_dim + dim * (rank + config.rope_head_dim) + rank
    attention += heads * (rank * (config.nope_head_dim + config.value_head_dim))
    attention += heads * config.value_head_dim * dim
    if config.query_lora_rank:
        attention += dim * query_dim + query_dim
    if hasattr(config, "index_head_dim"):
        index_dim, index_heads = config.index_head_dim, config.index_num_heads
        attention += query_dim * index_heads * index_dim + dim * index_dim + 2 * index_dim
        attention += dim * index_heads
    experts = config.num_experts * dim
    if config.router_arguments().get("use_expert_bias", True):
        experts += config.num_experts
    experts += (
        3 * dim * config.moe_intermediate_dim * (config.num_experts + config.num_shared_experts)
    )
    total = config.vocabulary_size * dim * (1 if config.tie_word_embeddings else 2) + dim
    for index in range(config.num_layers + config.num_prediction_layers):
        total += attention + 2 * dim
        total += experts if config.has_experts(index) else 3 * dim * config.intermediate_dim
    return total + config.num_prediction_layers * (2 * dim * dim + 3 * dim)
