"""Training of a network of two layers in float64: clipping, AdamW and moving averages by hand."""

import numpy as np


def train(weights, x, y, *, steps, clip, learning_rate, weight_decay, ema_momentum, batch_size=16):
    """Returns the loss of each step, and the moving averages of the weights after the last.

    tanh between the layers, cross entropy of logits, gradients clipped by their global norm; Adam
    as Keras writes it, with the epsilon outside of the bias correction.
    """
    weights = [weight.astype("float64") for weight in weights]
    first = [np.zeros_like(weight) for weight in weights]
    second = [np.zeros_like(weight) for weight in weights]
    average = [np.zeros_like(weight) for weight in weights]
    losses = []
    for step in range(1, steps + 1):
        start = (step - 1) * batch_size % len(x)
        loss, gradients = _differentiate(weights, x[start : start + batch_size], y[start:])
        losses.append(loss)
        norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
        gradients = [gradient * min(1.0, clip / norm) for gradient in gradients]
        rate = learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for index, gradient in enumerate(gradients):
            weights[index] -= learning_rate * weight_decay * weights[index]
            first[index] += (gradient - first[index]) * 0.1
            second[index] += (gradient**2 - second[index]) * 0.001
            weights[index] -= rate * first[index] / (np.sqrt(second[index]) + 1e-7)
            keep = 0.0 if step == 1 else ema_momentum
            average[index] = keep * average[index] + (1 - keep) * weights[index]
    return losses, average


def _differentiate(weights, x, y):
    inner, inner_bias, outer, outer_bias = weights
    y = y[: len(x)]
    hidden = np.tanh(x @ inner + inner_bias)
    logits = hidden @ outer + outer_bias
    logits -= logits.max(axis=1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(x))
    by_logits = np.exp(logs)
    by_logits[rows, y] -= 1
    by_logits /= len(x)
    by_hidden = (by_logits @ outer.T) * (1 - hidden**2)
    return -logs[rows, y].mean(), [
        x.T @ by_hidden,
        by_hidden.sum(axis=0),
        hidden.T @ by_logits,
        by_logits.sum(axis=0),
    ]
