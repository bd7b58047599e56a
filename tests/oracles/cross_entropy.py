"""Cross entropy over a vocabulary in float64 NumPy, one token after another."""

import numpy as np


def project(hidden, kernel, bias=0.0, soft_cap=None):
    logits = np.asarray(hidden, "float64") @ np.asarray(kernel, "float64") + bias
    return logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)


def token_losses(logits, targets, ignore_class=None, z_loss=0.0):
    losses = np.zeros(targets.shape)
    for index in np.ndindex(*targets.shape):
        if targets[index] == ignore_class:
            continue
        row = logits[index]
        normalizer = row.max() + np.log(np.sum(np.exp(row - row.max())))
        losses[index] = normalizer - row[targets[index]] + z_loss * normalizer**2
    return losses
