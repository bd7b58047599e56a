import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import (
    ChunkedCrossEntropy,
    DeepSeekMoE,
    ExpertRouter,
    MultiHeadLatentAttention,
    MultiTokenPrediction,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.layers.heads.multi_token_prediction import shift_tokens
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles import multi_token_prediction
from tests.oracles.swiglu import swiglu

DIM, VOCABULARY_SIZE = 6, 11


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*shape, DIM)).astype("float32")
    return hidden, rng.integers(1, VOCABULARY_SIZE, shape).astype("int32")


def make_attention():
    return MultiHeadLatentAttention(
        2,
        nope_head_dim=3,
        rope_head_dim=2,
        value_head_dim=3,
        key_value_lora_rank=4,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
    )


def make_layer(block=None, head=None, mask_zero=False, **kwargs):
    embedding = keras.layers.Embedding(VOCABULARY_SIZE, DIM, mask_zero=mask_zero, name="tokens")
    head = keras.layers.Dense(VOCABULARY_SIZE, use_bias=False) if head is None else head
    return MultiTokenPrediction(SwiGLU(5) if block is None else block, embedding, head, **kwargs)


def modules_of(layer):
    """The weights of each module, and its block, for the reference."""
    modules = []
    for index in range(layer.depth):
        block = layer.blocks[index]
        kernels = [(to_numpy(part.kernel), 0.0) for part in (block.gate, block.up, block.down)]
        modules.append(
            (
                to_numpy(layer.hidden_norms[index].scale),
                to_numpy(layer.embedding_norms[index].scale),
                to_numpy(layer.projections[index].kernel),
                lambda x, kernels=kernels: swiglu(x, *kernels),
            )
        )
    return modules


def reference(layer, hidden, tokens):
    """The hidden states of each module, by sequence, each as long as there are tokens."""
    table = to_numpy(layer.token_embedding.embeddings)
    return [
        multi_token_prediction.predict(row, ids, table, modules_of(layer), layer.epsilon)
        for row, ids in zip(hidden, tokens, strict=True)
    ]


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(return_logits):
    keras_config = keras.saving.serialize_keras_object
    init_kwargs = {
        "block": keras_config(SwiGLU(5)),
        "token_embedding": keras_config(keras.layers.Embedding(4, DIM, name="tokens")),
        "output_head": keras_config(keras.layers.Dense(4, name="head")),
        "depth": 2 if return_logits else 1,  # Half precision loses more with each module.
        "loss_weight": 0.5,
        "return_logits": return_logits,
    }
    shapes = {"inputs": (2, 4, DIM), "token_ids": (2, 4)}
    dtypes = {"inputs": "float32", "token_ids": "int32"}
    case = LayerTestCase()
    if not return_logits:
        case.run_layer_test(MultiTokenPrediction, init_kwargs, shapes, dtypes)
        return
    # The dtype of logits is that of the head, which keeps its own dtype policy.
    subject = case.make_subject(MultiTokenPrediction, init_kwargs, shapes, dtypes)
    case.check_config(subject)
    case.check_execution(subject)
    case.check_training(subject)


@settings(max_examples=4)
@given(length=st.integers(2, 6), batch_size=st.integers(1, 2), depth=st.integers(1, 3))
def test_logits_and_loss_are_those_of_the_formula(length, batch_size, depth):
    hidden, tokens = draw(batch_size, length)
    layer = make_layer(depth=depth, loss_weight=0.7)
    logits = layer(hidden, tokens, training=True)
    head = to_numpy(layer.output_head.kernel)
    expected = reference(layer, hidden, tokens)
    for k in range(min(depth, length - 1)):
        for row in range(batch_size):
            real = length - k - 1
            assert_close(to_numpy(logits[k])[row, :real], expected[row][k] @ head, 2e-5)
    loss = multi_token_prediction.mean_loss(expected, tokens, head, 0.7)
    assert_close(to_numpy(layer.losses[-1]), loss)


