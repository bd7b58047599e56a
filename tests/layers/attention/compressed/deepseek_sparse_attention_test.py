import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.layers import DeepSeekSparseAttention, MultiHeadLatentAttention, RotaryEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode, decode_last_compiled
from tests.oracles.lightning_indexer import chosen_keys, index_scores
from tests.oracles.multi_head_latent_attention import multi_head_latent_attention
from tests.oracles.parity import check_case, named_weights, read_arguments, read_cases

GOLDEN = read_cases("deepseek_sparse_attention")
SIZES = {
    "num_heads": 2,
    "nope_head_dim": 3,
    "rope_head_dim": 2,
    "value_head_dim": 4,
    "key_value_lora_rank": 5,
    "rotary": RotaryEmbedding(use_interleaved_pairs=True),
    "use_causal_mask": True,
}
INDEXER = {"index_top_k": 3, "index_num_heads": 6, "index_head_dim": 4}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
YARN_ROTARY = RotaryEmbedding(use_interleaved_pairs=True, scaling=YARN)


def make_layer(**kwargs):
    keras.utils.set_random_seed(2)
    layer = DeepSeekSparseAttention(**{**SIZES, **INDEXER, **kwargs})
    layer.build((None, None, 6))
    return layer


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


def frequencies(layer):
    pairs = layer.rope_head_dim // 2
    return layer.rotary.max_wavelength ** -(np.arange(pairs) / pairs)


def numpy_weights(layer):
    return {name: keras.ops.convert_to_numpy(w) for name, w in named_weights(layer).items()}


def choose(layer, inputs, visible=None):
    """Returns scores, which keys each query chooses, and how clear the choice is."""
    weights = numpy_weights(layer)
    queries = np.asarray(inputs, "float64")
    if layer.query_lora_rank is not None:
        queries = queries @ weights["query_down/kernel"] + weights.get("query_down/bias", 0.0)
        mean_square = (queries**2).mean(axis=-1, keepdims=True)
        queries = queries / np.sqrt(mean_square + layer.epsilon) * weights["query_norm/scale"]
    indexer_weights = {
        k.removeprefix("indexer/"): w for k, w in weights.items() if k.startswith("indexer/")
    }
    scores = index_scores(
        inputs, queries, indexer_weights, frequencies(layer), epsilon=layer.epsilon
    )
    length = inputs.shape[1]
    rule = np.tri(length, dtype=bool) if layer.use_causal_mask else np.ones((length, length), bool)
    visible = rule[None] if visible is None else rule[None] & visible
    chosen, gap = chosen_keys(scores, visible, layer.index_top_k)
    return scores, chosen, gap


def attend(layer, inputs, chosen, collected=None):
    return multi_head_latent_attention(
        inputs,
        numpy_weights(layer),
        frequencies(layer),
        (layer.nope_head_dim + layer.rope_head_dim) ** -0.5,
        epsilon=layer.epsilon,
        causal=layer.use_causal_mask,
        interleaved=layer.rotary.use_interleaved_pairs,
        mask=chosen,
        collected=collected,
    )


def oracle(layer, inputs, visible=None):
    _, chosen, gap = choose(layer, inputs, visible)
    assert gap > 1e-5, "Keys so near one another that rounding may choose: draw other inputs."
    return attend(layer, inputs, chosen)


def record_choices(layer):
    """Returns a list that fills with the keys that each call of an eager layer chooses."""
    choices, choose_keys = [], layer.indexer.choose_keys

    def record(scores, mask, num_keys):
        results = choose_keys(scores, mask, num_keys)
        indices, _, is_chosen = map(keras.ops.convert_to_numpy, results)
        chosen = np.zeros(scores.shape, bool)
        np.put_along_axis(chosen, indices, is_chosen, axis=-1)
        assert (chosen.sum(axis=-1) == is_chosen.sum(axis=-1)).all()  # None of them twice.
        choices.append(chosen)
        return results

    layer.indexer.choose_keys = record
    return choices


class Routine(LayerTestCase):
    def check_half_precision(self, subject):
        """As everywhere, but with the keys that are best in half precision."""
        full = subject.make_layer(dtype="float32")
        for dtype in ("bfloat16", "float16"):
            layer = subject.make_layer(dtype=f"mixed_{dtype}")
            layer.set_weights(full.get_weights())
            choices = record_choices(layer)
            outputs = layer(subject.inputs)
            assert keras.backend.standardize_dtype(outputs.dtype) == dtype
            received = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32"))
            assert_close(received, attend(full, subject.inputs, choices[0]), dtype)


