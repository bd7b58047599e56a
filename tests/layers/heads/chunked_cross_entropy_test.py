import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import ChunkedCrossEntropy
from keras_deepseek.layers.heads.token_losses import compute_token_losses
from keras_deepseek.testing import LayerTestCase, assert_close
from keras_deepseek.training import Trainer
from tests.oracles import cross_entropy

VOCABULARY_SIZE = 11
DTYPES = {"inputs": "float32", "targets": "int32"}


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*shape, dim)).astype("float32")
    return hidden, rng.integers(0, VOCABULARY_SIZE, shape).astype("int32")


def embedding_config(dim=6):
    """A config makes an embedding anew for each layer, as the routine needs."""
    return keras.saving.serialize_keras_object(
        keras.layers.Embedding(VOCABULARY_SIZE, dim, name="tokens")
    )


def oracle(layer, inputs):
    if isinstance(inputs, dict):
        logits = oracle(layer, inputs["inputs"])
        return cross_entropy.token_losses(
            logits, inputs["targets"], layer.ignore_class, layer.z_loss
        )
    kernel, *bias = (to_numpy(part) for part in layer.projection())
    return cross_entropy.project(inputs, kernel, *bias, soft_cap=layer.soft_cap)


@pytest.mark.parametrize(
    ("init_kwargs", "shape"),
    [
        ({"vocabulary_size": 11, "chunk_size": 4}, (2, 3)),
        (
            {
                "token_embedding": embedding_config(),
                "chunk_size": 3,
                "ignore_class": 1,
                "z_loss": 0.1,
                "soft_cap": 1.5,
                "loss_weight": 0.5,
                "use_bias": True,
            },
            (2, 2, 2),
        ),
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs, shape):
    shapes = {"inputs": (*shape, 6), "targets": shape}
    LayerTestCase().run_layer_test(ChunkedCrossEntropy, init_kwargs, shapes, DTYPES, oracle=oracle)


def test_without_targets_it_passes_the_layer_routine_as_logits():
    LayerTestCase().run_layer_test(
        ChunkedCrossEntropy,
        {"vocabulary_size": 7, "use_bias": True, "soft_cap": 2.0},
        (2, 3, 5),
        oracle=oracle,
    )


@settings(max_examples=6)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    chunk_size=st.integers(1, 9),
    z_loss=st.sampled_from([0.0, 0.01]),
)
def test_it_computes_the_formula_at_any_shape(shape, chunk_size, z_loss):
    hidden, targets = draw(*shape)
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=chunk_size, z_loss=z_loss)
    losses = to_numpy(head(hidden, targets))
    expected = oracle(head, {"inputs": hidden, "targets": targets})
    assert_close(losses, expected)
    assert_close(to_numpy(head.losses[-1]), expected.mean())


def compare_with_keras(head, logits_head, hidden, targets, sample_weight=None, **loss_kwargs):
    """Asserts that loss and gradients are those of Keras's loss on the logits of all tokens."""
    head.build(hidden.shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss_kwargs)

    def ours(hidden):
        losses = head.compute_losses(hidden, targets)
        weights = head.weigh_tokens(hidden, targets, sample_weight=sample_weight)
        return keras.ops.sum(losses * weights) / keras.ops.sum(weights)

    def theirs(hidden):
        return loss(targets, logits_head(hidden), sample_weight=sample_weight)

    variables = [*head.trainable_variables]
    compute = backend.current().compute.compute_gradients
    by_input, by_variable = compute(ours, [hidden], variables)
    expected_input, expected_variable = compute(theirs, [hidden], variables)
    assert_close(to_numpy(ours(hidden)), to_numpy(theirs(hidden)))
    pairs = zip([*by_input, *by_variable], [*expected_input, *expected_variable], strict=True)
    for gradient, expected in pairs:
        assert_close(gradient, expected, 1e-5)


@pytest.mark.each_backend
def test_loss_and_gradients_are_those_of_keras_on_all_logits():
    hidden, targets = draw(3, 5)
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=4, use_bias=True)
    compare_with_keras(head, head, hidden, targets)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_all_options_and_a_scaled_loss_have_the_gradient_of_all_logits(dtype):
    hidden, targets = draw(3, 5)
    options = {"z_loss": 0.1, "soft_cap": 1.5, "use_bias": True, "dtype": dtype}
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=4, **options)
    head.build(hidden.shape)
    scales = np.random.default_rng(1).uniform(0, 1024, (3, 5)).astype("float32")

    def total(losses):
        return keras.ops.sum(keras.ops.multiply(losses, scales))

    by_all, by_chunks = (
        backend.current().compute.compute_gradients(function, [hidden], head.trainable_variables)
        for function in (
            lambda x: total(compute_token_losses(head(x), targets, z_loss=0.1)),
            lambda x: total(head.compute_losses(x, targets)),
        )
    )
    tolerance = {"float32": 1e-5, "mixed_bfloat16": 2e-2, "mixed_float16": 2e-3}[dtype]
    pairs = zip(by_chunks[0] + by_chunks[1], by_all[0] + by_all[1], strict=True)
    for gradient, expected in pairs:
        assert_close(gradient, expected, tolerance)


