"""Functional models drawn by a number: what layers, how they are joined, and their weights."""

from collections.abc import Callable

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from keras_deepseek import layers as our_layers

_Random = np.random.Generator
_Operation = Callable[[_Random, KerasTensor], KerasTensor]

VOCABULARY = 40
_ACTIVATIONS = (
    "relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "softsign", "tanh",
    "sigmoid", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "softmax", "log_softmax",
    "log_sigmoid", "exponential", "tanh_shrink", "soft_shrink", "hard_shrink", "squareplus",
)  # fmt: skip
_NAMES = ("zebra", "image", "a", "tokens", "Input", "left-right", "x", "features", "mask_of", "b2")
_LARGEST_DIM = 48


def random_model(seed: int, attempt: int = 0) -> keras.Model:
    """Returns the model of a number: always the same one, on each backend.

    Args:
        seed: integer.
        attempt: integer. Gives another model: not each one takes the lengths that it is free in.
            Defaults to `0`.
    """
    random = np.random.default_rng([seed, attempt])
    keras.utils.set_random_seed(seed)
    inputs = _draw_inputs(random)
    tensors = [_begin(random, tensor) for tensor in inputs]
    is_used: set[int] = set()
    for _ in range(random.integers(2, 12)):
        drawn = _draw_next(random, tensors)
        if drawn is not None:
            tensor, used = drawn
            is_used.update(map(id, used))
            tensors.append(tensor)
    ends = [tensor for tensor in tensors if id(tensor) not in is_used][-3:]
    if len(tensors) > 3 and random.random() < 0.2:
        ends.append(tensors[len(tensors) // 2])
    ends = list({id(tensor): tensor for tensor in ends}.values())
    model = keras.Model(_pack(random, inputs), _pack(random, ends), name=f"random_{seed}")
    _draw_weights(random, model)
    return model


def _draw_inputs(random: _Random) -> list[KerasTensor]:
    names = random.permutation(_NAMES)
    inputs = []
    for name in names[: random.choice([1, 1, 1, 2, 3])]:
        kind = random.choice(["vector", "sequence", "tokens", "image"], p=[0.2, 0.35, 0.25, 0.2])
        length = None if random.random() < 0.7 else int(random.integers(6, 12))
        dim = int(random.integers(1, 13))
        side = None if random.random() < 0.3 else int(random.integers(8, 15))
        shape = {
            "vector": (dim,),
            "sequence": (length, dim),
            "tokens": (length,),
            "image": (side, side, int(random.integers(1, 5))),
        }[kind]
        dtype = "int32" if kind == "tokens" else "float32"
        inputs.append(keras.Input(shape, dtype=dtype, name=str(name)))
    return inputs


def _begin(random: _Random, tensor: KerasTensor) -> KerasTensor:
    if tensor.dtype != "int32":
        return tensor
    dim = int(random.integers(2, 13))
    return layers.Embedding(VOCABULARY, dim, mask_zero=bool(random.random() < 0.5))(tensor)


def _draw_next(
    random: _Random, tensors: list[KerasTensor]
) -> tuple[KerasTensor, list[KerasTensor]] | None:
    """Returns a further tensor and what it is of; `None` where what was drawn does not fit."""
    index = int(random.integers(max(0, len(tensors) - 3), len(tensors)))
    tensor = tensors[index]
    partners = [other for other in tensors if other is not tensor and other.shape == tensor.shape]
    if partners and random.random() < 0.35:
        chosen, used = _MERGES, [tensor, partners[int(random.integers(len(partners)))]]
    else:
        chosen, used = _OPERATIONS.get(tensor.ndim, ()), [tensor]
    if not chosen:
        return None
    operation = chosen[int(random.integers(len(chosen)))]
    try:
        following = operation(random, used if len(used) > 1 else tensor)
    except (ValueError, TypeError, NotImplementedError, AttributeError):
        return None
    sizes = [size for size in following.shape[1:] if size is not None]
    fits = following.ndim >= 1 and following.shape[0] is None and np.prod(sizes) <= 4096
    return (following, used) if fits and all(sizes) else None


def _pack(random: _Random, tensors: list[KerasTensor]) -> object:
    """Returns the one tensor, or several as a list or by name."""
    if len(tensors) == 1:
        return tensors[0]
    if random.random() < 0.5:
        return tensors
    if all(
        tensor._keras_history.operation.__class__.__name__ == "InputLayer" for tensor in tensors
    ):
        return {tensor.name: tensor for tensor in tensors}
    names = random.permutation(["logits", "Z", "alpha", "out:1", "hidden_state"])
    return {str(name): tensor for name, tensor in zip(names, tensors, strict=False)}


def _draw_weights(random: _Random, model: keras.Model) -> None:
    """Gives each weight values of its own, so that none is left at ones or zeros."""
    for weight in model.weights:
        if weight.dtype.startswith("float"):
            drawn = random.normal(0.0, 0.3, weight.shape)
            positive = weight.path.endswith(("variance", "seed_generator_state"))
            weight.assign(np.abs(drawn) + 0.5 if positive else drawn)


def _units(random: _Random) -> int:
    return int(random.integers(1, 13))


def _pick(random: _Random, *choices: object) -> object:
    return choices[int(random.integers(len(choices)))]


def _padding(random: _Random) -> str:
    return str(_pick(random, "same", "valid"))


def _activation(random: _Random) -> str:
    return str(_pick(random, *_ACTIVATIONS))


def _same_dim(tensor: KerasTensor) -> int:
    dim = tensor.shape[-1]
    if dim is None or dim > _LARGEST_DIM:
        raise ValueError("The last axis is free or long.")
    return int(dim)


_ANY: list[_Operation] = [
    lambda r, x: layers.Dense(_units(r), activation=_activation(r))(x),
    lambda r, x: layers.Dense(_units(r), use_bias=False)(x),
    lambda r, x: layers.Activation(_activation(r))(x),
    lambda r, x: layers.BatchNormalization(center=r.random() < 0.8, scale=r.random() < 0.8)(x),
    lambda r, x: layers.LayerNormalization()(x),
    lambda r, x: layers.RMSNormalization()(x),
    lambda r, x: layers.UnitNormalization()(x),
    lambda r, x: layers.GroupNormalization(groups=-1 if r.random() < 0.5 else 1)(x),
    lambda r, x: layers.PReLU(shared_axes=list(range(1, x.ndim - 1)))(x),
    lambda r, x: layers.Dropout(0.3)(x),
    lambda r, x: layers.GaussianNoise(0.3)(x),
    lambda r, x: layers.Rescaling(float(r.normal()), offset=float(r.normal()))(x),
    lambda r, x: ops.abs(x),
    lambda r, x: ops.sin(x) + ops.cos(x),
    lambda r, x: ops.sqrt(ops.abs(x) + 0.1),
    lambda r, x: ops.log1p(ops.abs(x)),
    lambda r, x: ops.square(x) / (1.0 + ops.square(x)),
    lambda r, x: ops.clip(x, -0.7, 0.9),
    lambda r, x: ops.where(x > 0.1, x, 0.3 * x),
    lambda r, x: ops.maximum(x, 0.2) - ops.minimum(x, -0.1),
    lambda r, x: ops.arctan2(x, 1.0 + ops.abs(x)),
    lambda r, x: ops.erf(x),
    lambda r, x: ops.sum(x, axis=-1, keepdims=True) * x,
    lambda r, x: x - ops.mean(x, axis=-1, keepdims=True),
    lambda r, x: x / (1e-3 + ops.max(ops.abs(x), axis=-1, keepdims=True)),
    lambda r, x: ops.std(x, axis=-1, keepdims=True) + x,
    lambda r, x: ops.logsumexp(x, axis=-1, keepdims=True) + x,
    lambda r, x: ops.cumsum(x, axis=-1),
    lambda r, x: ops.flip(x, axis=-1),
    lambda r, x: ops.sort(x, axis=-1),
    lambda r, x: ops.roll(x, int(_pick(r, 1, 2, -1)), axis=-1),
    lambda r, x: ops.top_k(x, min(2, _same_dim(x)))[0],
    lambda r, x: ops.concatenate([x, ops.negative(x)], axis=-1),
    lambda r, x: ops.one_hot(ops.argmax(x, axis=-1), _same_dim(x)),
    lambda r, x: ops.take(x, [0, _same_dim(x) - 1, 0], axis=-1),
    lambda r, x: ops.split(ops.tile(x, [1] * (x.ndim - 1) + [2]), 2, axis=-1)[1],
    lambda r, x: ops.stop_gradient(x) * 2.0,
    lambda r, x: ops.cast(x > 0.0, "float32") + x,
    lambda r, x: layers.Lambda(_scaled_by_its_size)(x),
    lambda r, x: our_layers.SwiGLU(_units(r))(x),
]


@keras.saving.register_keras_serializable("export_fuzzer")
def _scaled_by_its_size(x: KerasTensor) -> KerasTensor:
    return x * ops.cast(ops.shape(x)[-1], x.dtype)


_VECTORS: list[_Operation] = [
    lambda r, x: layers.Reshape((-1, 1))(x),
    lambda r, x: layers.Reshape((1, -1))(x),
    lambda r, x: layers.RepeatVector(int(r.integers(2, 7)))(x),
    lambda r, x: ops.expand_dims(x, 1),
    lambda r, x: ops.einsum("bi,bj->bij", x, x),
    lambda r, x: ops.outer(x, x) if x.shape[0] else ops.matmul(x[:, :, None], x[:, None, :]),
    lambda r, x: layers.Reshape((x.shape[-1], 1, 1))(x),
]

_SEQUENCES: list[_Operation] = [
    lambda r, x: layers.LSTM(_units(r), return_sequences=r.random() < 0.6)(x),
    lambda r, x: layers.GRU(
        _units(r), return_sequences=r.random() < 0.6, reset_after=r.random() < 0.5
    )(x),
    lambda r, x: layers.SimpleRNN(_units(r), return_sequences=True, go_backwards=True)(x),
    lambda r, x: layers.LSTM(_units(r), go_backwards=True)(x),
    lambda r, x: layers.Bidirectional(layers.GRU(_units(r), return_sequences=True))(x),
    lambda r, x: layers.Bidirectional(layers.LSTM(_units(r)), merge_mode="sum")(x),
    lambda r, x: layers.RNN([layers.LSTMCell(_units(r)), layers.GRUCell(_units(r))])(x),
    lambda r, x: layers.Conv1D(_units(r), 3, padding="causal", dilation_rate=2)(x),
    lambda r, x: layers.Conv1D(_units(r), int(_pick(r, 1, 2, 3)), padding=_padding(r))(x),
    lambda r, x: layers.Conv1D(_units(r), 3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.Conv1D(2 * _same_dim(x), 3, groups=_same_dim(x), padding="same")(x),
    lambda r, x: layers.SeparableConv1D(_units(r), 3, padding="same")(x),
    lambda r, x: layers.DepthwiseConv1D(3, depth_multiplier=2, padding="same")(x),
    lambda r, x: layers.Conv1DTranspose(_units(r), 3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.MaxPooling1D(2, padding=_padding(r))(x),
    lambda r, x: layers.AveragePooling1D(3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.GlobalAveragePooling1D()(x),
    lambda r, x: layers.GlobalMaxPooling1D()(x),
    lambda r, x: layers.UpSampling1D(2)(x),
    lambda r, x: layers.ZeroPadding1D((1, 2))(x),
    lambda r, x: layers.Cropping1D((1, 1))(x),
    lambda r, x: layers.Permute((2, 1))(x),
    lambda r, x: layers.Masking()(x),
    lambda r, x: layers.TimeDistributed(layers.Dense(_units(r)))(x),
    lambda r, x: layers.SpatialDropout1D(0.2)(x),
    lambda r, x: layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=bool(r.random() < 0.5)),
    lambda r, x: layers.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=bool(r.random() < 0.5)),
    lambda r, x: layers.Attention(use_scale=True)([x, x]),
    lambda r, x: layers.AdditiveAttention()([x, x]),
    lambda r, x: ops.mean(x, axis=1),
    lambda r, x: ops.max(x, axis=1, keepdims=True) - x,
    lambda r, x: ops.sum(x, axis=1) / ops.cast(ops.shape(x)[1], x.dtype),
    lambda r, x: ops.cumsum(x, axis=1),
    lambda r, x: ops.flip(x, axis=1),
    lambda r, x: ops.roll(x, 1, axis=1),
    lambda r, x: ops.sort(x, axis=1),
    lambda r, x: ops.argmax(x[:, :, :1], axis=-1),
    lambda r, x: x[:, -1],
    lambda r, x: x[:, ::2],
    lambda r, x: x[:, 1:],
    lambda r, x: x[:, ::-1, :],
    lambda r, x: ops.pad(x, [[0, 0], [2, 1], [0, 0]]),
    lambda r, x: ops.matmul(ops.softmax(ops.matmul(x, ops.swapaxes(x, 1, 2))), x),
    lambda r, x: ops.einsum("btd,bsd->bts", x, x),
    lambda r, x: ops.tril(ops.einsum("btd,bsd->bts", x, x)),
    lambda r, x: ops.expand_dims(x, -1),
    lambda r, x: layers.Reshape((-1, 2, x.shape[-1] // 2))(x) if x.shape[-1] % 2 == 0 else x * 1.0,
    lambda r, x: ops.arange(ops.shape(x)[1], dtype="float32")[None, :, None] * 0.1 + x,
    lambda r, x: ops.concatenate([x, ops.zeros_like(x[:, :1])], axis=1),
    lambda r, x: our_layers.RotaryEmbedding()(x) if x.shape[-1] % 2 == 0 else x * 1.0,
    lambda r, x: our_layers.SlidingWindowAttention(
        2,
        head_dim=4,
        rope_head_dim=2,
        query_lora_rank=4,
        num_output_groups=2,
        output_lora_rank=4,
        sliding_window=5,
        rotary=our_layers.RotaryEmbedding(use_interleaved_pairs=True),
    )(x),
    lambda r, x: our_layers.LinearAttention(num_heads=2, head_dim=4)(x),
]

_IMAGES: list[_Operation] = [
    lambda r, x: layers.Conv2D(_units(r), int(_pick(r, 1, 2, 3)), padding=_padding(r))(x),
    lambda r, x: layers.Conv2D(_units(r), 3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.Conv2D(_units(r), (3, 1), dilation_rate=2, padding="same")(x),
    lambda r, x: layers.Conv2D(2 * _same_dim(x), 3, groups=_same_dim(x), padding="same")(x),
    lambda r, x: layers.DepthwiseConv2D(3, depth_multiplier=2, padding=_padding(r))(x),
    lambda r, x: layers.DepthwiseConv2D(3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.SeparableConv2D(_units(r), 3, padding="same")(x),
    lambda r, x: layers.Conv2DTranspose(_units(r), 3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.Conv2DTranspose(_units(r), 2, padding=_padding(r))(x),
    lambda r, x: layers.MaxPooling2D(2, padding=_padding(r))(x),
    lambda r, x: layers.MaxPooling2D(3, strides=1, padding=_padding(r))(x),
    lambda r, x: layers.AveragePooling2D(3, strides=2, padding=_padding(r))(x),
    lambda r, x: layers.GlobalAveragePooling2D()(x),
    lambda r, x: layers.GlobalMaxPooling2D(keepdims=True)(x),
    lambda r, x: layers.UpSampling2D(2)(x),
    lambda r, x: layers.UpSampling2D(2, interpolation="bilinear")(x),
    lambda r, x: layers.ZeroPadding2D(((1, 0), (2, 1)))(x),
    lambda r, x: layers.Cropping2D(((1, 0), (0, 1)))(x),
    lambda r, x: layers.Resizing(7, 9)(x),
    lambda r, x: layers.SpatialDropout2D(0.2)(x),
    lambda r, x: layers.Flatten()(x),
    lambda r, x: layers.Permute((2, 1, 3))(x),
    lambda r, x: layers.Reshape((-1, x.shape[-1]))(x),
    lambda r, x: layers.TimeDistributed(layers.Dense(_units(r)))(x),
    lambda r, x: ops.mean(x, axis=1),
    lambda r, x: ops.max(x, axis=(1, 2)),
    lambda r, x: ops.transpose(x, (0, 3, 1, 2)),
    lambda r, x: x[:, 1:, ::2],
    lambda r, x: ops.image.pad_images(x, 1, 1, 1, 1),
]

_OPERATIONS: dict[int, list[_Operation]] = {
    2: _ANY + _VECTORS,
    3: _ANY + _SEQUENCES + _SEQUENCES,
    4: _ANY + _IMAGES + _IMAGES,
}

_MERGES: list[Callable[[_Random, list[KerasTensor]], KerasTensor]] = [
    lambda r, pair: layers.Add()(pair),
    lambda r, pair: layers.Subtract()(pair),
    lambda r, pair: layers.Multiply()(pair),
    lambda r, pair: layers.Average()(pair),
    lambda r, pair: layers.Maximum()(pair),
    lambda r, pair: layers.Minimum()(pair),
    lambda r, pair: layers.Concatenate(axis=-1)(pair),
    lambda r, pair: layers.Concatenate(axis=1)(pair),
    lambda r, pair: layers.Dot(axes=-1)(pair),
    lambda r, pair: ops.stack(pair, axis=-1),
    lambda r, pair: ops.where(pair[0] > pair[1], pair[0], 0.5 * pair[1]),
    lambda r, pair: layers.Attention()(pair),
    lambda r, pair: layers.MultiHeadAttention(2, 4)(*pair),
]
