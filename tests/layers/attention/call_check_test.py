import json
import re

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import (
    BlockSparseAttention,
    CachedAttention,
    LightningIndexer,
    LinearAttention,
    NativeSparseAttention,
    RotaryEmbedding,
)
from keras_deepseek.layers.attention.self_attention_layer import (
    check_call,
    check_room,
    compute_call_spec,
    read_length,
)
from keras_deepseek.testing import assert_close
from tests.oracles.attention_layers import ATTENTIONS, DIM, make_attention
from tests.oracles.precisions import PRECISIONS

FOUR = RotaryEmbedding(max_length=4)
TOKENS = np.ones((2, 3, DIM), "float32")
WITHOUT_FLOAT32 = ("BlockSparseAttention", "LinearAttention")
"""Those that have neither a rotary embedding nor a layer of Keras that computes in float32."""


def draw_tokens(length):
    return np.random.default_rng(0).normal(size=(2, length, DIM))


class Attending(keras.Layer):
    def __init__(self, **kwargs):
        super().__init__(name="attending")
        for name, value in kwargs.items():
            setattr(self, name, value)


def test_the_mask_that_is_given_goes_before_the_one_that_keras_fills_in():
    explicit, filled_in = np.ones((2, 3), bool), np.zeros((2, 3), bool)
    for masks, expected in (
        ((explicit, filled_in), explicit),
        ((None, filled_in), filled_in),
        ((None, None), None),
    ):
        assert check_call(Attending(), TOKENS, masks, None, None) is expected
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 3\), received \(2, 4\)"):
        check_call(Attending(), TOKENS, (None, np.ones((2, 4), bool)), None, None)


def test_a_layer_without_a_causal_mask_has_no_cache():
    cache = {"mask": np.zeros((2, 3), bool)}
    assert check_call(Attending(use_causal_mask=True), TOKENS, (None, None), cache, 0) is None
    with pytest.raises(InvalidInputError, match=r"'attending' .* needs `use_causal_mask=True`"):
        check_call(Attending(use_causal_mask=False), TOKENS, (None, None), cache, 0)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_call_of_multi_head_attention_is_taken_or_told_what_to_change(kind):
    layer, tokens = make_attention(kind), np.ones((2, 8, DIM), "float32")
    same = layer(tokens, tokens, use_causal_mask=True)
    to_numpy = keras.ops.convert_to_numpy
    assert_close(to_numpy(same), to_numpy(layer(tokens)))
    with pytest.raises(InvalidInputError, match="Set it when you create the layer"):
        layer(tokens, use_causal_mask=False)
    with pytest.raises(InvalidInputError, match="must be the same tensor"):
        layer(tokens, tokens + 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda rotary: LinearAttention(2, head_dim=7, rotary=rotary),
        lambda rotary: BlockSparseAttention(2, head_dim=7, sliding_window=3, rotary=rotary),
        lambda rotary: NativeSparseAttention(2, head_dim=7, rotary=rotary),
        lambda rotary: LightningIndexer(2, head_dim=7, rotary=rotary),
        lambda rotary: CachedAttention(keras.layers.MultiHeadAttention(2, 7), rotary=rotary),
    ],
)
def test_a_head_that_can_not_be_rotated_is_refused_at_creation(make):
    with pytest.raises(InvalidInputError, match=r"`head_dim` must be an even .* received 7"):
        make(RotaryEmbedding())
    with pytest.raises(InvalidInputError, match="`rotary_dim` is 8, more than `head_dim`, 7"):
        make(RotaryEmbedding(rotary_dim=8))
    make(RotaryEmbedding(rotary_dim=6))