def test_the_layer_may_be_computed_again_as_in_a_remat_scope():
    hidden, targets = draw(3, 5)
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=4)
    head.build(hidden.shape)

    def total(hidden):
        return keras.ops.sum(head.compute_losses(hidden, keras.ops.convert_to_tensor(targets)))

    compute, variables = backend.current().compute.compute_gradients, [head.kernel]
    (gradient,), _ = compute(keras.remat(total), [hidden], [])
    (expected,), _ = compute(total, [hidden], variables)
    assert_close(gradient, expected)


def test_an_ignored_class_is_that_of_keras():
    hidden, targets = draw(3, 5)
    targets[:, ::2] = -100
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=4, ignore_class=-100)
    compare_with_keras(head, head, hidden, targets, ignore_class=-100)
    assert not to_numpy(head(hidden, targets))[:, ::2].any()


def test_sample_weights_are_those_of_keras():
    hidden, targets = draw(3, 5)
    weights = np.random.default_rng(1).uniform(0, 1, (3, 5)).astype("float32")
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=4)
    compare_with_keras(head, head, hidden, targets, weights, reduction="mean_with_sample_weight")


def test_a_shared_embedding_gets_the_gradient_of_both_uses():
    embedding = keras.layers.Embedding(VOCABULARY_SIZE, 6)
    tokens, targets = draw(2, 4)[1], draw(2, 4, seed=1)[1]
    head = ChunkedCrossEntropy(token_embedding=embedding, chunk_size=3)
    head(embedding(tokens), targets)

    def total(head_of):
        hidden = keras.ops.tanh(embedding(tokens))
        return keras.ops.mean(head_of(hidden))

    def full(hidden):
        logits = hidden @ keras.ops.transpose(keras.ops.convert_to_tensor(embedding.embeddings))
        return keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)

    compute, variables = backend.current().compute.compute_gradients, [embedding.embeddings]
    _, (gradient,) = compute(
        lambda: total(lambda h: head.compute_losses(h, targets)), [], variables
    )
    _, (expected,) = compute(lambda: total(full), [], variables)
    assert_close(gradient, expected, 1e-5)


def make_models(head):
    """A body and its head: a model to train, and one that predicts, of the same weights."""
    tokens, targets = (keras.Input((None,), dtype="int32", name=name) for name in ("x", "y"))
    hidden = keras.layers.Embedding(VOCABULARY_SIZE, 6, name="body")(tokens)
    return keras.Model([tokens, targets], head(hidden, targets)), keras.Model(tokens, head(hidden))


@pytest.mark.parametrize(
    # TensorFlow knows the number of chunks with XLA alone; JAX would take long without `jit`.
    "jit_compile",
    ["auto", False] if keras.backend.backend() == "tensorflow" else ["auto"],
)
def test_a_plain_fit_trains_as_with_a_dense_layer_and_a_loss(jit_compile):
    tokens, targets = draw(6, 5)[1], draw(6, 5, seed=1)[1]
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=4)
    training_model, model = make_models(head)
    inputs = keras.Input((None,), dtype="int32")
    dense = keras.layers.Dense(VOCABULARY_SIZE, use_bias=False)
    other = keras.Model(inputs, dense(keras.layers.Embedding(VOCABULARY_SIZE, 6)(inputs)))
    other.set_weights(model.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    other.compile(keras.optimizers.SGD(0.5), loss=loss, jit_compile=jit_compile)
    training_model.compile(keras.optimizers.SGD(0.5), jit_compile=jit_compile)
    fit = {"batch_size": 4, "epochs": 2, "verbose": 0, "shuffle": False}  # The last batch has 2.
    ours = training_model.fit([tokens, targets], **fit).history["loss"]
    theirs = other.fit(tokens, targets, **fit).history["loss"]
    assert ours[1] < ours[0]
    assert_close(ours, theirs)
    for weight, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        assert_close(weight, expected)
    evaluated = training_model.evaluate([tokens, targets], batch_size=6, verbose=0)
    assert_close(evaluated, other.evaluate(tokens, targets, batch_size=6, verbose=0))


def test_the_trainer_takes_its_loss_for_a_loss():
    training_model, _ = make_models(ChunkedCrossEntropy(VOCABULARY_SIZE))
    history = Trainer(training_model, optimizer="sgd").fit([draw(4, 5)[1]] * 2, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


def test_a_loss_weight_of_zero_adds_none():
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, loss_weight=0.0)
    head(*draw(2, 3))
    assert head.losses == []


@pytest.mark.parametrize("is_carried", [False, True])
def test_what_the_mask_hides_counts_for_nothing(is_carried):
    tokens, targets = np.array([[1, 2, 3], [4, 0, 0]]), draw(2, 3)[1]
    embedding = keras.layers.Embedding(VOCABULARY_SIZE, 6, mask_zero=is_carried)
    head, hidden = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=2), embedding(tokens)
    losses = to_numpy(head(hidden, targets, mask=None if is_carried else tokens > 0))
    expected = oracle(head, {"inputs": to_numpy(hidden), "targets": targets}) * (tokens > 0)
    assert_close(losses, expected)
    assert_close(to_numpy(head.losses[-1]), expected.sum() / 4)


