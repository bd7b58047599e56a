"""The Muon optimizer: orthogonal updates for the matrices of a model, AdamW for other weights."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.optimizers import variable_index
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.matrices import (
    ADAMW,
    check_axes,
    count_matrices,
    find_matrices,
    from_matrices,
    to_matrices,
)

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Of the quintic, by Jordan et al.
_LEAST_NORM = 1e-7


@keras.saving.register_keras_serializable("keras_deepseek")
class Muon(keras.optimizers.Optimizer):
    """An optimizer that updates each matrix of a model by an orthogonal matrix.

    Choose it over `AdamW` to train a transformer or a mixture of experts from scratch: it keeps one
    number for each weight of a matrix instead of two. Search its learning rate. Choose it over
    `keras.optimizers.Muon` for weights that hold matrices in more than two axes: that one gives
    them to AdamW without a word. `Muon.for_model` reads from each layer what its matrices are:

    | weight | matrices |
    |---|---|
    | `DeepSeekMoE`: gate, up and down kernels, `(experts, rows, columns)` | one for each expert |
    | `EinsumDense`, and so attention: `(dim, heads, head_dim)` | one for each head |
    | `EinsumDense` behind heads: `(heads, head_dim, dim)` | one of `heads * head_dim` rows |
    | `EinsumDense` of groups, as in `btgi,gir->btgr` | one for each group |
    | `Dense`, routers, mixing of residual streams | one |
    | convolutions: `(height, width, channels, filters)` | one of as many columns as filters |

    AdamW updates all else: embeddings, vocabulary heads, the layer that makes the output of a graph
    model, norms, biases, LoRAs, and weights of other layers, which are logged if they have several
    axes. With gradient `G`, a matrix `W` of `rows` times `columns` is updated by

    ```
    M = momentum * M + G
    O = orthogonalize(G + momentum * M)                        by `ns_steps` of Newton-Schulz
    W = W - learning_rate * (rms_rate * sqrt(max(rows, columns)) * O + weight_decay * W)
    ```

    An orthogonal matrix has numbers of mean square `1 / max(rows, columns)`, so that `rms_rate` is
    the size of an update's numbers whatever the shape. `0.2` is about that of AdamW in long
    trainings (Liu et al., 2025), which took over AdamW's learning rate; a short training may need a
    higher one. All matrices of a weight are computed at once, in float32 or better.

    Args:
        matrices: dict. The axes of the matrices in each weight, by its path: a letter for each axis
            of the weight, `"s"` if it counts matrices, `"r"` for rows, `"c"` for columns; or
            `"adamw"`. `Muon.for_model` makes it.
        learning_rate: float, or a schedule of `keras.optimizers.schedules`. Defaults to `0.001`.
        weight_decay: float or `None`. The decay of all weights but those that
            `exclude_from_weight_decay` names. Defaults to `0.1`.
        momentum: float. The share of the last momentum in the next one. Defaults to `0.95`.
        ns_steps: integer. The number of Newton-Schulz iterations. Defaults to `5`.
        rms_rate: float. The root mean square of an update's numbers, at a learning rate of 1.
            Defaults to `0.2`.
        adam_beta_1: float. AdamW's decay of the mean gradient. Defaults to `0.9`.
        adam_beta_2: float. AdamW's decay of the mean square. Defaults to `0.95`.
        epsilon: float. AdamW's addend of the denominator. Defaults to `1e-8`.
        **kwargs: Arguments of `keras.optimizers.Optimizer`, such as `global_clipnorm`.

    Raises:
        InvalidInputError: A number is out of range, axes do not fit their weight, or the optimizer
            is used for weights that `matrices` does not name.

    Example:

    >>> import keras
    >>> from keras_deepseek.training import Muon
    >>> layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(2, name="output")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers], name="scorer")
    >>> optimizer = Muon.for_model(model, learning_rate=1e-3)
    >>> print(optimizer.describe())
    weight                shape   updated by
    scorer/hidden/kernel  (4, 8)  Muon, 1 matrix of 4 x 8
    scorer/hidden/bias    (8,)    AdamW
    scorer/output/kernel  (8, 2)  AdamW
    scorer/output/bias    (2,)    AdamW
    Muon updates 55.2% of 58 weights.

    Reference:

    - [Muon: An optimizer for hidden layers in neural networks (Jordan et al., 2024)](
      https://kellerjordan.github.io/posts/muon/)
    - [Muon is Scalable for LLM Training (Liu et al., 2025)](https://arxiv.org/abs/2502.16982), the
      size of updates, and AdamW for other weights
    - [GLM-5 (GLM-5 Team, 2026)](https://arxiv.org/abs/2602.15763), a matrix for each head
    """

    def __init__(
        self,
        matrices: Mapping[str, str],
        learning_rate: Any = 0.001,
        weight_decay: float | None = 0.1,
        *,
        momentum: float = 0.95,
        ns_steps: int = 5,
        rms_rate: float = 0.2,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.95,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.matrices = dict(_check_dict(matrices))
        self.momentum = check_number("momentum", momentum, minimum=0, below=1)
        self.ns_steps = check_integer("ns_steps", ns_steps)
        self.rms_rate = check_number("rms_rate", rms_rate, above=0)
        self.adam_beta_1 = check_number("adam_beta_1", adam_beta_1, minimum=0, below=1)
        self.adam_beta_2 = check_number("adam_beta_2", adam_beta_2, minimum=0, below=1)
        self.epsilon = check_number("epsilon", epsilon, above=0)
        self._shapes: list[tuple[str, tuple[int, ...], str]] = []

    @classmethod
    def for_model(
        cls,
        model: keras.Model,
        learning_rate: Any = 0.001,
        weight_decay: float | None = 0.1,
        *,
        matrices: Mapping[str, str] | None = None,
        split_heads: bool = True,
        **kwargs: Any,
    ) -> "Muon":
        """Makes an optimizer for the trainable weights of a model.

        Call it after weights were frozen, and before `compile`.

        Args:
            model: `keras.Model`, built.
            learning_rate: As of `Muon`. Defaults to `0.001`.
            weight_decay: As of `Muon`. Defaults to `0.1`.
            matrices: dict. Axes, or `"adamw"`, by patterns of paths, as in
                `{"*/classifier/kernel": "adamw"}`, for weights that the rules do not know or should
                leave alone. Defaults to `None`.
            split_heads: boolean. Makes a matrix of each head in kernels such as
                `(dim, heads, head_dim)`, and not one of all. Defaults to `True`.
            **kwargs: Further arguments of `Muon`.

        Returns:
            `Muon`.

        Raises:
            InvalidInputError: The model is not built or has no matrix, a pattern fits no weight, or
                axes do not fit it.
        """
        overrides = _check_dict({} if matrices is None else matrices)
        axes_by_path = find_matrices(model, overrides, split_heads=split_heads)
        optimizer = cls(axes_by_path, learning_rate, weight_decay, **kwargs)
        optimizer._match(model.trainable_variables)
        return optimizer

    def describe(self) -> str:
        """Returns a table of all weights with their shapes and who updates them, as text.

        Weights whose paths differ in numbers alone, as those of the blocks of a transformer, share
        a row.

        Raises:
            InvalidInputError: The optimizer was neither made by `for_model` nor built.
        """
        if not self._shapes:
            raise InvalidInputError(
                "The shapes of the weights are not known yet: make the optimizer by "
                "Muon.for_model, or call build(model.trainable_variables)."
            )
        counts = Counter(
            (re.sub(r"\d+", "*", path), shape, axes) for path, shape, axes in self._shapes
        )
        rows = [("weight", "shape", "updated by")]
        for (path, shape, axes), times in counts.items():
            rule = "AdamW"
            if axes != ADAMW:
                number, height, width = count_matrices(shape, axes)
                noun = "matrix" if number == 1 else "matrices"
                rule = f"Muon, {number} {noun} of {height} x {width}"
            rows.append((f"{times} x {path}" if times > 1 else path, str(shape), rule))
        widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
        lines = [
            f"{path:{widths[0]}}{shape:{widths[1]}}{rule}".rstrip() for path, shape, rule in rows
        ]
        total = sum(math.prod(shape) for _, shape, _ in self._shapes)
        by_muon = sum(math.prod(shape) for _, shape, axes in self._shapes if axes != ADAMW)
        return "\n".join(
            [*lines, f"Muon updates {100 * by_muon / total:.1f}% of {total:,} weights."]
        )

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        self._match(variables)
        super().build(variables)
        self.momentums: list[Any] = []
        self.velocities: list[Any] = []  # Of the weights that AdamW updates; else None.
        for variable, (_, _, axes) in zip(variables, self._shapes, strict=True):
            is_updated = not variable.overwrite_with_gradient
            momentum = velocity = None
            if is_updated:
                momentum = self.add_variable_from_reference(variable, "momentum")
            if is_updated and axes == ADAMW:
                velocity = self.add_variable_from_reference(variable, "velocity")
            self.momentums.append(momentum)
            self.velocities.append(velocity)

    def _match(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the axes of each variable by its path.

        In a model that was loaded, paths may lack the model's name or have other counts. Then all
        weights must be there, in the same order.
        """
        paths = [variable.path for variable in variables]
        if all(path in self.matrices for path in paths):
            all_axes = [self.matrices[path] for path in paths]
        elif list(map(_lasting_name, paths)) == list(map(_lasting_name, self.matrices)):
            all_axes = list(self.matrices.values())
        else:
            unknown = [path for path in paths if path not in self.matrices]
            raise InvalidInputError(
                f"This Muon was made for other weights: it does not know {len(unknown)} of the "
                f"{len(paths)} that it is to update, such as {unknown[0]!r}. Make it anew by "
                "Muon.for_model(model) for the model that you train, in its present state."
            )
        shapes = []
        for variable, axes in zip(variables, all_axes, strict=True):
            check_axes(variable.path, axes, variable.shape)
            shapes.append((variable.path, tuple(variable.shape), axes))
        self._shapes = shapes

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = variable_index(self, variable)
        momentum, velocity = self.momentums[index], self.velocities[index]
        gradient = ops.cast(backend.current().step.densify(gradient), momentum.dtype)
        learning_rate = ops.cast(learning_rate, momentum.dtype)
        if velocity is not None:
            self._update_by_adamw(gradient, variable, learning_rate, momentum, velocity)
            return
        _, shape, axes = self._shapes[index]
        self.assign(momentum, momentum * self.momentum + gradient)
        matrices = to_matrices(gradient + momentum * self.momentum, axes)
        scale = self.rms_rate * math.sqrt(max(matrices.shape[-2:]))
        directions = from_matrices(orthogonalize(matrices, self.ns_steps), shape, axes)
        self.assign_sub(variable, learning_rate * ops.cast(directions * scale, momentum.dtype))

    def _update_by_adamw(
        self, gradient: Any, variable: Any, learning_rate: Any, momentum: Any, velocity: Any
    ) -> None:
        step = ops.cast(self.iterations + 1, momentum.dtype)
        first_share = 1 - ops.power(ops.cast(self.adam_beta_1, momentum.dtype), step)
        second_share = 1 - ops.power(ops.cast(self.adam_beta_2, momentum.dtype), step)
        self.assign_add(momentum, (gradient - momentum) * (1 - self.adam_beta_1))
        self.assign_add(velocity, (ops.square(gradient) - velocity) * (1 - self.adam_beta_2))
        root = ops.sqrt(velocity / second_share) + self.epsilon
        self.assign_sub(variable, learning_rate * momentum / first_share / root)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "matrices": dict(self.matrices),
            "momentum": self.momentum,
            "ns_steps": self.ns_steps,
            "rms_rate": self.rms_rate,
            "adam_beta_1": self.adam_beta_1,
            "adam_beta_2": self.adam_beta_2,
            "epsilon": self.epsilon,
        }


def orthogonalize(matrices: Any, num_steps: int) -> Any:
    """Returns orthogonal matrices near those in the last two axes, in float32 or better.

    They have the same singular vectors, and singular values from about 0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    x = ops.cast(matrices, keras.backend.result_type(matrices.dtype, "float32"))
    norms = ops.sqrt(ops.sum(ops.square(x), axis=(-2, -1), keepdims=True))
    x = x / (norms + _LEAST_NORM)
    is_tall = x.shape[-2] > x.shape[-1]
    for _ in range(num_steps):
        # The smaller of the two products of x and its transpose.
        transposed = ops.swapaxes(x, -2, -1)
        gram = ops.matmul(transposed, x) if is_tall else ops.matmul(x, transposed)
        polynomial = b * gram + c * ops.matmul(gram, gram)
        x = a * x + (ops.matmul(x, polynomial) if is_tall else ops.matmul(polynomial, x))
    return x


def _check_dict(matrices: Any) -> Mapping[str, str]:
    if not isinstance(matrices, Mapping):
        raise InvalidInputError(
            "`matrices` must be a dict of axes by paths of weights, such as that of "
            f"Muon.for_model(model); received {matrices!r}."
        )
    return matrices


def _lasting_name(path: str) -> str:
    """Returns the names of a layer and its weight, without what Keras has counted up."""
    return "/".join(re.sub(r"_\d+$", "", name) for name in path.split("/")[-2:])