@pytest.mark.nightly
def test_it_passes_the_layer_routine():
    arguments = {"query_lora_rank": 4, "indexer_loss_weight": 0.5, "use_bias": True}
    arguments = {**SIZES, **INDEXER, "kernel_initializer": "he_normal", **arguments}
    Routine().run_layer_test(DeepSeekSparseAttention, arguments, (2, 5, 6), oracle=oracle)


def test_it_passes_some_of_the_routine_without_a_causal_mask_and_in_chunks():
    arguments = {"use_causal_mask": False, "rope_head_dim": 4, "chunk_size": 2}
    case = Routine()
    subject = case.make_subject(
        DeepSeekSparseAttention, {**SIZES, **INDEXER, **arguments}, (2, 5, 6)
    )
    case.check_execution(subject, oracle)
    case.check_masking(subject)


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_gradients_and_chosen_keys_are_those_of_transformers(name):
    case = GOLDEN[name]
    layer = DeepSeekSparseAttention(**read_arguments(case))
    check_case(layer, case)
    layer.chunk_size = 99
    choices = record_choices(layer)
    layer(case["inputs"], mask=case["mask"])
    for chosen in choices:  # None where all keys are.
        np.testing.assert_array_equal(chosen, case["chosen"])
    assert len(choices) == (layer.index_top_k < case["inputs"].shape[1])


@settings(max_examples=2)
@given(
    batch_size=st.integers(1, 2),
    length=st.integers(1, 6),
    index_top_k=st.integers(1, 4),
    chunk_size=st.integers(1, 7),
    query_lora_rank=st.none() | st.just(4),
)
def test_it_computes_the_formula_at_any_shape(batch_size, length, **kwargs):
    layer, inputs = make_layer(**kwargs), draw(batch_size, length, 6)
    _, chosen, gap = choose(layer, inputs)
    if gap > 1e-5:
        assert_close(run(layer, inputs), attend(layer, inputs, chosen))


@pytest.mark.parametrize(("num_keys", "gathers"), [(9, False), (5, True)])
def test_over_no_more_tokens_than_keys_it_is_the_dense_layer(num_keys, gathers):
    kwargs = {"query_lora_rank": 4, "rotary": YARN_ROTARY}
    layer = make_layer(index_top_k=num_keys, indexer_loss_weight=1.0, **kwargs)
    dense = MultiHeadLatentAttention(**{**SIZES, **kwargs})
    dense.build((None, None, 6))
    sparse_weights = named_weights(layer)
    for path, weight in named_weights(dense).items():
        weight.assign(sparse_weights[path])
    inputs, mask = draw(2, 5, 6), np.array([[True] * 5, [False] * 2 + [True] * 3])
    # Only what the indexer learns from needs a choice among as many keys.
    outputs = run(layer, inputs, mask=mask, training=gathers)
    assert_close(outputs[mask], run(dense, inputs, mask=mask)[mask])


def test_no_token_sees_what_comes_after_it():
    layer, inputs = make_layer(), draw(2, 5, 6)
    changed = inputs.copy()
    changed[:, 4:] += 1.0
    outputs, changed_outputs = run(layer, inputs), run(layer, changed)
    np.testing.assert_array_equal(outputs[:, :4], changed_outputs[:, :4])
    assert np.abs(outputs[:, 4:] - changed_outputs[:, 4:]).min() > 0


def test_keys_of_equal_scores_are_chosen_alike_with_a_cache():
    """With one head, most scores are zero."""
    layer = make_layer(index_num_heads=1, index_top_k=8)
    inputs = np.random.default_rng(0).normal(size=(1, 40, 6)).astype("float32")
    outputs = keras.ops.convert_to_numpy(layer(inputs))
    cached, _ = layer(inputs, cache=layer.make_cache(1, 60), cache_index=0)
    assert_close(keras.ops.convert_to_numpy(cached), outputs)


@pytest.mark.each_backend
def test_cached_decoding_is_the_full_forward():
    layer, inputs = make_layer(query_lora_rank=4, rotary=YARN_ROTARY), draw(2, 7, 6)
    assert tuple(layer.make_cache(2, 9)["index_key"].shape) == (2, 9, 4)
    assert_close(decode(layer, inputs, (0, 5, 6, 7), max_length=9), run(layer, inputs))


