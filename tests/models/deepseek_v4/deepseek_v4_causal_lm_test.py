import itertools

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.models import DeepSeekV4CausalLM
from keras_deepseek.testing import assert_close
from tests.oracles.cached_decoding import draw_mask
from tests.oracles.deepseek_v4_models import draw_tokens, make_config, perturb
from tests.oracles.small_language_model import generate_greedily

LENGTH = 19  # More than two windows of each kind, and more entries than the indexer chooses.


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def make_model(dtype=None, **kwargs):
    return perturb(DeepSeekV4CausalLM(make_config(**kwargs), dtype=dtype))


def call(model, inputs):
    return to_numpy(model(inputs))


def decode(model, inputs, pieces, max_length=LENGTH):
    """The logits of pieces that begin and end at given places, one after another."""
    cache, outputs = model.make_cache(len(inputs["token_ids"]), max_length), []
    for start, stop in itertools.pairwise(pieces):
        logits, hidden, cache = model.call_with_cache(
            inputs["token_ids"][:, start:stop], cache, start, inputs["padding_mask"][:, start:stop]
        )
        assert tuple(hidden.shape) == (len(inputs["token_ids"]), stop - start, 12)
        outputs.append(to_numpy(logits))
    return np.concatenate(outputs, axis=1)


@pytest.mark.parametrize(
    "pieces",
    [(0, LENGTH), (0, 7, 8, 9, 10, 11, 14, LENGTH), (0, 1, 2, 3, LENGTH)],
    ids=["whole", "prompt and tokens", "tokens and the rest"],
)
def test_decoding_with_a_cache_is_as_the_whole(pieces):
    model, inputs = make_model(), draw_tokens(2, LENGTH)
    assert_close(decode(model, inputs, pieces), call(model, inputs), 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_with_padding_is_as_the_whole_without(side):
    model, mask = make_model(), draw_mask(3, LENGTH, side)
    inputs = draw_tokens(3, LENGTH, mask=mask)
    decoded = decode(model, inputs, (0, 10, 11, 12, LENGTH))
    for row, real in enumerate(mask):
        alone = draw_tokens(1, int(real.sum()))
        alone["token_ids"][0] = inputs["token_ids"][row, real]
        assert_close(decoded[row, real], call(model, alone)[0], 1e-5)


@pytest.mark.parametrize("side", ["left", "right", "anywhere"])
def test_what_the_mask_hides_changes_nothing(side):
    model, mask = make_model(), draw_mask(3, LENGTH, side)
    inputs = draw_tokens(3, LENGTH, mask=mask)
    old_logits = call(model, inputs)
    inputs["token_ids"] = np.where(mask, inputs["token_ids"], 30 - inputs["token_ids"])
    assert_close(call(model, inputs)[mask], old_logits[mask], 1e-6)


def test_no_token_sees_one_behind_it():
    model, inputs = make_model(), draw_tokens(1, LENGTH)
    old_logits = call(model, inputs)
    inputs["token_ids"][0, 11] = (inputs["token_ids"][0, 11] + 1) % 31
    new_logits = call(model, inputs)
    np.testing.assert_allclose(new_logits[0, :11], old_logits[0, :11], atol=1e-5)
    assert np.abs(new_logits[0, 11:] - old_logits[0, 11:]).max(axis=-1).min() > 1e-4


def test_a_cache_does_not_go_back():
    model, inputs = make_model(), draw_tokens(1, 6)
    tokens = inputs["token_ids"]
    _, _, cache = model.call_with_cache(tokens, model.make_cache(1, 12), 0)
    expected, _, next_cache = model.call_with_cache(tokens[:, :2], cache, 6)
    with pytest.raises(InvalidInputError, match="`cache_index` goes backwards"):
        model.call_with_cache(tokens[:, :1], next_cache, 7)
    # What was returned before is as it was: guesses are taken back by going on from there.
    again, _, _ = model.call_with_cache(tokens[:, :2], cache, 6)
    np.testing.assert_array_equal(to_numpy(again), to_numpy(expected))


def test_prompts_of_different_lengths_are_generated_from_as_alone():
    model = make_model()
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]
    expected = [generate_greedily(model, prompt, 9) for prompt in prompts]
    assert model.generate(prompts, max_new_tokens=9) == expected


