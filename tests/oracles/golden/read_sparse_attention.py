"""Reads `sparse_attention.npz`, which `make_sparse_attention.py` writes."""

import json
from pathlib import Path

import keras
import numpy as np

from keras_deepseek.backend import current
from keras_deepseek.layers import SparseAttention

FILE = np.load(Path(__file__).with_name("sparse_attention.npz"))
CASES = sorted({name.partition("/")[0] for name in FILE.files})


def compare(name):
    """Returns the largest relative error of the output, and of the gradient by the input."""
    case = {key.partition("/")[2]: FILE[key] for key in FILE.files if key.startswith(f"{name}/")}
    x, mask = case["x"], case["mask"]
    num_heads, key_dim = case["query_bias"].shape
    layer = SparseAttention(num_heads, key_dim, **json.loads(str(case["arguments"])))
    layer.build(x.shape)
    names = [f"{part}_{kind}" for part in ("query", "key", "value") for kind in ("kernel", "bias")]
    dim = x.shape[-1]
    leave_as_is = [np.eye(dim).reshape(num_heads, key_dim, dim), np.zeros(dim)]
    layer.set_weights([case[name] for name in names] + leave_as_is)

    def total(inputs):
        return keras.ops.sum(keras.ops.multiply(layer(inputs, mask=mask), case["cotangent"]))

    (gradient,), _ = current().compute_gradients(total, [x], [])
    output = keras.ops.convert_to_numpy(layer(x, mask=mask)) * mask[..., None]
    pairs = (output, case["output"]), (gradient, case["gradient"])
    return tuple(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)
