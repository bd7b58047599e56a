"""Hash router of DeepSeek-V4's first layers: the token id determines the experts."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape, bound_indices, check_integer_tensor
from keras_deepseek.layers.moe.expert_router import ExpertRouter


@keras.saving.register_keras_serializable("keras_deepseek")
class HashRouter(ExpertRouter):
    """Chooses fixed experts for each token of the vocabulary, and weighs them by the inputs.

    Choose it over `ExpertRouter` for the first layers of a language model, whose hidden states are
    not yet informative enough to choose experts. It computes

    ```
    scores  = scoring(x @ kernel)
    indices = token_to_experts[token_ids]
    weights = scores[indices] / (sum(scores[indices]) + 1e-20) * routed_scale
    ```

    The table `token_to_experts`, of shape `(vocabulary_size, num_experts_per_token)`, is random,
    with each expert equally often, and never trained. Assign a checkpoint's table to it.
    `expert_load` is updated as in `ExpertRouter`; there is no bias to balance.

    Args:
        num_experts: integer. The number of experts.
        num_experts_per_token: integer. The number of experts of each token.
        vocabulary_size: integer. Token ids lie below it.
        scoring: string. `"sigmoid"`, `"softmax"` or `"sqrt_softplus"`. Defaults to
            `"sqrt_softplus"`.
        normalize_weights: boolean. If true, the weights of a token are divided by their sum.
            Defaults to `True`.
        routed_scale: float. A factor of the weights. Defaults to `1.0`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Defaults to
            `"glorot_uniform"`.
        seed: integer. Random seed of the table. Defaults to `0`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.
        token_ids: Integer tensor of shape `(batch_size, ...)`. The weights of a token outside of
            the vocabulary are NaN on every backend, and its experts are those of token 0.
        mask: Boolean tensor of shape `(batch_size, ...)`, or `None`. `False` hides a token from the
            load, and its id may be anything.
        training: boolean. If true, `expert_load` is updated.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        Two tensors of shape `(batch_size, ..., num_experts_per_token)`: the weights, in the layer's
        compute dtype, and the indices of the experts, int32.

    Raises:
        InvalidInputError: A size is not positive, `num_experts_per_token` exceeds `num_experts`,
            the scoring is unknown, the inputs are not floating-point, or the call has no
            `token_ids`, or they are not integers.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import HashRouter
    >>> router = HashRouter(num_experts=8, num_experts_per_token=2, vocabulary_size=100)
    >>> weights, indices = router(np.ones((1, 3, 12), "float32"), np.array([[7, 42, 7]]))
    >>> bool(np.array_equal(indices[0, 0], indices[0, 2]))
    True

    Reference:

    - [Hash Layers For Large Sparse Models (Roller et al., 2021)](https://arxiv.org/abs/2106.04426)
    """

    def __init__(
        self,
        num_experts: int,
        num_experts_per_token: int,
        vocabulary_size: int,
        *,
        scoring: str = "sqrt_softplus",
        normalize_weights: bool = True,
        routed_scale: float = 1.0,
        kernel_initializer: Any = "glorot_uniform",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_experts,
            num_experts_per_token,
            scoring=scoring,
            normalize_weights=normalize_weights,
            routed_scale=routed_scale,
            use_expert_bias=False,
            kernel_initializer=kernel_initializer,
            **kwargs,
        )
        self.vocabulary_size = check_integer("vocabulary_size", vocabulary_size)
        self.seed = check_integer("seed", seed, minimum=0)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.token_to_experts = self.add_weight(
            name="token_to_experts",
            shape=(self.vocabulary_size, self.num_experts_per_token),
            dtype="int32",
            initializer=self._draw_table,
            trainable=False,
        )

    def _draw_table(self, shape: Shape, dtype: Any = None) -> Any:
        """Draws the table of each token id's experts, which uses all experts equally often."""
        rng = np.random.default_rng(self.seed)
        hands = self.num_experts // self.num_experts_per_token
        packs = np.tile(np.arange(self.num_experts), (-(-self.vocabulary_size // hands), 1))
        dealt = rng.permuted(packs, axis=1)[:, : hands * self.num_experts_per_token]
        table = dealt.reshape(-1, self.num_experts_per_token)[: self.vocabulary_size]
        return ops.convert_to_tensor(table, dtype=dtype)

    def call(
        self,
        inputs: Any,
        token_ids: Any = None,
        mask: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
    ) -> tuple[Any, Any]:
        mask = inputs_mask if mask is None else mask
        weights, indices = super().call(inputs, token_ids, mask, training)
        fits = bound_indices(token_ids, self.vocabulary_size)[1]
        if mask is not None:
            fits = ops.logical_or(fits, ops.logical_not(mask))
        return ops.where(ops.expand_dims(fits, -1), weights, math.nan), indices

    def select(self, scores: Any, token_ids: Any = None) -> Any:
        """Returns the experts of the tokens.

        Args:
            scores: Not used.
            token_ids: Integer tensor of shape `(batch_size, ...)`. Defaults to `None`, which raises
                an error.
        """
        if token_ids is None:
            raise InvalidInputError(
                f"{self.name!r} needs `token_ids`, received None. Call it, and the layer around "
                "it, with (inputs, token_ids)."
            )
        check_integer_tensor("token_ids", token_ids)
        rows = bound_indices(token_ids, self.vocabulary_size)[0]
        return ops.take(self.token_to_experts, rows, axis=0)

    def get_config(self) -> dict[str, Any]:
        return {
            **self._common_config(),
            "vocabulary_size": self.vocabulary_size,
            "seed": self.seed,
        }
