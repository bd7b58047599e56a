"""Random models and a corpus of models, for tests of graphs."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops


def random_model(r: np.random.Generator) -> tuple[keras.Model, tuple[int, int]]:  # noqa: PLR0912
    """Returns a random model of sequences with random weights, and the shape of one input."""
    length, dim = int(r.choice([3, 5, 8])), int(r.choice([4, 6, 8]))
    inputs = keras.Input((length, dim))
    pool = [inputs]

    def pick(candidates: list[Any]) -> Any:
        return candidates[int(r.integers(len(candidates)))]

    for _ in range(int(r.integers(3, 12))):
        x = pick(pool) if r.random() < 0.5 else pool[-1]
        is_sequence, kind = len(x.shape) == 3, int(r.integers(15))
        same = [p for p in pool if p.shape == x.shape]
        rows = [p for p in pool if is_sequence and len(p.shape) == 3 and p.shape[1] == x.shape[1]]
        fits = [p for p in pool if is_sequence and len(p.shape) == 3 and p.shape[1] == x.shape[2]]
        if kind == 0:
            y = layers.Dense(
                int(r.choice([2, 4, 8])), activation=str(r.choice(["relu", "gelu", "linear"]))
            )(x)
        elif kind == 1:
            y = layers.LayerNormalization()(x)
        elif kind == 2:
            y = x + pick(same)
        elif kind == 3:
            y = layers.BatchNormalization()(layers.Dense(4)(x))
        elif kind == 4:
            y = layers.Dropout(0.3)(x) * 0.5
        elif kind == 5:
            dense = layers.Dense(4)
            y = dense(x)
            dense.enable_lora(2)
        elif kind == 6:
            y = ops.softmax(x, axis=int(r.choice([-1, 1])) if is_sequence else -1)
        elif not is_sequence:
            continue
        elif kind == 7:
            y = layers.MultiHeadAttention(2, 4, dropout=float(r.choice([0, 0.2])))(
                x, x, use_causal_mask=bool(r.integers(2))
            )
        elif kind == 8:
            y = ops.transpose(x, (0, 2, 1))
        elif kind == 9:
            y = x[:, int(r.integers(-x.shape[1], x.shape[1]))]
        elif kind == 10:
            start = int(r.integers(x.shape[1]))
            y = x[:, start : start + 2]
        elif kind == 11:
            y = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        elif kind == 12 and fits:
            y = ops.matmul(x, pick(fits))
        elif kind == 13:
            y = ops.einsum("bsd,bsf->bdf", x, pick(rows))
        else:
            y = ops.reshape(x, (-1, x.shape[1] * x.shape[2]))
        pool.append(y)
    outputs = [pool[-1], *([pick(pool[1:])] if len(pool) > 2 and r.random() < 0.3 else [])]
    model = keras.Model(inputs, outputs)
    for v in model.variables:
        if "float" in v.dtype and not v.path.endswith("moving_variance"):
            v.assign(r.normal(size=v.shape) * 0.5)
    return model, (length, dim)
