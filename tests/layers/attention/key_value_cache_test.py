import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.layers.attention.key_value_cache import (
    append_to_cache,
    check_states,
    continue_cache,
    make_attention_mask,
    make_cache,
)
from keras_deepseek.testing import assert_close
from tests.oracles.attention_layers import ATTENTIONS, DIM, make_attention
from tests.oracles.cached_decoding import decode_compiled

WITHOUT_A_WAY_BACK = [
    "LinearAttention",
    "SlidingWindowAttention",
    "CompressedSparseAttention",
    "HeavilyCompressedAttention",
]


def to_numpy(cache):
    return {name: keras.ops.convert_to_numpy(tensor) for name, tensor in cache.items()}


def draw(length, batch_size=2):
    return np.random.default_rng(length).normal(size=(batch_size, length, 3)).astype("float32")


@pytest.fixture
def cache():
    return make_cache(2, 5, {"latent": (3,)}, "float32")


def test_an_empty_cache_holds_no_token():
    cache = to_numpy(make_cache(2, 5, {"key": (4, 3), "value": (4, 2)}, "float16"))
    assert {name: array.shape for name, array in cache.items()} == {
        "key": (2, 5, 4, 3),
        "value": (2, 5, 4, 2),
        "mask": (2, 5),
    }
    assert cache["key"].dtype == "float16"
    assert not cache["mask"].any()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_tokens_are_written_from_the_index_on(cache, as_tensor):
    index = keras.ops.convert_to_tensor(2, "int32") if as_tensor else 2
    filled = to_numpy(append_to_cache(cache, index, {"latent": draw(2)}))
    np.testing.assert_array_equal(filled["latent"][:, 2:4], draw(2))
    assert not filled["latent"][:, [0, 1, 4]].any()
    assert filled["mask"].tolist() == [[False, False, True, True, False]] * 2


def test_the_given_cache_stays_as_it_is(cache):
    append_to_cache(cache, 0, {"latent": draw(5)})
    assert not any(array.any() for array in to_numpy(cache).values())


def test_padding_is_carried_in_the_mask(cache):
    mask = np.array([[False, True], [True, True]])
    cache = append_to_cache(cache, 0, {"latent": draw(2)}, mask)
    cache = append_to_cache(cache, 2, {"latent": draw(1)})
    assert to_numpy(cache)["mask"].tolist() == [
        [False, True, True, False, False],
        [True, True, True, False, False],
    ]


def test_a_state_is_replaced_whole_whatever_the_slots():
    cache = make_cache(2, 5, {"latent": (3,)}, "float16", states={"sum": (4,)})
    assert to_numpy(cache)["sum"].tolist() == [[0] * 4] * 2
    state = np.ones((2, 4), "float32")
    filled = to_numpy(append_to_cache(cache, 1, {"latent": draw(2)}, states={"sum": state}))
    assert filled["sum"].tolist() == [[1] * 4] * 2
    assert filled["sum"].dtype == "float16"
    assert filled["mask"].tolist() == [[False, True, True, False, False]] * 2


def test_a_state_that_is_missing_or_of_another_shape_is_refused():
    cache = make_cache(2, 5, {}, "float32", states={"sum": (4,)})
    with pytest.raises(
        InvalidInputError, match=r"'sum' must have the shape \(2, 3\), received \(2, 4"
    ):
        append_to_cache(cache, 0, {}, np.ones((2, 1), bool), states={"sum": np.ones((2, 3))})
    check_states(cache, None, lambda _: {"sum": (4,)})
    with pytest.raises(
        InvalidInputError, match=r"must hold \['key', 'mask'\], received \['mask', 'sum'\]"
    ):
        check_states(cache, 2, lambda _: {"key": (4,)})
    with pytest.raises(InvalidInputError, match=r"must hold \['mask', 'sum'\], received \['sum'\]"):
        check_states({"sum": cache["sum"]}, 2, lambda _: {"sum": (4,)})
    with pytest.raises(InvalidInputError, match=r"'mask' must .*\(2, None\), received \(2,\)"):
        check_states({**cache, "mask": np.ones(2, bool)}, 2, lambda _: {"sum": (4,)})
    check_states(cache, 2, lambda max_length: {"sum": (max_length - 1,)})


@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_lies_behind_the_tokens_of_a_call_is_hidden(cache, as_tensor):
    index = keras.ops.convert_to_tensor(1, "int32") if as_tensor else 1
    filled = append_to_cache(cache, 0, {"latent": draw(5)})
    again = to_numpy(append_to_cache(filled, index, {"latent": draw(2)}))
    assert again["mask"].tolist() == [[True, True, True, False, False]] * 2
    assert to_numpy(filled)["mask"].all()


