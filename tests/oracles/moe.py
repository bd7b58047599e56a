"""Routing and a mixture of experts in float64 NumPy: a loop over the experts of each token.

From the formulas of the DeepSeek-V2, V3 and V4 papers.
"""

import numpy as np

from tests.oracles.swiglu import swiglu

SCORINGS = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "softmax": lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum(),
    "sqrt_softplus": lambda z: np.sqrt(np.logaddexp(z, 0)),
}


def route(x, kernel, bias, settings):
    """Routes one token; `settings` is the router's config. Returns the scores and the experts."""
    scores = SCORINGS[settings["scoring"]](np.asarray(x, "float64") @ kernel)
    choice = scores if bias is None else scores + bias
    size = settings["num_experts"] // settings["num_groups"]
    groups = choice.reshape(-1, size)
    top = np.sort(groups, axis=1)[:, -1 if settings["group_scoring"] == "max" else -2 :]
    best = np.argsort(-top.sum(axis=1))[: settings["num_groups_per_token"]]
    eligible = [g * size + e for g in best for e in range(size)]
    return scores, sorted(eligible, key=lambda e: -choice[e])[: settings["num_experts_per_token"]]


def weigh(scores, experts, settings):
    weights = scores[experts]
    if settings["normalize_weights"]:
        weights = weights / (weights.sum() + 1e-20)
    return weights * settings["routed_scale"]


def mixture(x, routes, kernels, shared, clamp=None):
    """`routes` holds the weights and experts of each token, in the order of the flattened `x`."""
    tokens = np.asarray(x, "float64").reshape(-1, x.shape[-1])
    outputs = np.zeros_like(tokens)
    for index, (weights, experts) in enumerate(routes):
        token = tokens[index]
        for weight, expert in zip(weights, experts, strict=True):
            outputs[index] += weight * swiglu(
                token, *((k[expert], 0.0) for k in kernels), clamp=clamp
            )
    if shared is not None:
        outputs += swiglu(tokens, *((kernel, 0.0) for kernel in shared), clamp=clamp)
    return outputs.reshape(x.shape)
