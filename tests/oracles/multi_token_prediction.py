"""Section 2.2 of DeepSeek-V3's report in float64 NumPy, one token of one sequence at a time."""

import numpy as np


def rms_norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x**2) + epsilon) * scale


def predict(hidden, tokens, table, modules, epsilon):
    """Returns the hidden states of each module, of as many tokens as there are to predict from.

    `hidden` is of shape `(length, dim)`; each of `modules` is a tuple of the scale of the hidden
    norm, that of the embedding norm, the projection and the block, a function of `(length, dim)`.
    """
    previous, by_depth = np.asarray(hidden, "float64"), []
    for depth, (hidden_scale, embedding_scale, projection, block) in enumerate(modules, 1):
        rows = []
        for i in range(len(tokens) - depth):
            normed = rms_norm(previous[i], hidden_scale, epsilon)
            embedded = rms_norm(
                table[tokens[i + depth]].astype("float64"), embedding_scale, epsilon
            )
            rows.append(np.concatenate([normed, embedded]) @ projection)
        previous = block(np.array(rows).reshape(-1, hidden.shape[-1]))
        by_depth.append(previous)
    return by_depth


def mean_loss(by_depth_of_sequences, sequences, head, loss_weight):
    """Returns `loss_weight` times the mean over depths of the mean over tokens, -log p."""
    depth = len(by_depth_of_sequences[0])
    total = 0.0
    for k in range(1, depth + 1):
        terms = []
        for by_depth, tokens in zip(by_depth_of_sequences, sequences, strict=True):
            for i in range(len(tokens) - k - 1):
                logits = by_depth[k - 1][i] @ head
                p = np.exp(logits - logits.max())
                terms.append(-np.log(p[tokens[i + k + 1]] / p.sum()))
        total += np.mean(terms) if terms else 0.0
    return loss_weight * total / depth