def test_it_works_in_a_compiled_function():
    class Append(keras.Layer):
        def call(self, latent, filled, update, index):
            cache = {"latent": latent, "mask": filled}
            return append_to_cache(cache, index[0], {"latent": update})["latent"]

    inputs = {
        "latent": keras.Input((5, 3), name="latent"),
        "filled": keras.Input((5,), dtype="bool", name="filled"),
        "update": keras.Input((2, 3), name="update"),
        "index": keras.Input((), dtype="int32", name="index"),
    }
    model = NamedModel(keras.Model(inputs, {"latent": Append()(**inputs)}))
    infer = backend.current().inference.compile_inference(model)
    for index in (0, 3):
        outputs = infer(
            {
                "latent": np.zeros((2, 5, 3), "float32"),
                "filled": np.zeros((2, 5), "bool"),
                "update": draw(2),
                "index": np.full(2, index, "int32"),
            }
        )
        (latent,) = outputs.values()
        np.testing.assert_array_equal(latent[:, index : index + 2], draw(2))
        assert np.count_nonzero(latent) == draw(2).size


def test_a_compiled_step_begins_anew_at_zero_too():
    class GoOn(keras.Layer):
        def call(self, filled, state, index):
            cache = continue_cache({"mask": filled, "state": state}, index[0], ["state"])
            return cache["state"] + keras.ops.cast(cache["mask"], "float32")

    inputs = {
        "filled": keras.Input((3,), dtype="bool", name="filled"),
        "state": keras.Input((3,), name="state"),
        "index": keras.Input((), dtype="int32", name="index"),
    }
    model = NamedModel(keras.Model(inputs, {"sum": GoOn()(**inputs)}))
    infer = backend.current().inference.compile_inference(model)
    batch = {"filled": np.ones((2, 3), bool), "state": np.ones((2, 3), "float32")}
    for index, total in ((0, 0), (3, 2)):
        (outputs,) = infer({**batch, "index": np.full(2, index, "int32")}).values()
        assert outputs.tolist() == [[total] * 3] * 2


@pytest.mark.parametrize("name", WITHOUT_A_WAY_BACK)
def test_a_layer_without_a_way_back_begins_anew_or_goes_on(name):
    layer = make_attention(name)
    inputs = np.random.default_rng(0).normal(size=(2, 4, DIM)).astype("float32")
    _, cache = layer(inputs + 1, cache=layer.make_cache(2, 9), cache_index=0)
    with pytest.raises(InvalidInputError, match=r"backwards: received 3, .* slot 3, .* from 4"):
        layer(inputs, cache=cache, cache_index=3)
    outputs, anew = layer(inputs, cache=cache, cache_index=0)
    expected, fresh = layer(inputs, cache=layer.make_cache(2, 9), cache_index=0)
    assert_close(keras.ops.convert_to_numpy(outputs), keras.ops.convert_to_numpy(expected))
    np.testing.assert_array_equal(to_numpy(anew)["mask"], to_numpy(fresh)["mask"])

    # A slot that is skipped is as padding, which does not count.
    next_ones = (layer(inputs, cache=anew, cache_index=index)[0] for index in (4, 5))
    going_on, skipping = (keras.ops.convert_to_numpy(output) for output in next_ones)
    assert_close(skipping, going_on)


@pytest.mark.torch_alone
@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_stale_cache_is_a_fresh_one(name):
    layer, rng = make_attention(name), np.random.default_rng(0)
    inputs, stale = rng.normal(size=(2, 2, 10, DIM)).astype("float32")
    mask = np.array([[True] * 10, [False, True, True, False] + [True] * 6])
    back = 0 if name in WITHOUT_A_WAY_BACK else 4
    # Pieces of the sequence behind slots that are kept, the last of them behind skipped ones.
    pieces = [(back, back + 3), (back + 3, back + 4), (back + 5, 10)]

    def go_on_from(cache):
        outputs = []
        for start, stop in pieces:
            piece_mask = mask[:, start:stop]
            output, cache = layer(
                inputs[:, start:stop], mask=piece_mask, cache=cache, cache_index=start
            )
            outputs.append(keras.ops.convert_to_numpy(output)[piece_mask])
        return outputs, to_numpy(cache)["mask"]

    fresh = overfull = layer.make_cache(2, 10)
    if back:
        _, fresh = layer(inputs[:, :back], mask=mask[:, :back], cache=fresh, cache_index=0)
        overfull = fresh
    _, overfull = layer(stale[:, back:], cache=overfull, cache_index=back)
    (expected, expected_mask), (outputs, filled) = go_on_from(fresh), go_on_from(overfull)
    for output, other in zip(outputs, expected, strict=True):
        assert_close(output, other)
    np.testing.assert_array_equal(filled, expected_mask)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.torch_alone
