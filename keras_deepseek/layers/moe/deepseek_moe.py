"""DeepSeek's mixture of experts: the router, the experts that it chooses, and the shared ones."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import multiply_matrices, promote_dtypes
from keras_deepseek.layers.feed_forward.swiglu import SwiGLU, gate_activations
from keras_deepseek.layers.floating_input_layer import FloatingInputLayer
from keras_deepseek.layers.initializers import clone_initializer, stack_initializer
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.moe import expert_dispatch
from keras_deepseek.layers.moe.expert_router import ExpertRouter
from keras_deepseek.layers.moe.expert_scores import expert_hits
from keras_deepseek.layers.token_dim import read_last_dim

Kernels = Sequence[Any]
"""Those of gate, up and down, each of shape `(num_experts, rows, columns)`."""


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekMoE(FloatingInputLayer):
    """A feed-forward block of many experts, of which each token uses a few.

    Choose it over `SwiGLU` for more parameters at the same work per token. It computes

    ```
    weights, indices = router(x)
    output = sum(weights[i] * expert[indices[i]](x) for i) + shared_experts(x)
    ```

    where every expert is a `SwiGLU` without biases, of the same `intermediate_dim` and `clamp`, and
    the shared experts, which every token uses, are one `SwiGLU` of `num_shared_experts` times that
    width.

    No token is dropped unless `capacity_factor` is set. In eager PyTorch and TensorFlow each expert
    computes just its tokens. Compiled, and in JAX, every shape follows from the number of tokens:
    these are sorted by expert into blocks, and each block is multiplied with the kernels of its
    expert; one block after the other, without the empty ones, where JAX generates text on a CPU and
    no gradient can be asked for. Few tokens go through all experts, where that costs less. Tokens
    that the mask hides use no routed expert and are not counted in the load.

    The kernels are stacked: `.../gate_kernel` and `.../up_kernel` of shape `(num_experts, dim,
    intermediate_dim)`, `.../down_kernel` of `(num_experts, intermediate_dim, dim)`. A
    `keras.distribution.LayoutMap` shards them on any axis. On the first, give a `capacity_factor`:
    without one the blocks of every device ask for kernels of all.

    Args:
        router: `ExpertRouter`, such as a `HashRouter`, or its serialized config. It chooses the
            experts and says how many there are. Each layer needs its own.
        intermediate_dim: integer. Size of the hidden activations of one expert.
        num_shared_experts: integer. How many experts every token uses. Defaults to `1`.
        clamp: float or `None`. Bound of the hidden activations, as for `SwiGLU`. Defaults to
            `None`.
        capacity_factor: float or `None`. Each expert takes this many times its even share of the
            choices, and the choices beyond are dropped; an expert then is one product. `None`
            drops nothing. Defaults to `None`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            kernels of all experts. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.
        token_ids: Integer tensor of shape `(batch_size, ...)`, or `None`. A `HashRouter` goes by
            them.
        mask: Boolean tensor of shape `(batch_size, ...)`, or `None`. `False` hides a token.
        training: boolean. Whether the router writes its load and adds its losses.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype.

    Raises:
        InvalidInputError: `router` is no `ExpertRouter`; a size, `clamp` or `capacity_factor` is
            not positive; or the inputs are not floating-point, have no axis beside the batch, or a
            last axis of unknown size.

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
        if getattr(router, "mixture_name", None) is not None:
            raise InvalidInputError(
                f"The `router` {router.name!r} is that of {router.mixture_name!r}, and each "
                "mixture needs one of its own."
            )
        if capacity_factor is not None:
            capacity_factor = check_number("capacity_factor", capacity_factor, above=0)
        self.router = router
        router.mixture_name = self.name
        self.intermediate_dim = check_integer("intermediate_dim", intermediate_dim)
        self.num_shared_experts = check_integer("num_shared_experts", num_shared_experts, least=0)
        self.clamp = None if clamp is None else check_number("clamp", clamp, above=0)
        self.capacity_factor = capacity_factor
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_last_dim(self, input_shape)
        if not self.router.built:
            self.router.build(input_shape)
        self.gate_kernel = self._add_kernels("gate_kernel", dim, self.intermediate_dim)
        self.up_kernel = self._add_kernels("up_kernel", dim, self.intermediate_dim)
        self.down_kernel = self._add_kernels("down_kernel", self.intermediate_dim, dim)
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
        """How many numbers the kernels of an expert hold."""
        _, dim, hidden_dim = self.gate_kernel.shape
        return int(3 * dim * hidden_dim)

    def _add_kernels(self, name: str, rows: int, columns: int) -> Any:
        num_experts = self.router.num_experts
        return self.add_weight(
            name=name,
            shape=(num_experts, rows, columns),
            initializer=stack_initializer(self.kernel_initializer, num_experts),
        )

    def call(
        self,
        inputs: Any,
        token_ids: Any = None,
        mask: Any = None,
        training: bool = False,
        inputs_mask: Any = None,
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        weights, indices = self.router(inputs, token_ids, mask=mask, training=training)
        if mask is not None:
            indices = ops.where(ops.expand_dims(mask, -1), indices, self.router.num_experts)
        tokens = ops.reshape(inputs, (-1, inputs.shape[-1]))
        weights = ops.reshape(weights, (-1, self.router.num_experts_per_token))
        indices = ops.reshape(indices, (-1, self.router.num_experts_per_token))
        kernels = map(ops.convert_to_tensor, (self.gate_kernel, self.up_kernel, self.down_kernel))
        arguments = (tokens, ops.cast(weights, tokens.dtype), indices, *kernels)
        num_choices = ops.shape(indices)[0] * self.router.num_experts_per_token
        reads_loads = expert_dispatch.is_worth_a_loop(num_choices, self._expert_size)
        if reads_loads and self.capacity_factor is None:
            outputs = backend.current().run_unrecorded(self._route, *arguments)
        else:
            outputs = self._route(*arguments)
        outputs = ops.reshape(outputs, ops.shape(inputs))
        if self.shared_experts is not None:
            outputs = outputs + self.shared_experts(inputs)
        return outputs

    def _route(self, tokens: Any, weights: Any, indices: Any, *kernels: Any) -> Any:
        num_experts = self.router.num_experts
        num_tokens, per_token = ops.shape(indices)
        is_empty = isinstance(num_tokens, int) and num_tokens == 0
        if self.capacity_factor is not None and not is_empty:
            capacity = expert_dispatch.count_capacity(
                num_tokens, num_experts, per_token, self.capacity_factor
            )
            plan = expert_dispatch.dispatch_to_capacity(indices, num_experts, capacity)
            return self._compute_slots(tokens, weights, kernels, plan)
        by_load = expert_dispatch.dispatch_by_load(indices, num_experts, self._expert_size)
        if by_load is not None:
            return self._compute_slots(tokens, weights, kernels, by_load)
        num_choices = num_tokens * per_token
        if backend.current().loops_over_blocks() and expert_dispatch.is_worth_a_loop(
            num_choices, self._expert_size
        ):
            rows = expert_dispatch.choose_looped_block_size(num_choices, num_experts)
            plan = expert_dispatch.dispatch_to_blocks(indices, num_experts, rows)
            return _combine(self._compute_blocks(tokens, kernels, plan), weights, plan)
        block_size = expert_dispatch.choose_block_size(num_tokens, num_choices, num_experts)
        if block_size is None:
            return self._compute_all(tokens, weights, indices, kernels)
        plan = expert_dispatch.dispatch_to_blocks(indices, num_experts, block_size)
        return self._compute_slots(tokens, weights, kernels, plan)

    def _compute_all(self, tokens: Any, weights: Any, indices: Any, kernels: Kernels) -> Any:
        """Every expert on every token, with a weight of zero where it was not chosen."""
        hits = ops.cast(expert_hits(indices, self.router.num_experts), weights.dtype)
        by_expert = ops.einsum("nk,nke->en", weights, hits)
        # One matrix for each expert: XLA would copy the kernels for a product with all at once.
        tokens = ops.broadcast_to(tokens, (self.router.num_experts, *ops.shape(tokens)))
        gate, up = (multiply_matrices(tokens, kernel) for kernel in kernels[:2])
        hidden = gate_activations(gate, up, self.clamp)
        return ops.einsum("enf,efd->nd", hidden * by_expert[..., None], kernels[2])

    def _compute_slots(
        self, tokens: Any, weights: Any, kernels: Kernels, plan: expert_dispatch.ExpertDispatch
    ) -> Any:
        rows = ops.take(tokens, plan.token_of_slot, axis=0)
        gate, up = (_multiply(rows, kernel, plan) for kernel in kernels[:2])
        down = _multiply(gate_activations(gate, up, self.clamp), kernels[2], plan)
        return _combine(down, weights, plan)

    def _compute_blocks(
        self, tokens: Any, kernels: Kernels, plan: expert_dispatch.ExpertDispatch
    ) -> Any:
        """One block after the other: no kernel is copied that is not about to be used."""
        tokens_of_block = ops.reshape(plan.token_of_slot, (-1, plan.block_size))

        def compute(index: Any) -> Any:
            rows = ops.take(tokens, tokens_of_block[index], axis=0)
            expert = plan.expert_of_block[index]
            gate, up, down = (kernel[expert] for kernel in kernels)
            hidden = gate_activations(
                multiply_matrices(rows, gate), multiply_matrices(rows, up), self.clamp
            )
            return multiply_matrices(hidden, down)

        # The first is computed even if it is empty: TensorFlow learns from it what shape they have.
        num_used = ops.maximum(plan.num_used, 1)
        blocks = backend.current().stack(compute, num_used, ops.shape(tokens_of_block)[0])
        return ops.reshape(blocks, (-1, tokens.shape[-1]))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        router = keras.saving.serialize_keras_object(self.router)
        # This layer builds its router, so that the paths of the variables are as they were.
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


def _combine(results: Any, weights: Any, plan: expert_dispatch.ExpertDispatch) -> Any:
    """Returns the weighted sums over a token's experts, from what stands in the slots."""
    results = ops.take(results, plan.slot_of_choice, axis=0)
    weights = ops.where(plan.is_computed, weights, 0.0)
    return ops.einsum("nk,nkd->nd", weights, results)


def _multiply(rows: Any, kernels: Any, plan: expert_dispatch.ExpertDispatch) -> Any:
    """Returns the rows in their slots, each multiplied with the kernel of its expert."""
    if plan.loads is not None:
        dtype = promote_dtypes(rows.dtype, kernels.dtype)
        # The places in an array: Keras makes a tensor of each number in a list.
        parts = ops.split(ops.cast(rows, dtype), np.cumsum(plan.loads))
        # Unstacked at once: a kernel cut out by itself would have a gradient as large as all.
        pairs = zip(parts, ops.unstack(ops.cast(kernels, dtype)), plan.loads, strict=False)
        # By operator: what `ops.matmul` does beside it costs more than a small product.
        return ops.concatenate([part @ kernel for part, kernel, load in pairs if load])
    blocks = ops.reshape(rows, (-1, plan.block_size, rows.shape[-1]))
    if plan.expert_of_block is not None:
        kernels = ops.take(kernels, plan.expert_of_block, axis=0)
    return ops.reshape(multiply_matrices(blocks, kernels), (-1, kernels.shape[-1]))
