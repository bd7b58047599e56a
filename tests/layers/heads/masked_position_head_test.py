import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import MaskedPositionHead
from keras_deepseek.testing import LayerTestCase, assert_close
from keras_deepseek.testing.layer_subject import RecordMask
from tests.oracles.parity import check_case, make_layer, read_cases

CASES = read_cases("masked_position_head")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_bert(name):
    check_case(make_layer(CASES[name]), CASES[name])


@pytest.mark.parametrize(
    "init_kwargs",
    [
        {"vocabulary_size": 7},
        {
            "token_embedding": keras.saving.serialize_keras_object(
                keras.layers.Embedding(9, 6, name="tokens")
            ),
            "intermediate_activation": "gelu",
            "activation": "softmax",
            "epsilon": 1e-3,
        },
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs):
    shapes = {"inputs": (2, 4, 6), "mask_positions": (2, 3)}
    dtypes = {"inputs": "float32", "mask_positions": "int32"}
    # The mask of the outputs is that of the positions, not that of the inputs: see below.
    LayerTestCase().run_layer_test(
        MaskedPositionHead, init_kwargs, shapes, dtypes, supports_masking=False
    )


@settings(max_examples=4)
@given(
    batch_size=st.integers(1, 3),
    length=st.integers(1, 5),
    num_positions=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_it_predicts_a_position_as_it_does_alone(batch_size, length, num_positions, seed):
    head, inputs = MaskedPositionHead(5), draw(batch_size, length, 3)
    positions = np.random.default_rng(seed).integers(0, length, (batch_size, num_positions))
    outputs = to_numpy(head(inputs, positions))
    everywhere = to_numpy(head(inputs, np.tile(np.arange(length), (batch_size, 1))))
    for row in range(batch_size):
        for column in range(num_positions):
            assert_close(outputs[row, column], everywhere[row, positions[row, column]])


@pytest.mark.parametrize("is_carried", [False, True])
def test_the_outputs_carry_the_mask_of_their_positions(is_carried):
    tokens = np.array([[4, 2, 0], [1, 3, 5]])
    embedding = keras.layers.Embedding(6, 3, mask_zero=is_carried)
    positions = np.array([[1, 2, -1], [0, 2, 2]])
    recorder = RecordMask()
    mask = None if is_carried else tokens > 0
    recorder(MaskedPositionHead(5)(embedding(tokens), positions, mask=mask))
    np.testing.assert_array_equal(recorder.mask, [[True, False, False], [True, True, True]])


def make_model():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    embedding = keras.layers.Embedding(6, 3, name="body")
    outputs = MaskedPositionHead(token_embedding=embedding, name="head")(
        embedding(tokens), positions
    )
    model = keras.Model([tokens, positions], outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss=loss)
    return model


TOKENS = np.array([[4, 2, 1], [1, 3, 5]])
POSITIONS = np.array([[1, 2, -1], [0, -1, -1]])
TARGETS = np.array([[3, 1, 0], [2, 0, 0]])


def test_padded_positions_weigh_nothing_in_a_plain_fit():
    model = make_model()
    disturbed = np.where(POSITIONS < 0, 5, TARGETS)
    losses = [
        model.evaluate([TOKENS, POSITIONS], targets, verbose=0) for targets in (TARGETS, disturbed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    weights = model.get_weights()
    after = []
    for targets in (TARGETS, disturbed):
        model.set_weights(weights)
        assert_close(model.fit([TOKENS, POSITIONS], targets, verbose=0).history["loss"], losses[:1])
        after.append(model.get_weights())
    for weight, disturbed_weight, old_weight in zip(*after, weights, strict=True):
        assert_close(weight, disturbed_weight)
        assert not np.allclose(weight, old_weight)


def test_weights_of_zero_do_the_same_as_padding():
    model = make_model()
    is_position = POSITIONS >= 0
    filled = np.where(is_position, POSITIONS, 0)
    logits = to_numpy(model([TOKENS, filled]))
    losses = to_numpy(
        keras.losses.sparse_categorical_crossentropy(TARGETS, logits, from_logits=True)
    )
    padded = model.evaluate([TOKENS, POSITIONS], TARGETS, verbose=0)
    assert padded == pytest.approx(losses[is_position].mean(), rel=1e-5)


def test_a_saved_model_gives_the_same(tmp_path):
    model = make_model()
    model.fit([TOKENS, POSITIONS], TARGETS, verbose=0)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert revived.get_layer("head").token_embedding is revived.get_layer("body")
    batch = [TOKENS, POSITIONS]
    assert_close(to_numpy(revived(batch)), to_numpy(model(batch)))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_an_empty_batch_and_no_positions_work(shape):
    head = MaskedPositionHead(5)
    outputs = head(draw(shape[0], 4, 3), np.zeros(shape, "int32"))
    assert tuple(outputs.shape) == (*shape, 5)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("position", [4, 500])
def test_a_position_that_is_none_shows(position, is_compiled):
    head, inputs = MaskedPositionHead(5), draw(2, 4, 3)
    positions = np.array([[1, position, -1], [3, 0, -1]])
    if is_compiled:
        dtype = "int32" if keras.backend.backend() == "jax" else "int64"  # It has no int64.
        tensors = keras.Input((None, 3)), keras.Input((3,), dtype=dtype)
        outputs = keras.Model(tensors, head(*tensors)).predict([inputs, positions], verbose=0)
    else:
        outputs = to_numpy(head(inputs, positions))
    expected = np.zeros((2, 3, 5), bool)
    expected[0, 1] = True
    np.testing.assert_array_equal(np.isnan(outputs), expected)


def test_the_variables_have_names_that_a_layout_map_can_match():
    head = MaskedPositionHead(5, name="head")
    head.build((None, None, 3))
    assert sorted(weight.path for weight in head.weights) == [
        "head/bias",
        "head/intermediate_dense/bias",
        "head/intermediate_dense/kernel",
        "head/intermediate_layer_norm/beta",
        "head/intermediate_layer_norm/gamma",
        "head/kernel",
    ]


def test_what_does_not_fit_is_refused():
    head = MaskedPositionHead(5)
    inputs = draw(2, 4, 3)
    for positions in (np.zeros((3, 2), "int32"), np.zeros(2, "int32"), np.zeros((2, 2))):
        with pytest.raises(InvalidInputError, match="`mask_positions` must be integers of shape"):
            head(inputs, positions)
    with pytest.raises(InvalidInputError, match="`mask` must have one entry for each token"):
        head(inputs, np.zeros((2, 2), "int32"), mask=np.ones((2, 5), bool))
    with pytest.raises(InvalidInputError, match=r"inputs of shape \(batch_size, length, dim\)"):
        MaskedPositionHead(5).build((2, 3))
    with pytest.raises(InvalidInputError, match="needs a `vocabulary_size`"):
        MaskedPositionHead()
    with pytest.raises(InvalidInputError, match="`epsilon` must be a finite number"):
        MaskedPositionHead(5, epsilon="1e-5")


def test_without_positions_it_predicts_at_all_of_them_by_the_same_weights():
    inputs = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
    positions = np.tile(np.arange(5, dtype="int32"), (2, 1))
    head = MaskedPositionHead(7, intermediate_activation="gelu")
    expected = keras.ops.convert_to_numpy(head(inputs, positions))
    assert_close(keras.ops.convert_to_numpy(head(inputs)), expected)
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    carried = keras.ops.convert_to_numpy(head(inputs, mask=mask)._keras_mask)
    np.testing.assert_array_equal(carried, mask)
    assert head(keras.Input((None, 6))).shape == (None, None, 7)