def test_a_compiled_step_hides_what_is_stale_too(name):
    layer, rng = make_attention(name), np.random.default_rng(0)
    inputs, stale = rng.normal(size=(2, 2, 10, DIM)).astype("float32")
    back = 0 if name in WITHOUT_A_WAY_BACK else 4
    cache = layer.make_cache(2, 10)
    if back:
        _, cache = layer(inputs[:, :back], cache=cache, cache_index=0)
    _, overfull = layer(stale[:, back:], cache=cache, cache_index=back)
    tokens = inputs[:, back : back + 2]
    expected, _ = layer(tokens, cache=cache, cache_index=back)
    outputs = decode_compiled(layer, tokens, overfull, back)
    assert_close(outputs, keras.ops.convert_to_numpy(expected))


@pytest.mark.parametrize(("index", "length"), [(0, 6), (4, 2), (5, 1)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_full_cache_is_an_error(cache, index, length, as_tensor):
    start = keras.ops.convert_to_tensor(index, "int32") if as_tensor else index
    with pytest.raises(InvalidInputError, match=rf"5 slots, .* {length} tokens .* from {index}\."):
        append_to_cache(cache, start, {"latent": draw(length)})


def test_an_index_below_zero_is_an_error(cache):
    with pytest.raises(InvalidInputError, match=r"`cache_index` must be 0 or more, .* received -1"):
        append_to_cache(cache, -1, {"latent": draw(1)})


def test_a_cache_without_an_index_is_refused(cache):
    with pytest.raises(InvalidInputError, match="`cache` without a `cache_index`"):
        append_to_cache(cache, None, {"latent": draw(1)})


def test_a_cache_of_another_layer_is_refused(cache):
    with pytest.raises(InvalidInputError, match=r"must hold \['key', 'mask'\], received \['latent"):
        append_to_cache(cache, 0, {"key": draw(1)})


@pytest.mark.parametrize("shape", [(3, 1, 3), (2, 1, 4), (2, 1, 1, 3)])
def test_tokens_of_another_shape_are_refused(cache, shape):
    with pytest.raises(InvalidInputError, match=r"'latent' must have .* received \(2, 5, 3\)"):
        append_to_cache(cache, 0, {"latent": np.ones(shape, "float32")})


@pytest.mark.parametrize("sizes", [(-1, 4), (2, 0), (2, None), (2.0, 4), (True, 4)])
def test_sizes_that_make_no_cache_are_refused(sizes):
    with pytest.raises(
        InvalidInputError, match=r"`(batch_size|max_length)` must be .* integer.*, received"
    ):
        make_cache(*sizes, {}, "float32")


def test_an_attention_mask_joins_padding_and_causality():
    key_mask = np.array([[False, True, True, True], [True, True, True, True]])
    mask = make_attention_mask(2, 4, key_mask=key_mask, start_index=1, use_causal_mask=True)
    assert keras.ops.convert_to_numpy(mask).astype(int).tolist() == [
        [[0, 1, 0, 0], [0, 1, 1, 0]],
        [[1, 1, 0, 0], [1, 1, 1, 0]],
    ]


def test_a_window_hides_slots_that_are_too_far():
    for causal, expected in (
        (True, [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]),
        (False, [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]),
    ):
        mask = make_attention_mask(2, 5, start_index=1, use_causal_mask=causal, sliding_window=2)
        assert keras.ops.convert_to_numpy(mask).astype(int).tolist() == [expected]


def test_queries_may_stand_anywhere_and_a_further_rule_joins_the_others():
    slots = keras.ops.convert_to_tensor([2, 0], "int32")
    rule = np.array([[[True, True, False, True]]])
    mask = make_attention_mask(
        None, 4, query_slots=slots, start_index=1, use_causal_mask=True, attention_mask=rule
    )
    assert keras.ops.convert_to_numpy(mask).astype(int).tolist() == [[[1, 1, 0, 1], [1, 1, 0, 0]]]


def test_without_padding_and_causality_there_is_no_attention_mask():
    assert make_attention_mask(2, 4) is None


@pytest.mark.parametrize(
    "index",
    [
        0.5,
        np.float32(1),
        True,
        "1",
        [0, 1],
        np.array([0, 1, 2]),
        np.array([0]),
        np.array([[0, 1]]),
        np.array([0.0, 1.0]),
    ],
)
def test_an_index_is_one_integer_or_one_for_each_sequence(cache, index):
    with pytest.raises(InvalidInputError, match="`cache_index` must be one integer"):
        append_to_cache(cache, index, {"latent": draw(1)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1], "`cache` must be a dict of tensors, received list"),
        ({"latent": np.zeros((2, 5, 3), "int32")}, "'latent' must be a floating-point .* int32"),
        ({"latent": [0.0]}, "'latent' must be a floating-point tensor, received list"),
        ({"mask": np.zeros((2, 5), "float32")}, "'mask' must be a boolean tensor, .* float32"),
    ],
)
def test_what_is_no_cache_of_tensors_of_its_kinds_is_refused(cache, wrong, message):
    wrong = cache | wrong if isinstance(wrong, dict) else wrong
    with pytest.raises(InvalidInputError, match=message):
        append_to_cache(wrong, 0, {"latent": draw(1)})
