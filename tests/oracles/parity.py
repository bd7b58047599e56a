"""Cases of parity: what a module of another library computed, and the check that ours does too.

A script `golden/make_KIND.py` runs that library. It has `CASES`, by name, and `run_case(name)`,
which draws weights and inputs by torch's global seed and returns a case. Its `main` writes them all
to `golden/KIND.npz` by `write_cases`, for the everyday tests, which read that file alone; the tox
environment `parity` finds the script and calls `run_case` with other seeds. A case is a dict of
arrays by name:

| name | what |
|---|---|
| `layer` | the name of the layer in `keras_deepseek.layers` |
| `arguments` | its arguments, as JSON; a layer among them serialized |
| `inputs`, `call/NAME` | the first argument of the call, and further ones |
| `mask` | boolean, false at padding, where nothing is compared; may be missing |
| `weight/PATH` | each weight of the layer, by its path below the layer's own name |
| `outputs` | what the other library computed |
| `direction` | drawn at random, in the shape of `outputs` |
| `gradient/inputs`, `gradient/PATH` | those of the sum of `outputs * direction` at real tokens |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend, layers
from keras_deepseek.testing import assert_close

FOLDER = Path(__file__).parent / "golden"
GRADIENT_TOLERANCE = 1e-4

Case = dict[str, np.ndarray]


def write_cases(kind: str, cases: Mapping[str, Case]) -> None:
    """Writes `golden/KIND.npz` and prints how large it is."""
    path = FOLDER / f"{kind}.npz"
    arrays = {f"{name}|{key}": array for name, case in cases.items() for key, array in case.items()}
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1000:.0f} kB")


def read_cases(kind: str) -> dict[str, Case]:
    """Returns the cases of `golden/KIND.npz` by their names."""
    cases: dict[str, Case] = {}
    with np.load(FOLDER / f"{kind}.npz") as file:
        for full_name in file.files:
            name, _, key = full_name.partition("|")
            cases.setdefault(name, {})[key] = file[full_name]
    return cases


def read_arguments(case: Case) -> Any:
    """Returns what the layer is made from.

    The files have the numbers of DeepSeek's rotary embedding by their names in a config.
    """
    arguments = json.loads(str(case["arguments"]))
    if "rope_head_dim" in arguments:
        is_compressed = "compress_rate" in arguments
        scaling = arguments.pop("rope_scaling", None)
        if "sliding_window" in arguments and scaling is not None and scaling["rope_type"] == "yarn":
            scaling = {"attention_factor": 1.0, **scaling}
        arguments["rotary"] = layers.RotaryEmbedding(
            arguments.pop("rope_max_wavelength", 160000.0 if is_compressed else 10000.0),
            use_interleaved_pairs=arguments.pop("use_interleaved_pairs", True),
            scaling=scaling,
        )
        if "key_value_lora_rank" in arguments:
            arguments["use_causal_mask"] = True
    return arguments


def make_layer(case: Case) -> keras.layers.Layer:
    """Returns the layer of a case, with weights of its own."""
    return getattr(layers, str(case["layer"]))(**read_arguments(case))


def named_weights(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the weights of a built layer by their paths below its own name."""
    return {weight.path.partition("/")[2]: weight for weight in layer.weights}


def check_case(layer: keras.layers.Layer, case: Case) -> tuple[float, float]:
    """Fails unless a layer gives the outputs and gradients of a case, from its weights.

    Returns the largest error of the outputs and that of the gradients, each relative to the largest
    magnitude of its array.
    """
    arguments = {key[5:]: case[key] for key in case if key.startswith("call/")}
    if "mask" in case:
        arguments["mask"] = case["mask"]
    inputs = keras.ops.convert_to_tensor(case["inputs"])
    layer(inputs, **arguments)  # Builds it.
    weights = named_weights(layer)
    case_weights = {key[7:] for key in case if key.startswith("weight/")}
    assert set(weights) == case_weights, (
        f"Weights {sorted(weights)}, in the case {sorted(case_weights)}"
    )
    for key, weight in weights.items():
        weight.assign(case[f"weight/{key}"])

    real = np.ones(case["outputs"].shape, "float32")
    if "mask" in case:
        real = real * case["mask"].reshape(case["mask"].shape + (1,) * (real.ndim - 2))
    outputs = keras.ops.convert_to_numpy(layer(inputs, **arguments)) * real
    assert_close(outputs, case["outputs"] * real, what="The outputs")

    by_float_input = {"inputs": case["inputs"]} if "gradient/inputs" in case else {}
    variables = {key: weight for key, weight in weights.items() if f"gradient/{key}" in case}

    def objective(*tensors: Any) -> Any:
        outputs = layer(tensors[0] if tensors else inputs, **arguments)
        return keras.ops.sum(keras.ops.multiply(outputs, case["direction"] * real))

    by_input, by_weight = backend.current().compute.compute_gradients(
        objective, list(by_float_input.values()), list(variables.values())
    )
    pairs = {
        key: (gradient, case[f"gradient/{key}"])
        for key, gradient in zip(
            [*by_float_input, *variables], [*by_input, *by_weight], strict=True
        )
    }
    compared = {key[9:] for key in case if key.startswith("gradient/")}
    assert set(pairs) == compared, f"Gradients {sorted(compared)}, weights {sorted(weights)}"
    for key, (gradient, expected) in pairs.items():
        assert_close(gradient, expected, GRADIENT_TOLERANCE, f"The gradient by {key}")
    return (
        _error(outputs, case["outputs"] * real),
        max(_error(*pair) for pair in pairs.values()),
    )


def _error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))
