"""Expert router: chooses the experts of each token and weighs them.

Shape suffixes: "x" stands for the axes of tokens, `(batch_size, ...)`; E experts, K experts a
token.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers.double_precision import multiply_matrices, promote_dtypes
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape, check_tokens, read_last_dim
from keras_deepseek.layers.masks import check_mask
from keras_deepseek.layers.moe.expert_scores import (
    GROUP_SCORINGS,
    SCORINGS,
    expert_hits,
    hide_other_groups,
)


@keras.saving.register_keras_serializable("keras_deepseek")
class ExpertRouter(FloatingInputLayer):
    """Chooses `num_experts_per_token` of `num_experts` for each token, and weighs them.

    It is the router of `DeepSeekMoE`. Use it by itself to route to your own experts. It computes

    ```
    scores  = scoring(x @ kernel)
    indices = top_k(scores + expert_bias)           within the best groups, if there are groups
    weights = scores[indices] / (sum(scores[indices]) + 1e-20) * routed_scale
    ```

    With `num_groups`, the experts are divided into groups of equal size, and a token uses only
    experts of its `num_groups_per_token` best groups, so that it is sent to few devices. The
    settings of DeepSeek's models:

    | | V2 | V3 | V4 |
    |---|---|---|---|
    | `scoring` | `"softmax"` | `"sigmoid"` | `"sqrt_softplus"` |
    | `group_scoring` | `"max"` | `"top2_sum"` | no groups |
    | `normalize_weights` | `False` | `True` | `True` |
    | `use_expert_bias` | `False` | `True` | `True` |

    `expert_bias` affects only the choice of experts, not the weights, and gets no gradient. The
    callback `ExpertBalancing` updates it from `expert_load`, the number of tokens that went to each
    expert in the last training step. Masked tokens are routed but not counted. The layer always
    computes in float32 or better, because rounding could change the chosen experts.

    Args:
        num_experts: integer. The number of experts.
        num_experts_per_token: integer. The number of experts of each token.
        scoring: string. `"sigmoid"`, `"softmax"` or `"sqrt_softplus"`. Defaults to `"sigmoid"`.
        num_groups: integer. The number of groups. Defaults to `1`.
        num_groups_per_token: integer. The number of groups that a token may choose experts from.
            Defaults to `1`.
        group_scoring: string. The score of a group: `"top2_sum"`, the sum of its two best scores,
            or `"max"`, its best score. Defaults to `"top2_sum"`.
        normalize_weights: boolean. If true, the weights of a token are divided by their sum.
            Defaults to `True`.
        routed_scale: float. A factor of the weights. Defaults to `1.0`.
        use_expert_bias: boolean. If true, `expert_bias` is added to the scores before the choice.
            Defaults to `True`.
        balance_loss: float. Weight of the loss that makes every sequence use its experts evenly,
            `num_experts * sum(share of the choices * mean normalized score)`; 1 when even. Added in
            training only. Defaults to `0.0`.
        z_loss: float. Weight of the loss that keeps logits small, the mean of
            `logsumexp(logits) ** 2`. Added in training only. Defaults to `0.0`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Defaults to
            `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.
        token_ids: Integer tensor of shape `(batch_size, ...)`, or `None`. This router ignores them;
            `HashRouter` uses them.
        mask: Boolean tensor of shape `(batch_size, ...)`, or `None`. `False` hides a token from the
            load and from the losses.
        training: boolean. If true, `expert_load` is updated and the losses are added.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        Two tensors of shape `(batch_size, ..., num_experts_per_token)`: the weights, in the layer's
        compute dtype, and the indices of the experts, int32, from the highest score down.

    Raises:
        InvalidInputError: A number of experts or groups is not positive, is not a divisor, or
            leaves too few experts to choose from; a scoring is unknown; a scale or a weight is out
            of range; or the inputs are not floating-point, have no axis besides the batch, or a
            last axis of unknown size.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import ExpertRouter
    >>> router = ExpertRouter(num_experts=8, num_experts_per_token=2)
    >>> weights, indices = router(np.ones((2, 5, 12), "float32"))
    >>> tuple(weights.shape), tuple(indices.shape)
    ((2, 5, 2), (2, 5, 2))

    Reference:

    - [DeepSeek-V2 (DeepSeek-AI, 2024)](https://arxiv.org/abs/2405.04434)
    - [DeepSeek-V3 Technical Report (DeepSeek-AI, 2024)](https://arxiv.org/abs/2412.19437)
    - [Auxiliary-Loss-Free Load Balancing (Wang et al., 2024)](https://arxiv.org/abs/2408.15664)
    - [ST-MoE (Zoph et al., 2022)](https://arxiv.org/abs/2202.08906), the z loss
    """

    def __init__(  # noqa: PLR0913 - each is set otherwise by one of the models in the table
        self,
        num_experts: int,
        num_experts_per_token: int,
        *,
        scoring: str = "sigmoid",
        num_groups: int = 1,
        num_groups_per_token: int = 1,
        group_scoring: str = "top2_sum",
        normalize_weights: bool = True,
        routed_scale: float = 1.0,
        use_expert_bias: bool = True,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_experts = check_integer("num_experts", num_experts)
        self.num_experts_per_token = check_integer("num_experts_per_token", num_experts_per_token)
        self.scoring = scoring
        self.num_groups = check_integer("num_groups", num_groups)
        self.num_groups_per_token = check_integer("num_groups_per_token", num_groups_per_token)
        self.group_scoring = group_scoring
        self.normalize_weights = check_boolean("normalize_weights", normalize_weights)
        self.routed_scale = check_number("routed_scale", routed_scale, above=0)
        self.use_expert_bias = check_boolean("use_expert_bias", use_expert_bias)
        self.balance_loss = check_number("balance_loss", balance_loss, minimum=0)
        self.z_loss = check_number("z_loss", z_loss, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.mixture_name: str | None = None  # Set by the one `DeepSeekMoE` that uses this router.
        self.supports_masking = True
        self._check_arguments()

    def _check_arguments(self) -> None:
        for kind, names in (("scoring", SCORINGS), ("group_scoring", GROUP_SCORINGS)):
            if getattr(self, kind) not in list(names):
                raise InvalidInputError(unknown_name_message(kind, getattr(self, kind), names))
        if self.num_experts % self.num_groups:
            raise InvalidInputError(
                f"`num_groups` must divide `num_experts`, received {self.num_groups} groups for "
                f"{self.num_experts} experts."
            )
        if self.num_groups_per_token > self.num_groups:
            raise InvalidInputError(
                f"`num_groups_per_token` must be at most `num_groups` ({self.num_groups}), "
                f"received {self.num_groups_per_token}."
            )
        group_size = self.num_experts // self.num_groups
        if self._limits_groups and self.group_scoring == "top2_sum" and group_size < 2:  # noqa: PLR2004
            raise InvalidInputError(
                "`group_scoring='top2_sum'` needs groups of 2 experts or more, received "
                f"{self.num_groups} groups for {self.num_experts} experts. Use "
                "`group_scoring='max'`, or fewer groups."
            )
        eligible = group_size * self.num_groups_per_token
        if self.num_experts_per_token > eligible:
            raise InvalidInputError(
                f"`num_experts_per_token` must be at most {eligible}, the experts that a token can "
                f"choose from, received {self.num_experts_per_token}."
            )

    @property
    def _limits_groups(self) -> bool:
        return self.num_groups_per_token < self.num_groups

    def build(self, input_shape: Shape) -> None:
        dim = read_last_dim(self, input_shape)
        self.score_dtype = promote_dtypes(self.variable_dtype, "float32")
        self.kernel = self.add_weight(
            name="kernel",
            shape=(dim, self.num_experts),
            initializer=self.kernel_initializer,
            autocast=False,
        )
        self.expert_load = self._add_expert_state("expert_load", aggregation="sum")
        self.expert_bias = self._add_expert_state("expert_bias") if self.use_expert_bias else None

    def _add_expert_state(self, name: str, aggregation: str = "mean") -> Any:
        return self.add_weight(
            name=name,
            shape=(self.num_experts,),
            dtype=self.score_dtype,
            initializer="zeros",
            trainable=False,
            autocast=False,
            aggregation=aggregation,
        )

    def call(
        self,
        inputs: Any,
        token_ids: Any = None,
        mask: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
    ) -> tuple[Any, Any]:
        mask = inputs_mask if mask is None else mask
        check_mask(mask, inputs)
        check_tokens("token_ids", token_ids, inputs)
        logits = self.compute_logits(inputs)
        scores = SCORINGS[self.scoring](logits)
        indices = self.select(scores, token_ids)
        if training:
            self.record(logits, scores, indices, mask)
        return self.weigh(scores, indices), indices

    def compute_logits(self, inputs: Any) -> Any:
        """Returns the logit of every expert for every token, in `score_dtype`.

        Args:
            inputs: Tensor of shape `(batch_size, ..., dim)`.
        """
        kernel = ops.cast(self.kernel, self.score_dtype)
        return multiply_matrices(ops.cast(inputs, self.score_dtype), kernel)

    def select(self, scores: Any, token_ids: Any = None) -> Any:
        """Returns the indices of the experts with the best scores.

        Args:
            scores: Tensor of shape `(batch_size, ..., num_experts)`.
            token_ids: Integer tensor of shape `(batch_size, ...)`. Ignored here; a router that uses
                them overrides this method. Defaults to `None`.
        """
        # The choice of experts has no gradient.
        choice_xE = ops.stop_gradient(scores)
        if self.expert_bias is not None:
            choice_xE = choice_xE + self.expert_bias
        if self._limits_groups:
            choice_xE = hide_other_groups(
                choice_xE, self.num_groups, self.num_groups_per_token, self.group_scoring
            )
        indices_xK = ops.top_k(choice_xE, self.num_experts_per_token)[1]
        return ops.cast(indices_xK, "int32")

    def weigh(self, scores: Any, indices: Any) -> Any:
        """Returns the weights of the chosen experts, in the layer's compute dtype.

        Args:
            scores: Tensor of shape `(batch_size, ..., num_experts)`, without the bias.
            indices: Integer tensor of shape `(batch_size, ..., num_experts_per_token)`.
        """
        weights_xK = ops.take_along_axis(scores, indices, axis=-1)
        if self.normalize_weights:
            weights_xK = weights_xK / (ops.sum(weights_xK, axis=-1, keepdims=True) + 1e-20)
        return ops.cast(weights_xK * self.routed_scale, self.compute_dtype)

    def record(self, logits: Any, scores: Any, indices: Any, mask: Any = None) -> None:
        """Updates `expert_load` and adds the losses.

        Args:
            logits: Tensor of shape `(batch_size, ..., num_experts)`.
            scores: Tensor of the same shape.
            indices: Integer tensor of shape `(batch_size, ..., num_experts_per_token)`.
            mask: Boolean tensor of shape `(batch_size, ...)`. Defaults to `None`: all tokens count.
        """
        hits_xE = ops.any(expert_hits(indices, self.num_experts), axis=-2)
        hits_xE = ops.cast(hits_xE, self.score_dtype)
        shown_x = ops.ones_like(scores[..., 0]) if mask is None else mask
        shown_x = ops.cast(shown_x, self.score_dtype)
        load_E = ops.sum(hits_xE * shown_x[..., None], axis=tuple(range(len(hits_xE.shape) - 1)))
        self.expert_load.assign(load_E)
        if self.balance_loss:
            shares_xE = hits_xE / self.num_experts_per_token
            loss = sequence_balance_loss(scores, shares_xE, shown_x)
            self.add_loss(self.balance_loss * loss)
        if self.z_loss:
            self.add_loss(self.z_loss * router_z_loss(logits, shown_x))

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        shape = (*inputs.shape[:-1], self.num_experts_per_token)
        return (
            keras.KerasTensor(shape, dtype=self.compute_dtype),
            keras.KerasTensor(shape, dtype="int32"),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **self._common_config(),
            "num_groups": self.num_groups,
            "num_groups_per_token": self.num_groups_per_token,
            "group_scoring": self.group_scoring,
            "use_expert_bias": self.use_expert_bias,
            "balance_loss": self.balance_loss,
            "z_loss": self.z_loss,
        }

    def _common_config(self) -> dict[str, Any]:
        """Returns the part of the config that all kinds of routers have."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "num_experts_per_token": self.num_experts_per_token,
            "scoring": self.scoring,
            "normalize_weights": self.normalize_weights,
            "routed_scale": self.routed_scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def sequence_balance_loss(scores: Any, choices: Any, token_mask: Any) -> Any:
    """Returns `num_experts * sum(f * P)`, averaged over sequences: 1 if experts are used evenly.

    `f` is the share of a sequence's choices that fell on each expert. `P` is the mean of its
    scores, normalized to sum to 1; only `P` has a gradient. Inputs of rank two are one sequence. A
    sequence without visible tokens is left out of the mean. Scores and choices are `(batch_size,
    ..., num_experts)`; the choices of a token sum to 1. `token_mask` is `(batch_size, ...)`: 1 for
    a visible token, 0 for a masked one.
    """
    positions = tuple(range(1, len(scores.shape) - 1)) or (0,)
    probabilities = scores / (ops.sum(scores, axis=-1, keepdims=True) + 1e-20)
    tokens = ops.sum(token_mask, axis=positions)
    per_token = token_mask[..., None]
    counted = ops.clip(tokens, 1.0, math.inf)[..., None]
    share = ops.sum(choices * per_token, axis=positions) / counted
    score = ops.sum(probabilities * per_token, axis=positions) / counted
    by_sequence = scores.shape[-1] * ops.sum(share * score, axis=-1)
    num_sequences = ops.sum(ops.cast(tokens > 0, by_sequence.dtype))
    return ops.sum(by_sequence) / ops.clip(num_sequences, 1.0, math.inf)


def router_z_loss(logits: Any, token_mask: Any) -> Any:
    """Returns the mean of `logsumexp(logits) ** 2` over the visible tokens.

    Logits are `(batch_size, ..., num_experts)`. `token_mask` is `(batch_size, ...)`: 1 for a
    visible token, 0 for a masked one.
    """
    squares = ops.square(ops.logsumexp(logits, axis=-1))
    return ops.sum(squares * token_mask) / ops.clip(ops.sum(token_mask), 1.0, math.inf)
