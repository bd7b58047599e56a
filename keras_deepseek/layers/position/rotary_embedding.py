"""Rotary position embedding for queries and keys."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape, read_last_dim
from keras_deepseek.layers.position.rotary_scaling import check_scaling, compute_frequencies
from keras_deepseek.layers.position.start_index import by_row, check_length, check_start

_MIN_RANK = 3


@keras.saving.register_keras_serializable("keras_deepseek")
class RotaryEmbedding(FloatingInputLayer):
    """Rotates queries or keys by their positions, pair by pair along the last axis.

    Choose it over added position embeddings if attention should depend on the distance of two
    tokens: the product of a rotated query and a rotated key depends only on it, and both keep their
    norms. With `r = rotary_dim` and the pair `(a, b)` number `i` at position `p`,

    ```
    angle = p * max_wavelength ** (-2 * i / r)              i = 0 .. r / 2 - 1
    (a, b) -> (a * cos(angle) - b * sin(angle), b * cos(angle) + a * sin(angle))
    ```

    Checkpoints pair different entries: `i` and `i + r / 2` (halves, as in Llama), or `2 * i` and
    `2 * i + 1` (interleaved, as in DeepSeek). Entries beyond `rotary_dim` stay unchanged. Angles
    and the rotation are computed in float32, and the result is cast back.

    `scaling` adapts a model to longer sequences than it was trained on. It is the `rope_scaling` of
    a checkpoint's `config.json`, by `rope_type`:

    | `rope_type` | what it does | needs, besides `factor` |
    |---|---|---|
    | `"linear"` | divides every angle by `factor` | |
    | `"dynamic"` | slows the slow pairs once a call is longer than the trained length | L |
    | `"yarn"` | slows the slow pairs, and raises the amplitude | L; may have `beta_fast`, \
`beta_slow`, `mscale`, `mscale_all_dim`, `attention_factor`, `attn_factor`, `truncate` |
    | `"llama3"` | slows the slow pairs | L, `low_freq_factor`, `high_freq_factor` |
    | `"longrope"` | a divisor for each pair, another set once a call is longer than L | L, \