def test_the_room_is_that_of_the_rotary_embedding():
    layer = Attending(rotary=RotaryEmbedding(max_length=4))
    check_room(layer, TOKENS, None, 1)
    check_room(layer, TOKENS, np.array([[7, 8, 9]]), 2)
    with pytest.raises(InvalidInputError, match="'attending' has a `max_length` of 4 positions"):
        check_room(layer, TOKENS, None, 2)
    check_room(Attending(rotary=None), TOKENS, None, 99)
    with pytest.raises(InvalidInputError, match="but has no rotary embedding"):
        check_room(Attending(rotary=None), TOKENS, np.zeros((2, 3), "int32"), None)


def test_a_length_that_is_not_known_is_refused():
    assert read_length(Attending(), keras.KerasTensor((None, 3, DIM))) == 3
    with pytest.raises(InvalidInputError, match="Pad them to a fixed length, and mask the padding"):
        read_length(Attending(), keras.KerasTensor((2, None, DIM)))


def test_the_spec_of_a_call_with_a_cache_has_the_cache_too():
    layer, inputs = (
        make_attention("SlidingWindowAttention", dtype="mixed_float16", rotary=FOUR),
        keras.KerasTensor((2, 5, DIM), "float32"),
    )
    cache = layer.make_cache(2, 9)
    positions = keras.KerasTensor((2, 5), "int32")
    spec = compute_call_spec(layer, inputs, None, positions)  # As `call` takes them, one by one.
    assert (spec.shape, spec.dtype) == ((2, 5, DIM), "float16")
    outputs, spec = compute_call_spec(
        layer, inputs, positions=positions, cache=cache, cache_index=0
    )
    assert outputs.shape == (2, 5, DIM)
    assert {name: tuple(tensor.shape) for name, tensor in spec.items()} == {
        "recent_key": (2, 3, DIM),
        "mask": (2, 9),
    }
    with pytest.raises(InvalidInputError, match="of 4 positions, received 5 tokens"):
        compute_call_spec(layer, inputs)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_spec_is_refused_where_the_call_would_be(name):
    layer, inputs = make_attention(name), keras.KerasTensor((2, 5, DIM))
    cache = layer.make_cache(2, 9)

    def refuse(message, inputs=inputs, **kwargs):
        with pytest.raises(InvalidInputError, match=message):
            layer.compute_output_spec(inputs, **kwargs)

    refuse(r"\(batch_size, length, dim\) .*received \(2, 6\)", keras.KerasTensor((2, DIM)))
    refuse("`mask` must be boolean, .* received float32", mask=keras.KerasTensor((2, 5)))
    refuse(r"`mask` must have .* \(2, 5\), received", mask=keras.KerasTensor((2, 4), "bool"))
    refuse("`cache` without a `cache_index`", cache=cache)
    refuse("must be one integer", cache=cache, cache_index=keras.KerasTensor((3,), "int32"))
    for shape in ((), (2,)):
        index = keras.KerasTensor(shape, "int32")
        outputs, _ = layer.compute_output_spec(inputs, cache=cache, cache_index=index)
        assert outputs.shape == (2, 5, DIM)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_spec_counts_the_positions_from_the_index_on(name):
    layer, inputs = make_attention(name, rotary=FOUR), keras.KerasTensor((2, 3, DIM))
    arguments = {"cache": layer.make_cache(2, 9)}
    layer.compute_output_spec(inputs, **arguments, cache_index=1)
    with pytest.raises(
        InvalidInputError, match=r"of 4 positions, received 3 tokens from position 2"
    ):
        layer.compute_output_spec(inputs, **arguments, cache_index=2)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_is_no_boolean_is_refused(name):
    config = make_attention(name).get_config()
    for argument in {name for name in config if name.startswith("use_")}:
        for value in (1, 0.0, "yes", None):
            with pytest.raises(InvalidInputError, match=f"`{argument}` must be True or False"):
                make_attention(name, **{argument: value})
        setting = make_attention(name, **{argument: np.True_}).get_config()[argument]
        assert setting is True