def test_sequences_of_different_lengths_decode_as_each_alone():
    layer, inputs = make_layer(query_lora_rank=4), draw(2, 6, 6)
    real = np.ones((2, 6), bool)
    real[0, :1] = real[1, 4:5] = False  # Padding on the left, and on the right.
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype("int32")
    outputs = decode(layer, inputs, (0, 5, 6), max_length=9, mask=real, positions=positions)
    for row in range(2):
        alone = run(layer, inputs[row : row + 1, real[row]])
        assert_close(outputs[row : row + 1, real[row]], alone)


def test_a_step_of_decoding_works_in_a_compiled_model():
    layer, inputs = make_layer(query_lora_rank=4), draw(2, 6, 6)
    outputs = decode_last_compiled(layer, inputs, 5, 9)
    assert_close(outputs, run(layer, inputs)[:, 5:])


def test_a_model_takes_and_learns_from_sequences_of_any_length():
    layer, inputs = make_layer(indexer_loss_weight=0.1, chunk_size=3), keras.Input((None, 6))
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    old_weights = numpy_weights(layer)
    for length in (2, 5):
        batch = draw(2, length, 6)
        assert_close(model.predict(batch, verbose=0), run(layer, batch))
    history = model.fit(batch, batch, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    for path, weight in numpy_weights(layer).items():
        assert np.any(weight != old_weights[path]), path


def test_a_graph_that_does_not_know_the_length_takes_any():
    layer, inputs = make_layer(), keras.Input((None, 6))
    model = NamedModel(keras.Model(inputs, layer(inputs)))
    infer = backend.current().inference.compile_inference(model)
    (name,) = (spec.name for spec in model.signature.inputs)
    for length in (2, 5):  # Below the number of keys, and above.
        batch = draw(2, length, 6)
        (outputs,) = infer({name: batch}).values()
        assert_close(outputs, run(layer, batch))


def test_an_attention_mask_keeps_documents_apart():
    layer, inputs = make_layer(chunk_size=2), draw(2, 5, 6)
    document = np.array([[0, 0, 0, 0, 1]] * 2)
    mask = document[:, :, None] == document[:, None, :]
    outputs = run(layer, inputs, attention_mask=mask)
    assert_close(outputs, oracle(layer, inputs, mask))
    assert_close(run(layer, inputs, attention_mask=mask[:1]), outputs)
    hiding = np.zeros((2, 1, 5), bool)
    hiding[..., 0] = True
    assert_close(
        run(layer, inputs, attention_mask=hiding), attend(layer, inputs, np.tile(hiding, (1, 5, 1)))
    )


def test_where_all_is_hidden_outputs_and_gradients_are_finite(monkeypatch):
    added = record_losses(monkeypatch)
    layer = make_layer(indexer_loss_weight=1.0)
    mask = np.array([[False] * 5, [False] * 4 + [True]])

    def total(inputs):
        return keras.ops.sum(layer(inputs, mask=mask, training=True)) + added.pop()

    gradients = backend.current().compute.compute_gradients(
        total, [draw(2, 5, 6)], list(layer.trainable_variables)
    )
    assert all(np.isfinite(array).all() for part in gradients for array in part)


def record_losses(monkeypatch):
    """Returns the list that losses are added to: in gradients of JAX, `losses` stay empty."""
    added = []
    monkeypatch.setattr(DeepSeekSparseAttention, "add_loss", lambda _, loss: added.append(loss))
    return added


def test_the_indexer_learns_where_the_heads_look_and_nothing_else_does(monkeypatch):
    layer = make_layer(query_lora_rank=4, indexer_loss_weight=0.5, chunk_size=2, use_bias=True)
    inputs, mask = draw(2, 5, 6), np.array([[True] * 5, [True] * 4 + [False]])
    scores, chosen, _ = choose(layer, inputs, mask[:, None, :])
    heads = []
    attend(layer, inputs, chosen, heads)
    target = np.mean(heads, axis=0)
    exponents = np.where(chosen, np.exp(scores), 0.0)
    shares = np.where(chosen, exponents / exponents.sum(axis=-1, keepdims=True), 1.0)
    terms = target * np.log(np.where(chosen, target, 1.0) / shares)
    expected = 0.5 * terms.sum(axis=-1)[mask].mean()

    layer(inputs, mask=mask)
    assert layer.losses == []  # Only in training.
    layer(inputs, mask=mask, training=True)
    (loss,) = layer.losses
    assert_close(keras.ops.convert_to_numpy(loss), expected)

    added = record_losses(monkeypatch)

    def total(inputs):
        layer(inputs, mask=mask, training=True)
        return added.pop()

    paths = [path for path in named_weights(layer) if "seed" not in path]
    variables = [named_weights(layer)[path] for path in paths]
    (by_input,), by_weight = backend.current().compute.compute_gradients(total, [inputs], variables)
    assert not by_input.any()
    for path, gradient in zip(paths, by_weight, strict=True):
        assert gradient.any() == path.startswith("indexer/"), path


def test_the_loss_has_the_gradient_of_finite_differences(monkeypatch):
    added = record_losses(monkeypatch)
    layer = make_layer(indexer_loss_weight=1.0)
    inputs = draw(2, 5, 6)
    kernel = named_weights(layer)["indexer/head_weight/kernel"]

    def total():
        layer(inputs, training=True)
        return added.pop()

    _, (gradient,) = backend.current().compute.compute_gradients(total, [], [kernel])
    start, step = keras.ops.convert_to_numpy(kernel), 1e-2 * draw(*kernel.shape)
    ends = []
    for sign in (1, -1):
        kernel.assign(start + sign * step)
        ends.append(float(keras.ops.convert_to_numpy(total())))
    assert_close(np.sum(gradient * step), (ends[0] - ends[1]) / 2, 1e-2)


def test_without_its_loss_a_fit_leaves_the_indexer_as_it_is():
    layer, inputs = make_layer(), keras.Input((5, 6))
    old_weights = numpy_weights(layer)
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    model.fit(draw(2, 5, 6), draw(2, 5, 6), verbose=0)
    for path, weight in numpy_weights(layer).items():
        assert np.any(weight != old_weights[path]) != path.startswith("indexer/"), path


def test_dropout_acts_in_training_alone():
    layer, inputs = make_layer(dropout=0.9, seed=1, chunk_size=2), draw(2, 5, 6)
    assert_close(run(layer, inputs), oracle(layer, inputs))
    assert np.abs(run(layer, inputs, training=True) - run(layer, inputs)).max() > 1e-3


@pytest.mark.nightly
def test_quantized_kernels_are_used_as_their_own_layers_use_them():
    layer, inputs = make_layer(index_top_k=5, indexer_loss_weight=1.0), draw(2, 5, 6)
    for up in (layer.key_up, layer.value_up):
        up.quantize("int8")
    dense = run(layer, inputs)  # Expanded by the layers themselves.
    assert_close(run(layer, inputs, training=True), dense, 2e-2)


@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6), (1, 1, 6)])
def test_an_empty_batch_and_a_sequence_of_one_work(shape):
    assert run(make_layer(), draw(*shape)).shape == shape
    assert run(make_layer(indexer_loss_weight=1.0), draw(*shape), training=True).shape == shape


