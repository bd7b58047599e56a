import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import BlockSparseAttention, CachedAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.block_sparse_attention import shown_pairs, sparse_attention
from tests.oracles.cached_decoding import decode, decode_last_compiled
from tests.oracles.parity import check_case, make_layer, read_cases

GOLDEN = read_cases("block_sparse_attention")
WINDOW = {"num_heads": 2, "head_dim": 4, "block_size": 4, "sliding_window": 4}
GIVEN = [[True, False, True], [False, False, False], [True, True, False]]
PATTERNS = ("sliding_window", "global_blocks", "block_stride", "block_layout", "use_causal_mask")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def oracle(layer, inputs, mask=None):
    config = layer.get_config()
    if config["num_random_blocks"]:
        num_blocks = -(-inputs.shape[1] // config["block_size"])
        config["block_layout"] = layer._layout.whole(num_blocks)
    visible_pairs = shown_pairs(
        inputs.shape[1],
        block_size=config["block_size"],
        **{pattern: config[pattern] for pattern in PATTERNS},
    )
    projections = [
        (to_numpy(dense.kernel).astype("float64"), to_numpy(dense.bias) if layer.use_bias else 0.0)
        for dense in (layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense)
    ]
    return sparse_attention(
        inputs, *projections, visible_pairs if mask is None else visible_pairs & mask[:, None]
    )


def make(length=22, batch=2, dim=6, seed=0, **kwargs):
    inputs = np.random.default_rng(seed).normal(size=(batch, length, dim)).astype("float32")
    return BlockSparseAttention(**{**WINDOW, **kwargs}), inputs


@pytest.mark.parametrize(
    ("init_kwargs", "input_shape"),
    [
        ({**WINDOW, "global_blocks": [0]}, (2, 11, 6)),
        (
            {**WINDOW, "num_key_value_heads": 1, "value_head_dim": 3, "use_causal_mask": True}
            | {"num_random_blocks": 1, "use_bias": False, "kernel_initializer": "he_normal"},
            (2, 13, 5),
        ),
        (
            {"num_heads": 1, "head_dim": 4, "block_size": 4, "block_layout": GIVEN}
            | {"dropout": 0.2, "seed": 3},
            (2, 10, 4),
        ),
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs, input_shape):
    LayerTestCase().run_layer_test(BlockSparseAttention, init_kwargs, input_shape, oracle=oracle)


@settings(max_examples=6)
@given(
    length=st.sampled_from([1, 7, 30]),
    block_size=st.integers(1, 8),
    use_causal_mask=st.booleans(),
    sliding_window=st.integers(1, 12),
    global_blocks=st.lists(st.integers(-2, 2), max_size=2),
    num_random_blocks=st.integers(0, 2),
)
def test_it_computes_masked_attention_at_any_shape(length, **kwargs):
    layer, inputs = make(length, **kwargs)
    mask = np.random.default_rng(1).random(inputs.shape[:2]) > 0.3
    assert_close(to_numpy(layer(inputs)), oracle(layer, inputs))
    assert_close(to_numpy(layer(inputs, mask=mask)), oracle(layer, inputs, mask))


def test_a_window_and_a_causal_mask_are_those_of_the_layer_of_keras():
    layer, inputs = make(use_causal_mask=True, sliding_window=5)
    keras_layer = keras.layers.MultiHeadAttention(2, 4)
    keras_layer.build(inputs.shape, inputs.shape)
    layer.build(inputs.shape)
    layer.set_weights(keras_layer.get_weights())
    distance = np.arange(22)[:, None] - np.arange(22)
    mask = (distance >= 0) & (distance < 5)
    expected = keras_layer(inputs, inputs, attention_mask=np.repeat(mask[None], 2, 0))
    assert_close(to_numpy(layer(inputs)), to_numpy(expected))


@pytest.mark.parametrize("name", GOLDEN)
def test_it_computes_what_longformer_and_big_bird_of_transformers_compute(name):
    check_case(make_layer(GOLDEN[name]), GOLDEN[name])


@pytest.mark.parametrize("patterns", [{}, {"global_blocks": [0, 2]}, {"num_random_blocks": 2}])
@pytest.mark.parametrize("now", [1, 4, 9, 21])
def test_a_causal_layer_never_looks_ahead(patterns, now):
    layer, inputs = make(use_causal_mask=True, **patterns)
    disturbed = inputs.copy()
    disturbed[:, now:] += 1e3
    undisturbed_outputs, disturbed_outputs = to_numpy(layer(inputs)), to_numpy(layer(disturbed))
    np.testing.assert_array_equal(undisturbed_outputs[:, :now], disturbed_outputs[:, :now])
    assert not np.allclose(undisturbed_outputs[:, now:], disturbed_outputs[:, now:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing_that_is_shown(side):
    layer, inputs = make(length=16, global_blocks=[0, -1], sliding_window=6)
    mask = np.ones((2, 16), bool)
    mask[0, :5] = side != "left"
    mask[0, 11:] = side != "right"
    disturbed = np.where(mask[..., None], inputs, 1e4).astype("float32")
    undisturbed_outputs, disturbed_outputs = (
        to_numpy(layer(inputs, mask=mask)),
        to_numpy(layer(disturbed, mask=mask)),
    )
    np.testing.assert_array_equal(undisturbed_outputs[mask], disturbed_outputs[mask])
    assert np.isfinite(disturbed_outputs).all()


LAYOUTS = {
    "window": {"sliding_window": 5},
    "stride and global": {"sliding_window": None, "block_stride": 2, "global_blocks": [0, 2]},
    "random, grouped": {"num_random_blocks": 1, "num_key_value_heads": 1, "value_head_dim": 3},
    "given": {
        "sliding_window": None,
        "block_layout": np.array([[1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]], bool),
        "use_bias": False,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pieces", [(0, *range(7, 15)), (0, 3, 8, 13, 14)])
def test_cached_decoding_is_the_full_forward(layout, pieces):
    layer, inputs = make(length=14, use_causal_mask=True, **LAYOUTS[layout])
    assert_close(decode(layer, inputs, pieces, max_length=16), to_numpy(layer(inputs)))


@pytest.mark.parametrize("max_length", [14, 16])
def test_the_room_of_a_cache_changes_nothing(max_length):
    layer, inputs = make(length=14, use_causal_mask=True, num_random_blocks=2, block_stride=3)
    outputs = decode(layer, inputs, (0, 12, 13, 14), max_length)
    assert_close(outputs, to_numpy(layer(inputs)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_sequences_decode_as_they_are_computed_whole(side):
    layer, inputs = make(length=12, use_causal_mask=True, sliding_window=6, global_blocks=[1])
    mask = np.ones((2, 12), bool)
    mask[1, :5] = side == "right"
    mask[1, 5:10] = side == "left"
    outputs = decode(layer, inputs, (0, 10, 11, 12), 16, mask)
    assert_close(outputs[mask], to_numpy(layer(inputs, mask=mask))[mask])
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("length", [1, 6])
def test_a_step_of_decoding_works_in_a_compiled_model(length):
    layer, inputs = make(length=9 + length, use_causal_mask=True, num_key_value_heads=1)
    outputs = decode_last_compiled(layer, inputs, 9, 16)
    assert_close(outputs, to_numpy(layer(inputs))[:, 9:])


def test_a_functional_model_may_hand_the_cache_through():
    layer, inputs = make(length=1, use_causal_mask=True)
    cache = layer.make_cache(2, 4)
    symbolic = {
        name: keras.Input(
            tensor.shape[1:], dtype=keras.backend.standardize_dtype(tensor.dtype), name=name
        )
        for name, tensor in cache.items()
    }
    token = keras.Input((1, 6), name="token")
    outputs, new_cache = layer(token, cache=symbolic, cache_index=2)
    model = keras.Model([token, symbolic], {"outputs": outputs, **new_cache})
    results = model([keras.ops.convert_to_tensor(inputs), cache])
    assert {name: tuple(tensor.shape) for name, tensor in results.items()} == {
        "outputs": (2, 1, 6),
        "key": (2, 4, 2, 4),
        "value": (2, 4, 2, 4),
        "mask": (2, 4),
    }
    assert to_numpy(results["mask"]).tolist() == [[False, False, True, False]] * 2
    assert_close(to_numpy(results["outputs"]), to_numpy(layer(inputs)))


def test_a_cache_that_does_not_fit_is_refused():
    layer, inputs = make(length=3, use_causal_mask=True)
    with pytest.raises(InvalidInputError, match="2 slots, received 3 tokens"):
        layer(inputs, cache=layer.make_cache(2, 2), cache_index=0)
    with pytest.raises(InvalidInputError, match="`cache` without a `cache_index`"):
        layer(inputs, cache=layer.make_cache(2, 4))
    layer_with_layout = BlockSparseAttention(
        1, head_dim=4, block_size=4, block_layout=GIVEN, use_causal_mask=True
    )
    with pytest.raises(InvalidInputError, match=r"sequence of 4 blocks\. Give a larger layout"):
        layer_with_layout.make_cache(2, 13)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "needs `use_causal_mask=True`"),
        ({"use_causal_mask": True, "global_blocks": [0, -1]}, r"\[0, -1\] count from the end"),
    ],
)
def test_a_layout_that_changes_with_the_length_has_no_cache(kwargs, message):
    layer, inputs = make(length=3, **kwargs)
    with pytest.raises(InvalidInputError, match=message):
        layer(inputs, cache=layer.make_cache(2, 4), cache_index=0)


def test_an_empty_piece_leaves_the_cache_as_it_is():
    layer, inputs = make(length=3, use_causal_mask=True)
    _, cache = layer(inputs, cache=layer.make_cache(2, 4), cache_index=0)
    outputs, same = layer(inputs[:, :0], cache=cache, cache_index=3)
    assert tuple(outputs.shape) == (2, 0, 6)
    np.testing.assert_array_equal(to_numpy(same["key"]), to_numpy(cache["key"]))


def test_rows_that_see_nothing_are_finite():
    layer = BlockSparseAttention(1, head_dim=4, block_size=4, block_layout=GIVEN)
    inputs = np.random.default_rng(0).normal(size=(1, 12, 4)).astype("float32")
    outputs = to_numpy(layer(inputs))
    np.testing.assert_array_equal(outputs[:, 4:8], 0)
    assert np.isfinite(to_numpy(layer(inputs, mask=np.zeros((1, 12), bool)))).all()


@pytest.mark.parametrize("shape", [(0, 9, 6), (2, 1, 6), (2, 0, 6)])
def test_an_empty_batch_and_sequences_of_one_and_none_work(shape):
    outputs = BlockSparseAttention(**WINDOW)(np.ones(shape, "float32"))
    assert tuple(outputs.shape) == shape


def test_one_layer_serves_any_length():
    layer, _ = make(global_blocks=[0])
    for length in (3, 4, 5, 17):
        _, inputs = make(length)
        assert_close(to_numpy(layer(inputs)), oracle(layer, inputs))


def test_it_takes_the_mask_of_an_embedding_in_a_model_that_learns_to_copy():
    tokens = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(7, 16, mask_zero=True)(tokens)
    x = x + BlockSparseAttention(
        2, head_dim=8, block_size=4, sliding_window=3, use_causal_mask=True
    )(x)
    model = keras.Model(tokens, keras.layers.Dense(7)(x))
    model.compile(
        keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    inputs = np.random.default_rng(0).integers(1, 7, (64, 12))
    inputs[:, 10:] = 0
    targets = np.roll(inputs, 1, axis=1)  # What came before, only attention can tell.
    targets[:, 0] = inputs[:, 0]
    losses = model.fit(inputs, targets, epochs=8, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_the_beginning_of_a_sequence_does_not_reach_a_global_block():
    layer, inputs = make(length=22, use_causal_mask=True, global_blocks=range(3, 4))
    assert layer.get_config()["global_blocks"] == [3]
    outputs = to_numpy(layer(inputs))
    assert_close(to_numpy(layer(inputs[:, :9])), outputs[:, :9])


def test_random_blocks_are_the_same_after_saving_and_differ_by_seed():
    layer, inputs = make(num_random_blocks=2, layout_seed=5)
    outputs = to_numpy(layer(inputs))
    for seed, is_equal in ((5, True), (6, False)):
        other = BlockSparseAttention.from_config({**layer.get_config(), "layout_seed": seed})
        other.build(inputs.shape)
        other.set_weights(layer.get_weights())
        assert np.allclose(to_numpy(other(inputs)), outputs) == is_equal


def test_training_drops_weights_and_inference_does_not():
    layer, inputs = make(dropout=0.5, seed=1)
    assert_close(to_numpy(layer(inputs, training=False)), oracle(layer, inputs))
    assert not np.allclose(to_numpy(layer(inputs, training=True)), oracle(layer, inputs))


def test_a_model_for_an_unknown_length_is_called_with_known_ones():
    layer, _ = make()
    symbolic = keras.Input((None, 6))
    model = keras.Model(symbolic, layer(symbolic))
    assert model.output_shape == (None, None, 6)
    for length in (3, 9):
        _, inputs = make(length)
        assert_close(to_numpy(model(inputs)), oracle(layer, inputs))
    assert_close(model.predict(inputs, verbose=0), oracle(layer, inputs))


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = BlockSparseAttention(
        **WINDOW, num_key_value_heads=1, value_head_dim=3, name="attention"
    )
    layer.build((None, None, 6))
    assert {weight.path: tuple(weight.shape) for weight in layer.weights} == {
        "attention/query/kernel": (6, 2, 4),
        "attention/query/bias": (2, 4),
        "attention/key/kernel": (6, 1, 4),
        "attention/key/bias": (1, 4),
        "attention/value/kernel": (6, 1, 3),
        "attention/value/bias": (1, 3),
        "attention/attention_output/kernel": (2, 3, 6),
        "attention/attention_output/bias": (6,),
    }


def test_rotary_positions_count_distances_and_continue_from_the_cache():
    layer, inputs = make(length=9, use_causal_mask=True, rotary=RotaryEmbedding())
    outputs = to_numpy(layer(inputs))
    positions = np.arange(9)[None] + np.array([[7], [0]])
    assert_close(to_numpy(layer(inputs, positions=positions)), outputs)
    assert_close(decode(layer, inputs, (0, 3, 8, 9), max_length=12), outputs)
    spread = to_numpy(layer(inputs, positions=3 * positions))
    assert np.abs(spread - outputs).max() > 1e-3
    with pytest.raises(InvalidInputError, match="received `positions`, but has no rotary"):
        make(length=9)[0](inputs, positions=positions)


def test_all_keys_in_sight_it_is_keras_attention_with_the_same_rotary_embedding():
    rotary = RotaryEmbedding(100.0)
    layer, inputs = make(sliding_window=64, use_causal_mask=True, rotary=rotary)
    dense = CachedAttention(keras.layers.MultiHeadAttention(2, 4), rotary=rotary)
    layer.build(inputs.shape)
    dense.build(inputs.shape)
    dense.set_weights(layer.get_weights())
    assert_close(to_numpy(layer(inputs)), to_numpy(dense(inputs)))


def test_the_projections_do_not_start_equal():
    layer, inputs = make(kernel_initializer=keras.initializers.GlorotUniform())
    layer.build(inputs.shape)
    assert not np.allclose(to_numpy(layer.query_dense.kernel), to_numpy(layer.key_dense.kernel))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer, received 0"),
        ({"head_dim": 2.0}, r"`head_dim` must be a positive integer, received 2\.0"),
        ({"value_head_dim": -1}, "`value_head_dim` must be a positive integer, received -1"),
        ({"num_key_value_heads": 3}, "must divide `num_heads`, received 3 and 2"),
        ({"dropout": 1.0}, r"`dropout` must be .* below 1, received 1\.0"),
        ({"global_blocks": 1}, "`global_blocks` must be a list of integers, .* received 1"),
        ({"block_size": 0}, "`block_size` must be a positive integer, received 0"),
        ({"block_layout": np.ones((2, 3), bool)}, r"`block_layout` .* received \(2, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        BlockSparseAttention(**{**WINDOW, **arguments})


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 4, 6), (2, 5, None)])
def test_inputs_of_another_rank_or_an_unknown_dim_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"\(batch_size, length, dim\) with a known dim"):
        BlockSparseAttention(**WINDOW).build(shape)


def test_a_mask_of_another_shape_is_refused():
    layer, inputs = make(length=8)
    with pytest.raises(InvalidInputError, match=r"`mask` must have .* \(2, 8\), received \(2, 7\)"):
        layer(inputs, mask=np.ones((2, 7), bool))


def test_a_length_that_is_unknown_when_called_is_refused():
    layer, _ = make()
    layer.build((None, None, 6))
    with pytest.raises(InvalidInputError, match="Pad them to a fixed length, and mask the padding"):
        layer.call(keras.Input((None, 6)))


def test_a_sequence_beyond_the_given_layout_is_refused():
    layer = BlockSparseAttention(1, head_dim=4, block_size=4, block_layout=GIVEN)
    with pytest.raises(InvalidInputError, match=r"sequence of 4 blocks\. Give a larger layout"):
        layer(np.ones((1, 13, 4), "float32"))
    with pytest.raises(InvalidInputError, match=r"sequence of 4 blocks\. Give a larger layout"):
        layer(keras.Input((13, 4)))


def test_it_takes_the_place_of_multi_head_attention_with_its_weights():
    sparse, inputs = make(sliding_window=64, dropout=0.0)
    dense = keras.layers.MultiHeadAttention(2, 4)
    mask = np.arange(22) < [[22], [15]]
    expected = dense(inputs, inputs, key_mask=mask)
    sparse.build(inputs.shape)
    for name in ("query", "key", "value", "output"):
        getattr(sparse, f"{name}_dense").set_weights(getattr(dense, f"_{name}_dense").get_weights())
    for received in (
        sparse(inputs, inputs, inputs, key_mask=mask),
        sparse(query=inputs, value=inputs, query_mask=mask, use_causal_mask=False),
        sparse(inputs, value=inputs, mask=mask, return_attention_scores=False),
        sparse(inputs, mask),
    ):
        assert_close(to_numpy(received)[0], to_numpy(expected)[0], 1e-4)
        assert_close(to_numpy(received)[1, :15], to_numpy(expected)[1, :15], 1e-4)


def test_a_graph_of_the_same_call_is_saved_and_trains_in_half_precision(tmp_path):
    inputs = keras.Input((None, 6))
    hidden = BlockSparseAttention(**WINDOW, name="attention", dtype="mixed_bfloat16")(
        inputs, inputs
    )
    model = keras.Model(inputs, keras.layers.Add()([inputs, hidden]))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = np.ones((2, 9, 6), "float32")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"value": np.ones((2, 22, 6), "float32")}, "query, value and key must be the same tensor"),
        ({"attention_mask": np.ones((2, 22, 22), bool)}, "takes no `attention_mask`"),
        ({"return_attention_scores": True}, "returns no scores"),
        ({"use_causal_mask": True}, "was created with use_causal_mask=False"),
    ],
)
def test_a_call_of_multi_head_attention_that_it_has_no_answer_to_is_refused(options, match):
    layer, inputs = make()
    with pytest.raises(InvalidInputError, match=match):
        layer(inputs, **options)


def test_cross_attention_by_position_is_refused():
    layer, inputs = make()
    with pytest.raises(InvalidInputError, match="query, value and key must be the same tensor"):
        layer(inputs, inputs + 1)


def test_arguments_of_its_own_call_pass_unchanged():
    layer, inputs = make(length=4, use_causal_mask=True)
    mask = np.array([[True] * 4, [True] * 3 + [False]])
    cache = layer.make_cache(2, 6)
    outputs, _ = layer(inputs, mask, cache=cache, cache_index=0)
    again, _ = layer(query=inputs, value=inputs, mask=mask, cache=cache, cache_index=0)
    np.testing.assert_array_equal(to_numpy(outputs), to_numpy(again))