@pytest.mark.parametrize("return_logits", [True, False])
def test_a_chunked_head_gives_the_same_loss_and_gradients(return_logits, monkeypatch):
    added = []  # Where gradients are taken in JAX, a layer's `losses` stay empty.
    monkeypatch.setattr(MultiTokenPrediction, "add_loss", lambda layer, loss: added.append(loss))
    hidden, tokens = draw(2, 5)
    plain = make_layer(depth=2)
    chunked = make_layer(
        head=ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=3),
        depth=2,
        return_logits=return_logits,
    )
    results = []
    for layer in (plain, chunked):
        layer(hidden, tokens)
        layer.set_weights(plain.get_weights())

        def loss(inputs, layer=layer):
            layer(inputs, tokens, training=True)
            return added.pop()

        gradients = backend.current().compute.compute_gradients(
            loss, [hidden], layer.trainable_variables
        )
        results.append([to_numpy(loss(hidden)), *gradients[0], *gradients[1]])
    for plain_result, chunked_result in zip(*results, strict=True):
        assert_close(plain_result, chunked_result, 1e-5)
    last = chunked(hidden, tokens)[-1]
    assert last.shape[-1] == (VOCABULARY_SIZE if return_logits else DIM)


def test_hidden_states_are_those_that_the_head_turns_to_logits():
    hidden, tokens = draw(2, 4)
    layer = make_layer(depth=2)
    logits = layer(hidden, tokens)
    layer.return_logits = False
    for states, expected in zip(layer(hidden, tokens), logits, strict=True):
        assert_close(to_numpy(layer.output_head(states)), to_numpy(expected))