def test_a_saved_model_shares_its_embedding_still(tmp_path):
    embedding = keras.layers.Embedding(VOCABULARY_SIZE, 6, name="body")
    tokens, targets = (keras.Input((None,), dtype="int32") for _ in range(2))
    head = ChunkedCrossEntropy(token_embedding=embedding)
    model = keras.Model([tokens, targets], head(embedding(tokens), targets))
    model.compile("sgd")
    model.fit([draw(2, 3)[1]] * 2, verbose=0)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert len(revived.weights) == len(model.weights) == 1
    assert revived.get_layer(head.name).token_embedding is revived.get_layer("body")
    batch = [draw(2, 3)[1]] * 2
    assert_close(to_numpy(revived(batch)), to_numpy(model(batch)))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    head = ChunkedCrossEntropy(VOCABULARY_SIZE)
    assert tuple(head(*draw(*shape)).shape) == shape
    assert np.isfinite(to_numpy(head.losses[-1]))


def test_the_mean_is_in_float32_under_mixed_precision():
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, dtype="mixed_bfloat16")
    head(*draw(2, 3))
    assert keras.backend.standardize_dtype(head.losses[-1].dtype) == "float32"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chunk_size": 0}, "`chunk_size` must be a positive integer, received 0"),
        ({"soft_cap": 0.0}, "`soft_cap` must be a finite number above 0, received 0.0"),
        ({"z_loss": -1.0}, "`z_loss` must be a finite number of at least 0, received -1.0"),
        ({"loss_weight": "1"}, "`loss_weight` must be a finite number of at least 0"),
        ({"loss_weight": True}, "`loss_weight` must be a finite number of at least 0"),
        ({"ignore_class": 0.5}, "`ignore_class` must be an integer"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        ChunkedCrossEntropy(VOCABULARY_SIZE, **kwargs)


def test_targets_that_do_not_fit_are_refused():
    hidden, targets = draw(2, 3)
    head = ChunkedCrossEntropy(VOCABULARY_SIZE)
    with pytest.raises(InvalidInputError, match=r"`targets` must have .* \(2, 3\), received \(2,"):
        head(hidden, targets[:, :2])
    with pytest.raises(InvalidInputError, match="`targets` must be integers, received float32"):
        head(hidden, targets.astype("float32"))
    with pytest.raises(InvalidInputError, match=r"`mask` must have one entry for each token"):
        head(hidden, targets, mask=np.ones((2, 4), bool))
    with pytest.raises(InvalidInputError, match="Create its input with"):
        head(keras.Input((3, 6)), keras.Input((3,)))


@pytest.mark.parametrize("target", [-1, -100, VOCABULARY_SIZE, 500])
def test_a_target_that_is_no_class_shows(target):
    head = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=2)
    inputs = np.random.default_rng(0).normal(size=(1, 3, 4)).astype("float32")
    targets = np.array([[1, target, 0]])
    losses = keras.ops.convert_to_numpy(head(inputs, targets))
    assert np.isnan(losses).tolist() == [[False, True, False]]
    assert np.isnan(keras.ops.convert_to_numpy(head.losses[0]))
    hidden = ChunkedCrossEntropy(VOCABULARY_SIZE, chunk_size=2)
    hidden(inputs, targets, mask=np.array([[True, False, True]]))
    assert np.isfinite(keras.ops.convert_to_numpy(hidden.losses[0]))