def test_drafts_are_refused_as_they_could_not_be_taken_back():
    model = make_model(num_prediction_layers=1)
    with pytest.raises(NotSupportedError, match="can't remove tokens"):
        model.generate([1, 2, 3], max_new_tokens=4, use_drafts=True)


def test_the_logits_carry_the_mask():
    inputs = draw_tokens(2, 6, mask=draw_mask(2, 6, "left"))
    model = make_model()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [model.evaluate(inputs, inputs["token_ids"], verbose=0)]
    other = np.where(inputs["padding_mask"] > 0, inputs["token_ids"], 7)
    losses.append(model.evaluate({**inputs, "token_ids": other}, other, verbose=0))
    assert_close(losses[0], losses[1], 1e-6)


def test_as_many_logits_are_made_as_were_asked_for():
    model, inputs = make_model(), draw_tokens(2, 6)
    logits, hidden, _ = model.call_with_cache(
        inputs["token_ids"], model.make_cache(2, 6), 0, num_logits=2
    )
    assert (tuple(logits.shape), tuple(hidden.shape)) == ((2, 2, 31), (2, 6, 12))
    assert_close(to_numpy(logits), call(model, inputs)[:, -2:], 1e-5)


def test_a_compiled_call_is_as_an_eager_one():
    model, inputs = make_model(), draw_tokens(2, LENGTH, mask=draw_mask(2, LENGTH, "left"))
    (logits,) = backend.current().inference.compile_inference(NamedModel(model))(inputs).values()
    real = inputs["padding_mask"] > 0
    assert_close(logits[real], call(model, inputs)[real], 1e-5)


@pytest.mark.parametrize(
    "sizes",
    [{}, {"tie_word_embeddings": True, "num_prediction_layers": 1}],
    ids=["plain", "further"],
)
def test_a_saved_model_is_the_same_after_loading(sizes, tmp_path):
    model, inputs = make_model(**sizes), draw_tokens(2, LENGTH)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(revived, DeepSeekV4CausalLM)
    assert revived.config == model.config
    assert_close(call(revived, inputs), call(model, inputs))
    for weight, expected in zip(revived.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), to_numpy(expected), weight.path)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_in_half_precision_the_logits_stay_in_float32_and_near(dtype):
    model, half = make_model(), make_model(dtype=dtype)
    half.set_weights(model.get_weights())
    inputs = draw_tokens(2, LENGTH)
    logits = half(inputs)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    expected = call(model, inputs)
    # Other experts are chosen where two are near, so not every token is.
    far = np.abs(to_numpy(logits) - expected).max(axis=-1) > 0.15 * np.abs(expected).max()
    assert far.mean() < 0.3


@pytest.mark.parametrize("num_prediction_layers", [0, 1])
def test_it_learns_a_sequence(num_prediction_layers):
    keras.utils.set_random_seed(0)
    config = make_config(num_prediction_layers=num_prediction_layers, initializer_range=0.2)
    model = DeepSeekV4CausalLM(config)
    model.compile(
        keras.optimizers.AdamW(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    tokens = (np.arange(4)[:, None] + 3 * np.arange(13)).astype("int32") % 31
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": np.ones((4, 12), "int32")}
    history = model.fit(inputs, tokens[:, 1:], epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    table = model.backbone.transformer_layers[0].feed_forward.router.token_to_experts
    assert keras.backend.standardize_dtype(table.dtype) == "int32"


def test_further_layers_change_the_loss_and_not_the_logits():
    further = make_model(num_prediction_layers=1)
    plain = DeepSeekV4CausalLM(make_config())
    plain.backbone.set_weights(further.backbone.get_weights())
    inputs = draw_tokens(2, 9)
    assert_close(call(plain, inputs), call(further, inputs))
    further(inputs, training=True)
    plain(inputs, training=True)
    assert len(further.losses) == len(plain.losses) + 1
