import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import (
    ManifoldConstrainedHyperConnections,
    MultiHeadLatentAttention,
    ResidualStreamCollapse,
    ResidualStreamExpansion,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.testing import LayerTestCase, assert_close
from keras_deepseek.testing.layer_subject import AttachMask, RecordMask
from tests.oracles.parity import check_case, make_layer, read_cases

CASES = read_cases("manifold_constrained_hyper_connections")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_attention(**kwargs):
    return MultiHeadLatentAttention(
        2,
        nope_head_dim=3,
        rope_head_dim=2,
        value_head_dim=3,
        key_value_lora_rank=4,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        **{"use_causal_mask": True, **kwargs},
    )


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_transformers(name):
    check_case(make_layer(CASES[name]), CASES[name])


@pytest.mark.parametrize(
    ("init_kwargs", "shape"),
    [({}, (2, 3, 4, 5)), ({"sinkhorn_iterations": 2, "stream_epsilon": 1e-3}, (3, 2, 6))],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs, shape):
    config = keras.saving.serialize_keras_object(SwiGLU(3))
    # The routine masks streams; a mask has one entry a token, see below.
    LayerTestCase().run_layer_test(
        ManifoldConstrainedHyperConnections,
        {"layer": config, **init_kwargs},
        shape,
        supports_masking=False,
    )


class Zero(keras.Layer):
    def call(self, inputs):
        return inputs * 0


@settings(max_examples=4)
@given(num_streams=st.integers(2, 5), dim=st.integers(1, 5), length=st.integers(1, 3))
def test_the_mean_of_the_streams_passes_by_unchanged(num_streams, dim, length):
    # That is what rows and columns that sum to 1 are for.
    layer, streams = ManifoldConstrainedHyperConnections(Zero()), draw(2, length, num_streams, dim)
    layer.build(streams.shape)
    layer.bias.assign(draw(*layer.bias.shape))
    outputs = to_numpy(layer(streams))
    assert_close(outputs.mean(-2), streams.mean(-2), 1e-3)
    assert np.abs(outputs).max() <= np.abs(streams).max() * 1.001


def test_collapse_and_merge_are_the_halves_of_a_call():
    inner = SwiGLU(3)
    layer, streams = ManifoldConstrainedHyperConnections(inner), draw(2, 3, 4, 5)
    expected = to_numpy(layer(streams))
    streams = keras.ops.convert_to_tensor(streams)
    collapsed, post, comb = layer.collapse(streams)
    assert_close(to_numpy(layer.merge(inner(collapsed), streams, post, comb)), expected)


@pytest.mark.parametrize("is_carried", [False, True])
def test_a_mask_hides_tokens_from_the_layer_inside_and_passes_through(is_carried):
    layer = ManifoldConstrainedHyperConnections(make_attention(use_causal_mask=False))
    streams, mask = draw(2, 4, 3, 6), np.array([[True, True, False, True], [True] * 3 + [False]])
    results = []
    for seed in (1, 2):
        disturbed = np.where(mask[..., None, None], streams, draw(2, 4, 3, 6, seed=seed))
        inputs = keras.ops.convert_to_tensor(disturbed)
        recorder = RecordMask()
        if is_carried:
            outputs = recorder(layer(AttachMask(mask)(inputs)))
            np.testing.assert_array_equal(recorder.mask, mask)
        else:
            outputs = layer(inputs, mask=mask)
        results.append(to_numpy(outputs)[mask])
    assert_close(results[1], results[0])


def test_a_cache_goes_to_the_layer_inside_and_comes_back():
    attention = make_attention()
    layer, streams = ManifoldConstrainedHyperConnections(attention), draw(2, 4, 3, 6)
    expected = to_numpy(layer(streams))
    cache = attention.make_cache(2, 4)
    outputs, cache = layer(streams[:, :3], cache=cache, cache_index=0)
    last, cache = layer(streams[:, 3:], cache=cache, cache_index=3)
    assert_close(to_numpy(outputs), expected[:, :3])
    assert_close(to_numpy(last), expected[:, 3:])


def make_model():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(7, 6)(tokens)
    x = ResidualStreamExpansion(3)(x)
    x = ManifoldConstrainedHyperConnections(make_attention())(x)
    x = ManifoldConstrainedHyperConnections(
        keras.Sequential([keras.layers.RMSNormalization(), SwiGLU(4)])
    )(x)
    x = keras.layers.Dense(7)(ResidualStreamCollapse()(x))
    model = keras.Model(tokens, x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.001), loss=loss)
    return model


