import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer
from tests.oracles import language_models
from tests.oracles.language_models import to_numpy


def make_model(**overrides):
    config = DeepSeekV3Config.from_preset("tiny", vocabulary_size=31, hidden_dim=24, **overrides)
    return language_models.perturb(DeepSeekV3CausalLM(config))


@pytest.fixture(scope="module")
def model():
    return make_model(num_prediction_layers=1)


def test_tied_logits_are_made_by_the_embedding():
    model = make_model(tie_word_embeddings=True)
    batch = language_models.draw_batch(31)
    hidden = to_numpy(model.backbone(batch))
    table = to_numpy(model.backbone.token_embedding.embeddings)
    assert_close(to_numpy(model(batch)), hidden @ table.T, 1e-5)


def test_the_modules_for_further_tokens_change_no_logits(model):
    batch = language_models.draw_batch(31)
    alone = make_model()
    entries = {name: e for e in model.checkpoint_entries() for name in e.tensors}
    for entry in alone.checkpoint_entries():
        for variable, source in zip(
            entry.variables, entries[entry.tensors[0]].variables, strict=True
        ):
            variable.assign(source)
    assert_close(to_numpy(alone(batch)), to_numpy(model(batch)))
    assert len(model.weights) > len(alone.weights)


def test_the_loss_of_further_tokens_is_added_in_training_alone(model):
    batch = language_models.draw_batch(31, side="right")
    targets = np.roll(batch["token_ids"], -1, axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    plain = model.evaluate(batch, targets, verbose=0)
    model.reset_metrics()  # Else Keras 3.13 returns the mean of both.
    trained = model.train_on_batch(batch, targets)
    hidden = model.backbone(batch)
    tokens, mask = batch["token_ids"], batch["padding_mask"] > 0
    model.multi_token_prediction(hidden, tokens, mask=mask, training=True)
    (added,) = model.multi_token_prediction.losses
    assert to_numpy(added) > 0.1
    assert_close(trained - plain, to_numpy(added), 1e-4)


def test_a_loss_of_keras_leaves_padding_out(model):
    batch = language_models.draw_batch(31, side="right")
    targets = np.roll(batch["token_ids"], -1, axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    logits = language_models.real(model(batch), batch)
    labels = targets[batch["padding_mask"] > 0]
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
    assert_close(model.evaluate(batch, targets, verbose=0), expected.mean(), 1e-4)


def test_a_module_decodes_by_its_own_cache(model):
    batch = language_models.draw_batch(31, side="right")
    prediction, hidden = model.multi_token_prediction, model.backbone(batch)
    ids = np.roll(batch["token_ids"], -1, axis=1)
    whole = prediction.call_module(0, hidden, ids)
    expected = to_numpy(prediction.compute_logits(0, whole))
    cache = prediction.blocks[0].make_cache(2, 7)
    for start, stop in ((0, 5), (5, 7)):
        states, cache = prediction.call_module(
            0, hidden[:, start:stop], ids[:, start:stop], cache=cache, cache_index=start
        )
        logits = to_numpy(prediction.compute_logits(0, states))
        assert_close(logits, expected[:, start:stop], 2e-5)


def test_it_is_trained_by_trainer(model):
    batch = language_models.draw_batch(31, side="right")
    model.compile(
        keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    targets = np.roll(batch["token_ids"], -1, axis=1)
    history = Trainer(model).fit(batch, targets, epochs=2, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))


def test_a_call_with_a_cache_refuses_what_does_not_fit(model):
    tokens = np.array([[1, 2]])
    with pytest.raises(InvalidInputError, match="one entry for each of the 2 layers, received 1"):
        model.call_with_cache(tokens, model.make_cache(1, 4)[:1], 0)
    with pytest.raises(InvalidInputError, match="`num_logits` must be a positive integer"):
        model.call_with_cache(tokens, model.make_cache(1, 4), 0, num_logits=0)
    with pytest.raises(InvalidInputError, match="`token_ids` must be integers"):
        model.call_with_cache(tokens + 0.7, model.make_cache(1, 4), 0)


def test_a_preset_is_read_as_it_was_written(model, tmp_path):
    model.save_to_preset(tmp_path / "preset", verbose=False)
    batch = language_models.draw_batch(31)
    for count in (0, 1):
        read = DeepSeekV3CausalLM.from_preset(
            tmp_path / "preset", num_prediction_layers=count, verbose=False
        )
        assert (read.multi_token_prediction is not None) == bool(count)
        assert_close(to_numpy(read(batch)), to_numpy(model(batch)))
