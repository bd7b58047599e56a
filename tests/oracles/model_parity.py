"""Cases of parity of whole models: what another library computed, and the check that ours does too.

A script `golden/models/make_KIND.py` runs that library; its `CASES` and `run_case(name)` are as
those of layers, of which `parity.py` tells. A case is a dict of arrays by name:

| name | what |
|---|---|
| `config` | the config of the checkpoint, as JSON |
| `input/NAME` | the inputs of the model; `padding_mask` says where something is compared |
| `weight/TENSOR`, `gradient/TENSOR` | each tensor of the checkpoint, and its gradient |
| `logits` | what the other library computed |
| `direction` | drawn at random; the gradients are those of the sum of `logits * direction` |
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry

FOLDER = Path(__file__).parent / "golden" / "models"
LOGITS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3

Case = dict[str, np.ndarray]


def write_cases(kind: str, cases: Mapping[str, Case]) -> None:
    """Writes `golden/models/KIND.npz` and prints how large it is.

    All floats of a case go into one array: a file of many small ones is mostly headers.
    """
    path = FOLDER / f"{kind}.npz"
    arrays = {}
    for name, case in cases.items():
        floats = {key: array for key, array in case.items() if array.dtype == "float32"}
        shapes = json.dumps({key: array.shape for key, array in floats.items()})
        arrays[f"{name}|shapes"] = np.array(shapes)
        arrays[f"{name}|floats"] = np.concatenate([array.ravel() for array in floats.values()])
        arrays |= {f"{name}|{key}": case[key] for key in case if key not in floats}
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1000:.0f} kB")


def read_cases(kind: str) -> dict[str, Case]:
    """Returns the cases of `golden/models/KIND.npz` by their names."""
    cases: dict[str, Case] = {}
    with np.load(FOLDER / f"{kind}.npz") as file:
        for full_name in file.files:
            name, _, key = full_name.partition("|")
            cases.setdefault(name, {})[key] = file[full_name]
    for case in cases.values():
        floats, end = case.pop("floats"), 0
        for key, shape in json.loads(str(case.pop("shapes"))).items():
            begin, end = end, end + math.prod(shape)
            case[key] = floats[begin:end].reshape(shape)
    return cases


def read_config(case: Case) -> dict[str, Any]:
    """Returns the config of the checkpoint."""
    config: dict[str, Any] = json.loads(str(case["config"]))
    return config


def part(case: Case, prefix: str) -> Case:
    """Returns the arrays whose names begin with a prefix, by the rest of their names."""
    return {key[len(prefix) :]: case[key] for key in case if key.startswith(prefix)}


def fill(model: keras.Model, entries: list[CheckpointEntry], tensors: Case) -> None:
    """Sets the weights of a model from the tensors of a checkpoint; all of both are used."""
    names = [name for entry in entries for name in entry.tensors]
    assert sorted(names) == sorted(tensors)
    filled = [variable.path for entry in entries for variable in entry.variables]
    ours = [weight.path for weight in model.weights if "seed_generator" not in weight.path]
    assert sorted(filled) == sorted(ours)
    for entry in entries:
        assert entry.tensor_shapes() == [tensors[name].shape for name in entry.tensors]
        values = entry.to_variables([tensors[name] for name in entry.tensors])
        for variable, value in zip(entry.variables, values, strict=True):
            variable.assign(np.asarray(value))


def read(entries: list[CheckpointEntry], values: Mapping[int, np.ndarray] | None = None) -> Case:
    """Returns the tensors of a checkpoint from the weights of a model, or other numbers of them."""
    tensors: Case = {}
    for entry in entries:
        arrays = [
            keras.ops.convert_to_numpy(variable) if values is None else values[id(variable)]
            for variable in entry.variables
        ]
        tensors.update(zip(entry.tensors, entry.to_tensors(arrays), strict=True))
    return tensors


def check_case(model: keras.Model, entries: list[CheckpointEntry], case: Case) -> tuple[float, ...]:
    """Fails unless a model gives the logits and gradients of a case, from its weights.

    Returns the largest error of the logits and that of the gradients, each relative to the largest
    magnitude of its array.
    """
    weights = part(case, "weight/")
    fill(model, entries, weights)
    written = read(entries)
    for name, array in weights.items():
        np.testing.assert_array_equal(written[name], array, name)

    inputs = part(case, "input/")
    real = inputs["padding_mask"][..., None].astype("float32")
    logits = keras.ops.convert_to_numpy(model(inputs))
    by_logits = relative_error(logits * real, case["logits"] * real)
    assert by_logits < LOGITS_TOLERANCE, f"Logits differ by {by_logits:.1e}"

    def objective() -> Any:
        return keras.ops.sum(keras.ops.multiply(model(inputs), case["direction"] * real))

    variables = [variable for entry in entries for variable in entry.variables]
    _, variable_gradients = backend.current().compute.compute_gradients(objective, [], variables)
    by_variable = {
        id(variable): np.asarray(grad)
        for variable, grad in zip(variables, variable_gradients, strict=True)
    }
    gradients, largest = part(case, "gradient/"), 0.0
    assert len(gradients) >= len(variables)
    for name, gradient in read(entries, by_variable).items():
        # The gradient by a key's bias is nothing but rounding: no softmax depends on it. And what
        # the other library does not use has none.
        if name.endswith("key.bias") or name not in gradients:
            continue
        error = relative_error(gradient, gradients[name])
        assert error < GRADIENT_TOLERANCE, f"The gradient by {name} differs by {error:.1e}"
        largest = max(largest, error)
    return by_logits, largest


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the largest magnitude."""
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))