def test_a_module_sees_the_tokens_up_to_its_own_and_none_behind():
    hidden, tokens = draw(1, 7)
    layer = make_layer(make_attention(), depth=2)
    old_logits = [to_numpy(logits) for logits in layer(hidden, tokens)]
    position = 4
    for k, logits in enumerate(old_logits, 1):
        changed = tokens.copy()
        changed[0, position + k] = changed[0, position + k] % (VOCABULARY_SIZE - 1) + 1
        after = to_numpy(layer(hidden, changed)[k - 1])
        np.testing.assert_allclose(after[0, :position], logits[0, :position], atol=1e-6)
        assert np.abs(after[0, position] - logits[0, position]).max() > 1e-4
    disturbed = hidden.copy()
    disturbed[0, position] += 1
    for logits, after in zip(old_logits, layer(disturbed, tokens), strict=True):
        np.testing.assert_allclose(to_numpy(after)[0, :position], logits[0, :position], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("is_carried", [False, True])
def test_padding_changes_neither_logits_nor_loss(side, is_carried):
    hidden, tokens = draw(1, 5)
    layer = make_layer(make_attention(), mask_zero=True, depth=2)
    expected = [to_numpy(logits) for logits in layer(hidden, tokens, training=True)]
    expected_loss = to_numpy(layer.losses[-1])
    widths = ((0, 0), (2, 0) if side == "left" else (0, 2))
    padded, mask = np.pad(tokens, widths), np.pad(tokens > 0, widths)
    states = np.pad(hidden, (*widths, (0, 0)), constant_values=3.0)
    if is_carried:
        states = keras.layers.Masking(0.0)(np.where(mask[..., None], states, 0.0))
    logits = layer(states, padded, mask=None if is_carried else mask, training=True)
    start = 2 if side == "left" else 0
    for k, (padded_logits, unpadded_logits) in enumerate(zip(logits, expected, strict=True), 1):
        real = 5 - k
        assert_close(to_numpy(padded_logits)[:, start : start + real], unpadded_logits[:, :real])
    assert_close(to_numpy(layer.losses[-1]), expected_loss)


def make_model(depth=2):
    tokens, targets = (keras.Input((None,), dtype="int32", name=name) for name in ("x", "y"))
    embedding = keras.layers.Embedding(VOCABULARY_SIZE, DIM, name="body")
    head = ChunkedCrossEntropy(token_embedding=embedding, chunk_size=4, name="head")
    block = DeepSeekMoE(ExpertRouter(2, 1), intermediate_dim=3)
    hidden = keras.layers.Dense(DIM, activation="tanh", name="dense")(embedding(tokens))
    further = MultiTokenPrediction(
        block, embedding, head, depth=depth, return_logits=False, name="further"
    )(hidden, tokens)
    model = keras.Model([tokens, targets], [head(hidden, targets), *further])
    model.compile(keras.optimizers.SGD(0.5))
    return model


def test_a_plain_fit_trains_it_beside_the_model_and_a_saved_model_gives_the_same(tmp_path):
    model = make_model()
    tokens = draw(4, 6)[1]
    batch = [tokens, np.roll(tokens, -1, axis=1)]
    projections = model.get_layer("further").projections
    old_kernels = [to_numpy(projection.kernel) for projection in projections]
    losses = model.fit(batch, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for projection, kernel in zip(projections, old_kernels, strict=True):
        assert not np.allclose(to_numpy(projection.kernel), kernel)

    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    further = revived.get_layer("further")
    assert further.token_embedding is revived.get_layer("body")
    assert further.output_head is revived.get_layer("head")
    assert further.blocks[0].router is not further.blocks[1].router
    assert len(revived.weights) == len(model.weights)
    for revived_logits, expected_logits in zip(revived(batch), model(batch), strict=True):
        assert_close(to_numpy(revived_logits), to_numpy(expected_logits))


def test_no_loss_is_added_where_none_is_wanted():
    hidden, tokens = draw(1, 4)
    for kwargs, training in (({}, False), ({"loss_weight": 0.0}, True)):
        layer = make_layer(**kwargs)
        layer(hidden, tokens, training=training)
        assert layer.losses == []


def test_tokens_are_shifted_and_their_places_shown():
    tokens, mask = np.array([[5, 6, 7, 8]]), np.array([[True, True, True, False]])
    ids, exists = (to_numpy(tensor) for tensor in shift_tokens(tokens, None, 1))
    np.testing.assert_array_equal(ids[:, :3], [[6, 7, 8]])
    np.testing.assert_array_equal(exists, [[True, True, True, False]])
    np.testing.assert_array_equal(
        to_numpy(shift_tokens(tokens, mask, 2)[1]), [[True, False, False, False]]
    )
    assert not to_numpy(shift_tokens(tokens, None, 4)[1]).any()
    segments = np.array([[1, 1, 1, 2]])
    for mask_or_none in (None, np.ones((1, 4), bool)):
        _, exists = shift_tokens(tokens, mask_or_none, 2, segments)
        np.testing.assert_array_equal(to_numpy(exists), [[True, False, False, False]])


def test_the_variables_have_names_that_a_layout_map_can_match():
    layer = make_layer(depth=2, name="mtp")
    layer.build((None, None, DIM))
    paths = {weight.path for weight in layer.weights}
    assert {
        "mtp/hidden_norm_1/scale",
        "mtp/embedding_norm_2/scale",
        "mtp/projection_2/kernel",
        "mtp/block_1/gate/kernel",
        "mtp/block_2/gate/kernel",
        "mtp/tokens/embeddings",
    } <= paths


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    layer = make_layer(depth=2)
    logits = layer(*draw(*shape), training=True)
    assert [tuple(module_logits.shape) for module_logits in logits] == [
        (*shape, VOCABULARY_SIZE)
    ] * 2
    assert to_numpy(layer.losses[-1]) == 0.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 0}, "`depth` must be a positive integer, received 0"),
        ({"loss_weight": -0.1}, "`loss_weight` must be a finite number of at least 0"),
        ({"epsilon": float("nan")}, "`epsilon` must be a finite number of at least 0"),
        ({"block": "swiglu"}, "`block` must be a Keras layer, received 'swiglu'"),
        ({"head": "dense"}, "`output_head` must be a Keras layer, received 'dense'"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_layer(**kwargs)


def test_inputs_that_do_not_fit_are_refused():
    hidden, tokens = draw(2, 3)
    layer = make_layer()
    with pytest.raises(InvalidInputError, match=r"needs inputs of shape \(batch_size, length, dim"):
        layer.build((2, DIM))
    layer = make_layer()
    with pytest.raises(InvalidInputError, match=r"`token_ids` must have .* received \(2, 2\)"):
        layer(hidden, tokens[:, :2])
    with pytest.raises(InvalidInputError, match="`token_ids` must be integers, received float32"):
        layer(hidden, tokens.astype("float32"))
    with pytest.raises(InvalidInputError, match="`mask` must have one entry for each token"):
        layer(hidden, tokens, mask=np.ones((2, 4), bool))


def test_an_embedding_or_a_block_of_another_size_is_refused():
    hidden, tokens = draw(2, 3)
    narrow, head = keras.layers.Embedding(5, 4, name="narrow"), keras.layers.Dense(5)
    message = r"hidden states, \(2, 3, 6\); 'narrow' returns \(2, 3, 4\) for the token ids"
    with pytest.raises(InvalidInputError, match=message):
        MultiTokenPrediction(SwiGLU(3), narrow, head)(hidden, tokens)
    layer = MultiTokenPrediction(keras.layers.Dense(4), keras.layers.Embedding(5, DIM), head)
    with pytest.raises(InvalidInputError, match=r"'block_1', a Dense, returned .*\(2, 3, 4\)"):
        layer(hidden, tokens % 5)


@pytest.mark.parametrize("head_class", [keras.layers.Dense, ChunkedCrossEntropy])
def test_a_token_that_is_no_class_shows_in_the_loss_unless_it_is_hidden(head_class):
    hidden, tokens = draw(2, 6)
    tokens = np.minimum(tokens, VOCABULARY_SIZE - 3)
    tokens[0, 4] = VOCABULARY_SIZE - 1  # The embedding has it, the head has not.
    first_four = np.tile(np.arange(6) < 4, (2, 1))
    for mask, shows in ((None, True), (first_four, False)):
        layer = make_layer(head=head_class(VOCABULARY_SIZE - 2), return_logits=False)
        layer(hidden, tokens, mask=mask, training=True)
        assert np.isnan(to_numpy(layer.losses[0])) == shows


def test_with_an_output_norm_the_head_is_given_normed_states():
    hidden, tokens = draw(2, 5)
    layer = make_layer(depth=2, use_output_norm=True)
    states = make_layer(depth=2, use_output_norm=True, return_logits=False)
    outputs = layer(hidden, tokens, training=True)
    states(hidden, tokens)
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    states.set_weights(layer.get_weights())
    outputs = layer(hidden, tokens, training=True)
    chain = hidden
    for index in range(2):
        ids, _ = shift_tokens(tokens, None, index + 1)
        chain = layer.call_module(index, chain, ids)
        x = to_numpy(chain)
        normed = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + layer.epsilon)
        normed = normed * to_numpy(layer.output_norms[index].scale)
        assert_close(to_numpy(outputs[index]), normed @ to_numpy(layer.output_head.kernel), 1e-5)
        assert_close(to_numpy(layer.compute_logits(index, chain)), to_numpy(outputs[index]), 1e-5)
        assert_close(to_numpy(states(hidden, tokens)[index]), normed, 1e-5)
    revived = MultiTokenPrediction.from_config(layer.get_config())
    assert revived.use_output_norm


def test_a_module_goes_on_from_the_cache_of_its_block():
    hidden, tokens = draw(2, 5)
    layer = make_layer(make_attention())
    layer(hidden, tokens)
    whole = to_numpy(layer.call_module(0, hidden, tokens))
    cache = layer.blocks[0].make_cache(2, 5)
    for start, stop in ((0, 3), (3, 5)):
        piece, cache = layer.call_module(
            0, hidden[:, start:stop], tokens[:, start:stop], cache=cache, cache_index=start
        )
        assert_close(to_numpy(piece), whole[:, start:stop], 1e-5)