@pytest.mark.parametrize("name", ATTENTIONS)
def test_numbers_are_finite_numbers_of_python_or_numpy(name):
    config = make_attention(name).get_config()
    for argument in {"dropout", "epsilon", "indexer_loss_weight"} & set(config):
        for value in (np.nan, np.inf, -1, True, "0.1", [0.1]):
            with pytest.raises(InvalidInputError, match=f"`{argument}` must be a finite number"):
                make_attention(name, **{argument: value})
        setting = make_attention(name, **{argument: np.float32(0.5)}).get_config()[argument]
        assert (type(setting), setting) == (float, 0.5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_sizes_of_numpy_are_in_the_config_as_those_of_python(name):
    sizes = {key: np.int64(x) for key, x in ATTENTIONS[name].items() if type(x) is int}
    layer = make_attention(name, **sizes)
    config, expected = layer.get_config(), make_attention(name).get_config()
    if name != "CachedAttention":  # Which holds a layer with a name of its own.
        assert json.dumps(config | {"name": ""}) == json.dumps(expected | {"name": ""})
    cache = layer.make_cache(np.int32(2), np.int64(5))
    assert tuple(cache["mask"].shape) == (2, 5)
    with pytest.raises(InvalidInputError, match="`max_length` must be a positive integer"):
        layer.make_cache(2, 5.0)
    with pytest.raises(InvalidInputError, match="`batch_size` must be an integer of at least 0"):
        layer.make_cache(-1, 5)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_ids_in_the_place_of_vectors_are_refused_eagerly_and_in_a_model(name, dtype):
    layer = make_attention(name)
    message = f"expects floating-point inputs, received {dtype} of shape .*embed them first"
    with pytest.raises(InvalidInputError, match=message):
        layer(TOKENS.astype(dtype))
    with pytest.raises(InvalidInputError, match=message):
        layer(keras.Input((3, DIM), dtype=dtype))


def test_a_rotary_embedding_and_an_indexer_refuse_them_too():
    ids = TOKENS.astype("int32")
    with pytest.raises(InvalidInputError, match="expects floating-point inputs, received int32"):
        RotaryEmbedding()(ids)
    indexer = LightningIndexer(2, head_dim=4)
    for arguments in ({"inputs": ids}, {"inputs": TOKENS, "queries": ids}):
        with pytest.raises(InvalidInputError, match=r"'lightning_indexer.*received int32"):
            indexer(**arguments)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_layer_that_is_given_nothing_says_so(name):
    layer = make_attention(name)
    with pytest.raises(InvalidInputError, match=r"\(batch_size, length, dim\) .* received None"):
        type(layer).from_config(layer.get_config())(None)
    with pytest.raises(ValueError, match="Got 'None'"):  # Of Keras, once there are weights.
        layer(None)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_cache_and_an_index_that_do_not_fit_are_refused(name):
    layer = make_attention(name)
    cache = layer.make_cache(2, 5)
    entry = next(iter(cache))

    def refuse(message, cache, index=0):
        with pytest.raises(InvalidInputError, match=message):
            layer(TOKENS, cache=cache, cache_index=index)

    refuse(r"must have the shape .*received \(3, ", layer.make_cache(3, 5))
    names = re.escape(str(sorted(cache)))
    refuse(rf"must hold {names}, received \['mask'\]", {"mask": cache["mask"]})
    refuse(rf"must hold .*, received \['{entry}'\]", {entry: cache[entry]})
    refuse(rf"must hold {names}, received .*'other'", {**cache, "other": cache[entry]})
    for other in ATTENTIONS:
        received = make_attention(other).make_cache(2, 5)
        if set(received) != set(cache):
            theirs = re.escape(str(sorted(received)))
            refuse(f"must hold {names}, received {theirs}. Make it with", received)
    refuse("floating-point tensor, received int", cache | {entry: np.zeros((2, 5), "int32")})
    refuse("'mask' must be a boolean tensor", cache | {"mask": np.zeros((2, 5), "float32")})
    refuse("must be a dict of tensors, received list", [cache])
    refuse("must be one integer .* received 1.5", cache, 1.5)
    refuse("must be 0 or more, .* received -1", cache, -1)
    refuse("5 slots, received 3 tokens for the slots from 3", cache, 3)
    refuse("5 slots, received 3 tokens for the slots from 9", cache, keras.ops.convert_to_tensor(9))
    refuse("`cache` without a `cache_index`", cache, None)
    refuse("`cache_index` without a `cache`", None, 0)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_more_tokens_than_positions_are_refused_whatever_else_is_given(name):
    layer = make_attention(name, rotary=FOUR)
    inputs, mask = np.ones((2, 5, DIM), "float32"), np.ones((2, 5), bool)
    mask[:, :3] = False
    for kwargs in ({}, {"mask": mask}):
        with pytest.raises(InvalidInputError, match="of 4 positions, received 5 tokens"):
            layer(inputs, **kwargs)
    with pytest.raises(
        InvalidInputError, match="of 4 positions, received 3 tokens from position 2"
    ):
        layer(TOKENS, cache=layer.make_cache(2, 9), cache_index=2)
    with pytest.raises(InvalidInputError, match="of 4 positions, received 5 tokens"):
        layer(keras.Input((5, DIM)))
    assert layer(keras.Input((4, DIM))).shape == (None, 4, DIM)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # JAX has none unless told to.
@pytest.mark.parametrize("name", ATTENTIONS)
def test_in_float64_all_is_float64_where_there_is_one(name):
    def dtypes(tensors):
        return {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}

    options = dict.fromkeys(("dropout", "indexer_loss_weight"), 0.5)
    config = make_attention(name).get_config()
    options = {argument: x for argument, x in options.items() if argument in config}
    layer, inputs = make_attention(name, dtype="float64", **options), draw_tokens(9)
    widest = dtypes([keras.ops.zeros(1, "float64")])
    cache, mask = layer.make_cache(2, 9), np.arange(9) != np.array([[3], [9]])
    first, cache = layer(inputs[:, :5], mask=mask[:, :5], cache=cache, cache_index=0)
    more, cache = layer(inputs[:, 5:8], cache=cache, cache_index=5)
    last, cache = layer(inputs[:, 8:], cache=cache, cache_index=8)
    masked, plain = layer(inputs, mask=mask), layer(inputs, training=True)
    entries = [tensor for entry, tensor in cache.items() if entry != "mask"]
    assert dtypes([first, more, last, masked, plain, *layer.losses, *entries]) == widest
    pieces = keras.ops.convert_to_numpy(keras.ops.concatenate([first, more, last], axis=1))
    precision = widest.pop() if name in WITHOUT_FLOAT32 else "float32"
    assert_close(pieces[mask], keras.ops.convert_to_numpy(masked)[mask], precision)
    other = make_attention(name)
    other.set_weights(layer.get_weights())
    expected = keras.ops.convert_to_numpy(other(inputs.astype("float32"), mask=mask))
    assert_close(pieces[mask], expected[mask])
    gradients, _ = backend.current().compute.compute_gradients(
        lambda x: keras.ops.sum(layer(x)), [inputs], []
    )
    assert np.isfinite(gradients[0]).all()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_inputs_in_float64_are_computed_in_the_dtype_of_the_policy(name):
    layer, inputs = make_attention(name), draw_tokens(5)
    outputs = keras.ops.convert_to_numpy(layer(inputs))
    assert outputs.dtype == "float32"
    assert_close(outputs, keras.ops.convert_to_numpy(layer(inputs.astype("float32"))))


@pytest.mark.skipif(PRECISIONS == ["float32"], reason="JAX has no float64 unless it is asked to")
def test_an_indexer_in_float64_is_what_its_spec_says():
    indexer = LightningIndexer(2, head_dim=4, rotary=FOUR, dtype="float64")
    spec = indexer(keras.Input((3, DIM), dtype="float64"))
    for received, expected in zip(indexer(TOKENS), spec, strict=True):
        assert keras.backend.standardize_dtype(received.dtype) == expected.dtype