def test_a_model_of_streams_fits_and_comes_back_the_same(tmp_path):
    model, tokens = make_model(), np.array([[1, 2, 3, 4], [5, 6, 0, 1]])
    losses = model.fit(tokens, np.roll(tokens, -1, 1), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    for batch in (tokens, tokens[:1, :2]):
        assert_close(to_numpy(revived(batch)), to_numpy(model(batch)))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (1, 1, 4, 5)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    outputs = ManifoldConstrainedHyperConnections(SwiGLU(3))(np.ones(shape, "float32"))
    assert tuple(outputs.shape) == shape


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = ManifoldConstrainedHyperConnections(SwiGLU(3, name="inner"), name="mhc")
    layer.build((None, None, 4, 5))
    assert sorted(weight.path for weight in layer.weights) == [
        "mhc/bias",
        "mhc/inner/down/kernel",
        "mhc/inner/gate/kernel",
        "mhc/inner/up/kernel",
        "mhc/kernel",
        "mhc/scale",
    ]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInputError, match="`layer` must be a Keras layer, received 'dense'"):
        ManifoldConstrainedHyperConnections("dense")
    with pytest.raises(InvalidInputError, match="`sinkhorn_iterations` must be a positive integer"):
        ManifoldConstrainedHyperConnections(SwiGLU(3), sinkhorn_iterations=0)
    for name in ("stream_epsilon", "epsilon"):
        with pytest.raises(InvalidInputError, match=f"`{name}` must be a finite number"):
            ManifoldConstrainedHyperConnections(SwiGLU(3), **{name: True})
    with pytest.raises(InvalidInputError, match=r"2 or more streams, received \(2, 3, 1, 5\)"):
        ManifoldConstrainedHyperConnections(SwiGLU(3))(draw(2, 3, 1, 5))


@pytest.mark.parametrize(
    ("inner", "returned"),
    [
        (keras.layers.Dense(1, name="it"), r"a Dense, returned the shape \(2, 3, 1\)"),
        (keras.layers.ZeroPadding1D((0, 1), name="it"), r"a \w+1D, returned the shape \(2, 4, 5\)"),
        (keras.layers.GlobalAveragePooling1D(name="it"), r"a \w+1D, returned the shape \(2, 5\)"),
    ],
)
def test_a_layer_that_changes_the_shape_is_refused(inner, returned):
    layer = ManifoldConstrainedHyperConnections(inner)
    message = r"keeps the shape of its inputs, \(2, 3, 5\); 'it', " + returned
    with pytest.raises(InvalidInputError, match=message):
        layer(draw(2, 3, 4, 5))
    with pytest.raises(InvalidInputError, match=message):
        layer(keras.Input(batch_shape=(2, 3, 4, 5)))


@pytest.mark.parametrize("name", ["token_ids", "positions", "cache", "cache_index"])
def test_an_argument_that_the_layer_does_not_take_is_refused(name):
    value = np.zeros((2, 3), "int32")
    for inner in (SwiGLU(3, name="it"), keras.Sequential([SwiGLU(3)], name="it")):
        layer = ManifoldConstrainedHyperConnections(inner)
        for streams in (draw(2, 3, 4, 5), keras.Input((3, 4, 5))):
            with pytest.raises(InvalidInputError, match=f"'it', a .*, takes no `{name}`"):
                layer(streams, **{name: value})