def test_the_variables_have_names_that_a_layout_map_can_match():
    assert sorted(p for p in named_weights(make_layer(query_lora_rank=4)) if "index" in p) == [
        "indexer/head_weight/kernel",
        "indexer/key/kernel",
        "indexer/key_norm/beta",
        "indexer/key_norm/gamma",
        "indexer/query_up/kernel",
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"index_top_k": 0}, "`index_top_k` must be a positive integer, received 0"),
        ({"index_num_heads": 1.5}, "`index_num_heads` must be a positive integer"),
        ({"index_head_dim": 1}, "`index_head_dim` must not be less than `rope_head_dim`"),
        ({"indexer_loss_weight": -1.0}, "`indexer_loss_weight` must be a finite number above 0"),
        ({"chunk_size": 0}, "`chunk_size` must be a positive integer"),
        ({"value_head_dim": 0}, "`value_head_dim` must be a positive integer"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(kwargs, message):
    with pytest.raises(InvalidInputError, match=message):
        make_layer(**kwargs)


def test_what_the_dense_layer_refuses_is_refused():
    layer, inputs = make_layer(), draw(2, 5, 6)
    with pytest.raises(InvalidInputError, match=r"`attention_mask` must .* \(2, 5, 5\), received"):
        layer(inputs, attention_mask=np.ones((2, 4, 5), bool))