`short_factor`, `long_factor`; may have `attention_factor` |

    L is `original_max_position_embeddings`, the trained length in tokens. `attention_factor` is the
    amplitude itself, and `attn_factor`, which transformers ignores, is a factor of it. With
    `"dynamic"` and `"longrope"` the angles depend on the largest position that a sequence has in a
    call; keys that were cached before it grew beyond L are not rotated again. The other kinds use
    one formula for all positions. Beyond the trained length the quality of a model falls without an
    error: set `max_length` to get an error.

    Masked positions are rotated like all others, and a mask is passed on unchanged.

    Args:
        max_wavelength: float. The base of the angles, a checkpoint's `rope_theta`. Defaults to
            `10000.0`.
        rotary_dim: integer or `None`. The number of first entries of the last axis to rotate. It
            must be even. `None` rotates all. Defaults to `None`.
        use_interleaved_pairs: boolean. If true, adjacent entries form a pair; otherwise entries
            `rotary_dim / 2` apart do. Defaults to `False`.
        scaling: dict or `None`. As above. Defaults to `None`.
        max_length: integer or `None`. The largest number of positions, in tokens; a longer call
            raises an error. Positions given as a tensor are not checked. Defaults to `None`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, ..., dim)`: other axes, such as
            heads, are rotated in the same way.
        positions: Integer tensor of shape `(batch_size, length)` or `(1, length)`, or `None` to
            count from `start_index`.
        start_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The position of
            the first token, of all sequences or of each, if `positions` is `None`. Defaults to `0`.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype.

    Raises:
        InvalidInputError: An argument is out of range, `scaling` has an unknown or a missing key,
            the inputs are not floating-point, the shapes of `inputs` and `positions` do not match,
            or a call exceeds `max_length`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import RotaryEmbedding
    >>> queries = np.ones((2, 5, 4, 8), "float32")  # 5 tokens, 4 heads
    >>> layer = RotaryEmbedding(scaling={"rope_type": "linear", "factor": 4.0})
    >>> tuple(layer(queries).shape)
    (2, 5, 4, 8)
    >>> left_padded = np.array([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    >>> tuple(layer(queries, positions=left_padded).shape)
    (2, 5, 4, 8)

    Reference:

    - [RoFormer (Su et al., 2021)](https://arxiv.org/abs/2104.09864)
    - [YaRN (Peng et al., 2023)](https://arxiv.org/abs/2309.00071)
    - [LongRoPE (Ding et al., 2024)](https://arxiv.org/abs/2402.13753)
    """

    def __init__(
        self,
        max_wavelength: float = 10000.0,
        *,
        rotary_dim: int | None = None,
        use_interleaved_pairs: bool = False,
        scaling: dict[str, Any] | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_no_theta(kwargs, "max_wavelength")
        super().__init__(**kwargs)
        if rotary_dim is not None:
            rotary_dim = check_integer("rotary_dim", rotary_dim)
            _check_pairs(rotary_dim, "`rotary_dim`")
        if max_length is not None:
            max_length = check_integer("max_length", max_length)
        self.max_wavelength = float(check_number("max_wavelength", max_wavelength, above=1))
        self.rotary_dim = rotary_dim
        self.use_interleaved_pairs = check_boolean("use_interleaved_pairs", use_interleaved_pairs)
        self.scaling = None if scaling is None else check_scaling(scaling)
        self.max_length = max_length
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_last_dim(
            self, input_shape, min_rank=_MIN_RANK, axes="(batch_size, length, ..., dim)"
        )
        rotated = _count_rotated(self.rotary_dim, dim, "the last axis of the inputs")
        self._scaling = check_scaling(self.scaling)
        self._frequencies = compute_frequencies(rotated, self.max_wavelength, self._scaling)

    def call(self, inputs: Any, positions: Any = None, start_index: Any = 0) -> Any:
        if positions is None:
            check_start(start_index, inputs.shape[0])
            check_length(self.name, self.max_length, inputs.shape[1], start_index)
            steps = ops.arange(ops.shape(inputs)[1], dtype="int32")
            positions = ops.add(by_row(start_index), steps)  # JAX adds no symbol to an array.
        else:
            positions = ops.convert_to_tensor(positions)
            check_positions(positions, inputs)
        angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * self._angles_of(positions)
        for _ in range(len(inputs.shape) - _MIN_RANK):
            angles = ops.expand_dims(angles, 2)
        amplitude = self._frequencies.amplitude
        return self._rotate(inputs, ops.cos(angles) * amplitude, ops.sin(angles) * amplitude)

    def _angles_of(self, positions: Any) -> Any:
        """Returns the angle of each pair of features at position 1, for each token's sequence."""
        frequencies = self._frequencies
        base = ops.convert_to_tensor(frequencies.base, "float32")
        if frequencies.long is None and frequencies.stretch_exponents is None:
            return base
        # Each sequence has its own length: its angles must not depend on its neighbours.
        length = ops.max(positions, axis=1, keepdims=True, initial=0) + 1
        length = ops.cast(ops.expand_dims(length, -1), "float32")
        trained = float(self._scaling["original_max_position_embeddings"])
        if frequencies.long is not None:
            return ops.where(length > trained, ops.cast(frequencies.long, "float32"), base)
        factor = self._scaling["factor"]
        stretch = factor * ops.maximum(length, trained) / trained - (factor - 1)
        return base * stretch ** ops.cast(frequencies.stretch_exponents, "float32")

    def _rotate(self, inputs: Any, cos: Any, sin: Any) -> Any:
        half = len(self._frequencies.base)
        rotated = ops.cast(inputs[..., : 2 * half], "float32")
        if self.use_interleaved_pairs:
            a, b = rotated[..., 0::2], rotated[..., 1::2]
        else:
            a, b = rotated[..., :half], rotated[..., half:]
        parts = [a * cos - b * sin, b * cos + a * sin]
        if self.use_interleaved_pairs:
            outputs = ops.reshape(ops.stack(parts, axis=-1), ops.shape(rotated))
        else:
            outputs = ops.concatenate(parts, axis=-1)
        outputs = ops.cast(outputs, inputs.dtype)
        if inputs.shape[-1] == 2 * half:
            return outputs
        return ops.concatenate([outputs, inputs[..., 2 * half :]], axis=-1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "max_wavelength": self.max_wavelength,
            "rotary_dim": self.rotary_dim,
            "use_interleaved_pairs": self.use_interleaved_pairs,
            "scaling": self.scaling,
            "max_length": self.max_length,
        }


def read_rotary(
    layer: keras.Layer,
    rotary: Any,
    *,
    head_dim: int | None = None,
    is_required: bool = False,
    dtype: Any = None,
) -> Any:
    """Returns the `rotary` argument of an attention layer as a copy that the layer owns, or `None`.

    It may be serialized. The copy has the layer's dtype policy unless a `dtype` is given. A copy
    can be built for heads of another size than those of other layers with the same `rotary`. A
    `head_dim` that it can't rotate raises an error.
    """
    if isinstance(rotary, dict):
        rotary = keras.saving.deserialize_keras_object(rotary)
    if rotary is None and not is_required:
        return None
    if not isinstance(rotary, RotaryEmbedding):
        raise InvalidInputError(
            f"`rotary` must be a `RotaryEmbedding`{'' if is_required else ' or None'}, received "
            f"{rotary!r}."
        )
    if head_dim is not None:
        _count_rotated(rotary.rotary_dim, head_dim, "`head_dim`")
    dtype = layer.dtype_policy if dtype is None else dtype
    return type(rotary).from_config({**rotary.get_config(), "name": "rotary", "dtype": dtype})


def _check_pairs(dim: int, name: str) -> None:
    if dim < 2 or dim % 2:  # noqa: PLR2004 - a pair has two
        raise InvalidInputError(f"{name} must be an even number of entries, received {dim!r}.")


def _count_rotated(rotary_dim: int | None, dim: int, name: str) -> int:
    """Returns how many of `dim` entries are rotated. `name` is that of `dim` for the error."""
    if rotary_dim is None:
        _check_pairs(dim, f"Without `rotary_dim`, {name}")
        return dim
    if rotary_dim > dim:
        raise InvalidInputError(f"`rotary_dim` is {rotary_dim}, more than {name}, {dim}.")
    return rotary_dim


def check_no_theta(arguments: Mapping[str, Any], name: str) -> None:
    """Raises an error if a layer got the unknown argument `rope_theta`, and names the right one.

    `name` is the layer's own name of the base of the angles.
    """
    if "rope_theta" in arguments:
        raise InvalidInputError(
            f"`rope_theta`, the base of the rotary angles, is `{name}` here: pass "
            f"{name}={arguments['rope_theta']!r}."
        )


def check_positions(positions: Any, inputs: Any) -> None:
    """Raises an error if positions are not integers, one for each token of the inputs.

    The shape is `(batch_size, length)` or `(1, length)`.
    """
    batch_size, length = inputs.shape[:2]
    dtype, shape = keras.backend.standardize_dtype(positions.dtype), tuple(positions.shape)
    allowed = [(None, 1, batch_size), (None, length)]
    fits = len(shape) == len(allowed) and all(
        size in sizes or sizes[-1] is None for size, sizes in zip(shape, allowed, strict=True)
    )
    if not fits or "int" not in dtype:
        raise InvalidInputError(
            f"`positions` must be integers of shape (batch_size, length), for these inputs "
            f"{(batch_size, length)}, received {dtype} of shape {shape}."
        )
