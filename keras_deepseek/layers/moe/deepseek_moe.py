"""DeepSeek's mixture of experts: a router, routed experts and shared experts.

Shape suffixes: T tokens, K experts a token, E experts, S slots, B blocks, R rows of a block, D size
of a token, F hidden size of an expert.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.call_context import known_size
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.layers.double_precision import multiply_matrices
from keras_deepseek.layers.feed_forward.swiglu import SwiGLU, gate_activations
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape, read_last_dim
from keras_deepseek.layers.moe import expert_dispatch
from keras_deepseek.layers.moe.expert_kernels import ExpertKernels
from keras_deepseek.layers.moe.expert_router import ExpertRouter
from keras_deepseek.layers.moe.expert_scores import expert_hits
from keras_deepseek.layers.moe.kernel_stack import KernelStack

Kernels = Sequence[KernelStack]
"""The kernels of gate (EDF), up (EDF) and down (EFD)."""


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekMoE(FloatingInputLayer):
    """A feed-forward block of many experts; each token uses a few of them.

    Choose it over `SwiGLU` for more parameters at the same work per token. It computes

    ```
    weights, indices = router(x)
    output = sum(weights[i] * expert[indices[i]](x) for i) + shared_experts(x)
    ```

    where every expert is a `SwiGLU` without biases, of the same `intermediate_dim` and `clamp`, and
    the shared experts, which every token uses, are one `SwiGLU` of `num_shared_experts` times that
    width.

    No token is dropped unless `capacity_factor` is set. In PyTorch, and in TensorFlow eagerly or in
    graphs of up to 64 experts without XLA, each expert computes only its tokens. If text is
    generated for few tokens, each choice of an expert is computed by itself, and reads the kernels
    of its expert in place. Otherwise, as in JAX, tokens are sorted by expert into blocks of a fixed
    size, and each block is multiplied with the kernels of its expert. When JAX generates text on a
    CPU, without gradients, blocks are computed one by one and empty blocks are skipped. Few tokens
    go through all experts if that costs less. Masked tokens use no routed
    expert and are not counted in the load.

    The kernels are stacked: `.../expert_gate/kernel` and `.../expert_up/kernel` of shape
    `(num_experts, dim, intermediate_dim)`, `.../expert_down/kernel` of
    `(num_experts, intermediate_dim, dim)`. A `keras.distribution.LayoutMap` can shard them on any
    axis. To shard the first axis, set a `capacity_factor`: without it the blocks of every device
    need the kernels of all devices. `keras.Model.quantize` quantizes them in int8 and int4, and
    each of the three has `enable_lora`. The router always stays in floating-point numbers.

    Args:
        router: `ExpertRouter`, such as a `HashRouter`, or its serialized config. It chooses the
            experts and sets their number. Each layer needs its own router.
        intermediate_dim: integer. Size of the hidden activations of one expert.
        num_shared_experts: integer. The number of experts that every token uses. Defaults to `1`.
        clamp: float or `None`. Bound of the hidden activations, as in `SwiGLU`. Defaults to `None`.
        capacity_factor: float or `None`. Each expert computes at most this many times its even
            share of the choices, in one product; further choices are dropped. `None` drops nothing.
            Defaults to `None`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            kernels of all experts. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.
        token_ids: Integer tensor of shape `(batch_size, ...)`, or `None`. A `HashRouter` needs
            them.
        mask: Boolean tensor of shape `(batch_size, ...)`, or `None`. `False` hides a token.
        training: boolean. If true, the router updates its load and adds its losses.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype.

    Raises:
        InvalidInputError: `router` is not an `ExpertRouter`; a size, `clamp` or `capacity_factor`
            is not positive; or the inputs are not floating-point, have no axis besides the batch,
            or a last axis of unknown size.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
    >>> router = ExpertRouter(num_experts=8, num_experts_per_token=2)
    >>> layer = DeepSeekMoE(router, intermediate_dim=16)
    >>> tuple(layer(np.ones((2, 5, 12), "float32")).shape)
    (2, 5, 12)

    Reference:

    - [DeepSeekMoE (Dai et al., 2024)](https://arxiv.org/abs/2401.06066)
    - [DeepSeek-V3 Technical Report (DeepSeek-AI, 2024)](https://arxiv.org/abs/2412.19437)
    - [MegaBlocks (Gale et al., 2022)](https://arxiv.org/abs/2211.15841), experts in blocks
    """

    def __init__(
        self,
        router: ExpertRouter | dict[str, Any],
        intermediate_dim: int,
        *,
        num_shared_experts: int = 1,
        clamp: float | None = None,
        capacity_factor: float | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(router, dict):
            router = keras.saving.deserialize_keras_object(router)
        if not isinstance(router, ExpertRouter):
            raise InvalidInputError(f"`router` must be an `ExpertRouter`, received {router!r}.")
        if router.mixture_name is not None:
            raise InvalidInputError(
                f"The `router` {router.name!r} already belongs to {router.mixture_name!r}. Create "
                "a router for each layer."
            )
        if capacity_factor is not None:
            capacity_factor = check_number("capacity_factor", capacity_factor, above=0)
        self.router = router
        router.mixture_name = self.name
        self.intermediate_dim = check_integer("intermediate_dim", intermediate_dim)
        self.num_shared_experts = check_integer("num_shared_experts", num_shared_experts, minimum=0)
        self.clamp = None if clamp is None else check_number("clamp", clamp, above=0)
        self.capacity_factor = capacity_factor
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_last_dim(self, input_shape)
        if not self.router.built:
            self.router.build(input_shape)
        self.expert_gate = self._make_kernels("expert_gate", dim, self.intermediate_dim)
        self.expert_up = self._make_kernels("expert_up", dim, self.intermediate_dim)
        self.expert_down = self._make_kernels("expert_down", self.intermediate_dim, dim)
        self.shared_experts = None
        if self.num_shared_experts:
            self.shared_experts = SwiGLU(
                self.intermediate_dim * self.num_shared_experts,
                clamp=self.clamp,
                kernel_initializer=clone_initializer(self.kernel_initializer),
                dtype=self.dtype_policy,
                name="shared_experts",
            )
            self.shared_experts.build(input_shape)

    @property
    def _expert_size(self) -> int:
        """The number of weights of one expert."""
        return int(3 * math.prod(self.expert_gate.kernel_shape[1:]))

    @property
    def gate_kernel(self) -> keras.Variable:
        """The stacked kernels of the gates, without a LoRA."""
        return self.expert_gate.kernel

    @property
    def up_kernel(self) -> keras.Variable:
        """The stacked kernels of the other projections from the inputs, without a LoRA."""
        return self.expert_up.kernel

    @property
    def down_kernel(self) -> keras.Variable:
        """The stacked kernels of the projections to the outputs, without a LoRA."""
        return self.expert_down.kernel

    def _make_kernels(self, name: str, rows: int, columns: int) -> ExpertKernels:
        shape = (self.router.num_experts, rows, columns)
        kernels = ExpertKernels(shape, self.kernel_initializer, dtype=self.dtype_policy, name=name)
        kernels.build()
        return kernels

    def call(
        self,
        inputs: Any,
        token_ids: Any = None,
        mask: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        weights, indices = self.router(inputs, token_ids, mask=mask, training=training)
        if mask is not None:
            indices = ops.where(ops.expand_dims(mask, -1), indices, self.router.num_experts)
        tokens_TD, weights_TK, indices_TK = map(_flatten_tokens, (inputs, weights, indices))
        kernels = [layer.stack() for layer in (self.expert_gate, self.expert_up, self.expert_down)]
        if isinstance(tokens_TD, keras.KerasTensor) and any(x.is_quantized for x in kernels):
            raise NotSupportedError("has quantized experts, whose products are no Keras operations")
        tensors = [tensor for stack in kernels for tensor in stack.tensors]
        arguments = (tokens_TD, ops.cast(weights_TK, tokens_TD.dtype), indices_TK, *tensors)
        route = partial(self._route, kernels)
        num_choices = ops.shape(indices_TK)[0] * self.router.num_experts_per_token
        may_read = self.capacity_factor is None
        if may_read and expert_dispatch.is_worth_reading(num_choices, self._expert_size):
            outputs_TD = backend.current().inference.run_unrecorded(route, *arguments)
        else:
            outputs_TD = route(*arguments)
        outputs = outputs_TD if tokens_TD is inputs else ops.reshape(outputs_TD, ops.shape(inputs))
        if self.shared_experts is not None:
            outputs = outputs + self.shared_experts(inputs)
        return outputs

    def _route(  # noqa: PLR0911 - one for each way
        self, kernels: Kernels, tokens_TD: Any, weights_TK: Any, indices_TK: Any, *tensors: Any
    ) -> Any:
        """Computes the outputs of the routed experts (TD) in the cheapest way for the batch.

        `tensors` are those of the kernels.
        """
        remaining = iter(tensors)
        kernels = [stack.with_tensors(islice(remaining, len(stack.tensors))) for stack in kernels]
        num_experts = self.router.num_experts
        num_tokens, per_token = ops.shape(indices_TK)
        is_empty = known_size(num_tokens) == 0
        is_quantized = any(stack.is_quantized for stack in kernels)
        if is_empty and is_quantized:
            return ops.zeros_like(tokens_TD)
        if self.capacity_factor is not None and not is_empty:
            capacity = expert_dispatch.count_capacity(
                num_tokens, num_experts, per_token, self.capacity_factor
            )
            plan = expert_dispatch.dispatch_to_capacity(indices_TK, num_experts, capacity)
            return self._compute_slots(tokens_TD, weights_TK, kernels, plan)
        by_choice = expert_dispatch.list_experts(indices_TK, num_experts, self._expert_size)
        if by_choice is not None:
            return self._compute_choices(tokens_TD, weights_TK, kernels, *by_choice)
        by_load = expert_dispatch.dispatch_by_load(indices_TK, num_experts, self._expert_size)
        if by_load is not None:
            return _combine(self._compute_loads(tokens_TD, kernels, by_load), weights_TK, by_load)
        num_choices = num_tokens * per_token
        if backend.current().compute.loops_over_blocks() and expert_dispatch.is_worth_a_loop(
            num_choices, self._expert_size
        ):
            block_size = expert_dispatch.choose_looped_block_size(num_choices, num_experts)
            plan = expert_dispatch.dispatch_to_blocks(indices_TK, num_experts, block_size)
            return _combine(self._compute_blocks(tokens_TD, kernels, plan), weights_TK, plan)
        block_size = expert_dispatch.choose_block_size(num_tokens, num_choices, num_experts)
        if block_size is None and not is_quantized:
            return self._compute_all(tokens_TD, weights_TK, indices_TK, kernels)
        if block_size is None:  # The same without all kernels as floating-point numbers at once.
            plan = expert_dispatch.dispatch_to_capacity(indices_TK, num_experts, num_tokens)
        else:
            plan = expert_dispatch.dispatch_to_blocks(indices_TK, num_experts, block_size)
        return self._compute_slots(tokens_TD, weights_TK, kernels, plan)

    def _compute_all(
        self, tokens_TD: Any, weights_TK: Any, indices_TK: Any, kernels: Kernels
    ) -> Any:
        """Applies every expert to every token, weighted by zero if it was not chosen (TD)."""
        hits_TKE = ops.cast(expert_hits(indices_TK, self.router.num_experts), weights_TK.dtype)
        weights_ET = ops.einsum("tk,tke->et", weights_TK, hits_TKE)
        # One matrix for each expert: XLA would copy the kernels for a product with all at once.
        tokens_ETD = ops.broadcast_to(tokens_TD, (self.router.num_experts, *ops.shape(tokens_TD)))
        gate_ETF, up_ETF = (stack.multiply(tokens_ETD) for stack in kernels[:2])
        hidden_ETF = gate_activations(gate_ETF, up_ETF, self.clamp) * weights_ET[..., None]
        if kernels[2].is_plain:
            return ops.einsum("etf,efd->td", hidden_ETF, kernels[2].base[0])
        return ops.sum(kernels[2].multiply(hidden_ETF), axis=0)

    def _compute_choices(
        self,
        tokens_TD: Any,
        weights_TK: Any,
        kernels: Kernels,
        experts: Sequence[Any],
        is_computed_TK: Any,
    ) -> Any:
        """Computes the choices one by one, and returns the outputs of tokens (TD)."""
        num_tokens, per_token = weights_TK.shape
        outputs_1D = []
        for token in range(num_tokens):
            row_1D = tokens_TD[token : token + 1]
            chosen = experts[token * per_token : (token + 1) * per_token]
            results_KD = ops.concatenate(
                [self._apply_expert(kernels, expert, row_1D) for expert in chosen]
            )
            if is_computed_TK is not None:
                results_KD = ops.where(is_computed_TK[token][:, None], results_KD, 0.0)
            outputs_1D.append(multiply_matrices(weights_TK[token : token + 1], results_KD))
        return outputs_1D[0] if num_tokens == 1 else ops.concatenate(outputs_1D)

    def _compute_loads(
        self, tokens_TD: Any, kernels: Kernels, plan: expert_dispatch.ExpertDispatch
    ) -> Any:
        """Returns the results of experts for as many tokens as each has; the rest is zeros (SD)."""
        rows_SD = ops.take(tokens_TD, plan.token_of_slot, axis=0)
        *parts, rest = ops.split(rows_SD, plan.ends_of_loads)
        kernels = [stack.unstack() for stack in kernels]
        results = [
            self._apply_expert(kernels, expert, part)
            for expert, part in enumerate(parts)
            if part.shape[0] != 0
        ]
        return ops.concatenate([*results, ops.zeros_like(rest)])

    def _apply_expert(self, kernels: Kernels, expert: Any, rows_RD: Any) -> Any:
        """Applies one expert to rows (RD)."""
        gate, up, down = kernels
        gate_RF, up_RF = gate.multiply_by(expert, rows_RD), up.multiply_by(expert, rows_RD)
        return down.multiply_by(expert, gate_activations(gate_RF, up_RF, self.clamp))

    def _compute_slots(
        self,
        tokens_TD: Any,
        weights_TK: Any,
        kernels: Kernels,
        plan: expert_dispatch.ExpertDispatch,
    ) -> Any:
        """Computes all slots in one batched product, and returns the outputs of tokens (TD)."""
        rows_SD = ops.take(tokens_TD, plan.token_of_slot, axis=0)
        gate_SF, up_SF = (_multiply(rows_SD, kernel, plan) for kernel in kernels[:2])
        down_SD = _multiply(gate_activations(gate_SF, up_SF, self.clamp), kernels[2], plan)
        return _combine(down_SD, weights_TK, plan)

    def _compute_blocks(
        self, tokens_TD: Any, kernels: Kernels, plan: expert_dispatch.ExpertDispatch
    ) -> Any:
        """Returns the experts' outputs for their tokens (SD), computed in a loop over blocks.

        A block holds tokens of one expert, so each step reads this expert's kernels in place, where
        a batched product would copy them for each block.
        """
        tokens_BR = ops.reshape(plan.token_of_slot, (-1, plan.block_size))

        def compute(index: Any) -> Any:
            rows_RD = ops.take(tokens_TD, tokens_BR[index], axis=0)
            return self._apply_expert(kernels, plan.expert_of_block[index], rows_RD)

        # The first block is computed even if it is empty: TensorFlow takes the shape from it.
        num_used = ops.maximum(plan.num_used, 1)
        blocks_BRD = backend.current().compute.stack(compute, num_used, ops.shape(tokens_BR)[0])
        return ops.reshape(blocks_BRD, (-1, tokens_TD.shape[-1]))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        router = keras.saving.serialize_keras_object(self.router)
        # This layer builds its router, so that the paths of its variables stay the same.
        router.pop("build_config", None)
        return {
            **super().get_config(),
            "router": router,
            "intermediate_dim": self.intermediate_dim,
            "num_shared_experts": self.num_shared_experts,
            "clamp": self.clamp,
            "capacity_factor": self.capacity_factor,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _flatten_tokens(tensor: Any) -> Any:
    """Returns a tensor with one axis for all tokens; on PyTorch `ops.reshape` takes long."""
    return tensor if len(tensor.shape) == 2 else ops.reshape(tensor, (-1, tensor.shape[-1]))  # noqa: PLR2004


def _combine(results_SD: Any, weights_TK: Any, plan: expert_dispatch.ExpertDispatch) -> Any:
    """Returns each token's weighted sum of its experts' outputs (TD), read from the slots (SD)."""
    results_TKD = ops.take(results_SD, plan.slot_of_choice, axis=0)
    if plan.is_computed is not None:
        weights_TK = ops.where(plan.is_computed, weights_TK, 0.0)
    return ops.einsum("tk,tkd->td", weights_TK, results_TKD)


def _multiply(rows_SD: Any, kernels: KernelStack, plan: expert_dispatch.ExpertDispatch) -> Any:
    """Multiplies the row in each slot by the kernel of its expert (SF)."""
    blocks_BRD = ops.reshape(rows_SD, (-1, plan.block_size, rows_SD.shape[-1]))
    products_BRF = kernels.multiply_blocks(blocks_BRD, plan.expert_of_block, plan.num_used)
    return ops.reshape(products_BRF, (-1, products_BRF.shape[-1]))
