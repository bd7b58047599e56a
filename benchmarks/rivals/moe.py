"""A mixture of experts, a dense layer of equal active size, and a loop over the experts."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from compiled import Rival
from keras import ops

from keras_deepseek.layers import DeepSeekMoE, ExpertRouter, SwiGLU
from keras_deepseek.layers.moe.expert_dispatch import choose_block_size, count_blocks


def make_rivals(
    num_tokens: int, num_experts: int, num_experts_per_token: int, dim: int, intermediate_dim: int
) -> tuple[dict[str, Rival], dict[str, Any]]:
    """Returns the rivals, and what the router did to them."""
    tokens = np.random.default_rng(0).normal(size=(num_tokens, dim)).astype("float32")
    tokens = ops.convert_to_tensor(tokens)
    router = ExpertRouter(num_experts, num_experts_per_token)
    mixture = DeepSeekMoE(router, intermediate_dim, num_shared_experts=0)
    dense = SwiGLU(intermediate_dim * num_experts_per_token)
    loop = LOOPS[keras.backend.backend()]
    for layer in (mixture, dense):
        layer.build((num_tokens, dim))

    def loop_over_experts(inputs: Any) -> Any:
        kernels = (mixture.gate_kernel, mixture.up_kernel, mixture.down_kernel)
        weights, indices = router(inputs)
        return loop(inputs, weights, indices, [ops.convert_to_tensor(x) for x in kernels])

    difference = ops.max(ops.abs(mixture(tokens) - loop_over_experts(tokens)))
    largest = ops.max(ops.abs(mixture(tokens)))
    if difference > 1e-4 * largest:
        raise AssertionError(f"The loop differs by {difference}, of values up to {largest}.")
    load = np.bincount(np.ravel(ops.convert_to_numpy(router(tokens)[1])), minlength=num_experts)
    rivals = {
        "DeepSeekMoE": Rival(mixture, [tokens], [mixture]),
        "dense": Rival(dense, [tokens], [dense]),
        "loop": Rival(loop_over_experts, [tokens], [mixture]),
    }
    facts = {"largest_load_by_mean": float(load.max() / load.mean())}
    facts["rows"] = _count_rows(num_tokens, num_experts, num_experts_per_token)
    return rivals, facts


def _count_rows(num_tokens: int, num_experts: int, num_experts_per_token: int) -> float:
    """Returns how many rows are computed for each that was chosen."""
    num_choices = num_tokens * num_experts_per_token
    if keras.backend.backend() == "torch":
        return 1.0  # Or a few more, where there is too little work to look.
    block_size = choose_block_size(num_tokens, num_choices, num_experts)
    if block_size is None:
        return num_experts / num_experts_per_token
    return count_blocks(num_choices, num_experts, block_size) * block_size / num_choices


def _loop_in_torch(inputs: Any, weights: Any, indices: Any, kernels: list[Any]) -> Any:
    """As the eager experts of transformers do: each looks up its tokens, and adds its results."""
    import torch

    outputs = torch.zeros_like(inputs)
    # The gradient of one expert's kernel, cut out of all, would be of the size of all.
    by_expert = zip(*(kernel.unbind() for kernel in kernels), strict=True)
    for expert, (gate, up, down) in enumerate(by_expert):
        token, choice = torch.where(indices == expert)
        if not len(token):
            continue
        rows = inputs[token]
        hidden = torch.nn.functional.silu(rows @ gate) * (rows @ up)
        outputs = outputs.index_add(0, token, hidden @ down * weights[token, choice, None])
    return outputs


def _loop_in_tensorflow(inputs: Any, weights: Any, indices: Any, kernels: list[Any]) -> Any:
    import tensorflow as tf

    outputs = []
    by_expert = zip(*(tf.unstack(kernel) for kernel in kernels), strict=True)
    token_indices = []
    for expert, (gate, up, down) in enumerate(by_expert):
        chosen = tf.where(tf.equal(indices, expert))
        rows = tf.gather(inputs, chosen[:, 0])
        hidden = tf.nn.silu(rows @ gate) * (rows @ up)
        outputs.append(hidden @ down * tf.gather_nd(weights, chosen)[:, None])
        token_indices.append(chosen[:, :1])
    # One sum for all: to add expert by expert, TensorFlow would copy the outputs each time.
    shape = tf.shape(inputs, out_type="int64")
    return tf.scatter_nd(tf.concat(token_indices, 0), tf.concat(outputs, 0), shape)


def _loop_in_jax(inputs: Any, weights: Any, indices: Any, kernels: list[Any]) -> Any:
    """Under jit no shape depends on numbers: every expert computes every token."""
    import jax
    import jax.numpy as jnp

    outputs = jnp.zeros_like(inputs)
    for expert in range(kernels[0].shape[0]):
        gate, up, down = (kernel[expert] for kernel in kernels)
        weight = jnp.sum(jnp.where(indices == expert, weights, 0.0), axis=-1, keepdims=True)
        outputs += weight * (jax.nn.silu(inputs @ gate) * (inputs @ up) @ down)
    return outputs


LOOPS: dict[str, Callable[..., Any]] = {
    "torch": _loop_in_torch,
    "tensorflow": _loop_in_tensorflow,
    "jax": _loop_in_jax,
}
