import warnings

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from tests.oracles.attention_layers import DIM, make_attention
from tests.oracles.parity import named_weights

WITH_INDEXER = ("DeepSeekSparseAttention", "CompressedSparseAttention")


def trained_by(trained):
    """Returns which weights of an indexer are among these."""
    paths = {path for path in (weight.path for weight in trained) if "indexer/" in path}
    return {path.partition("indexer/")[2] for path in paths}


def indexer_weights(layer):
    return {path[8:] for path in named_weights(layer) if path.startswith("indexer/")}


@pytest.mark.parametrize("name", WITH_INDEXER)
@pytest.mark.parametrize("train_indexer", [False, True])
def test_an_indexer_is_trained_if_asked_to_and_remembers_it(name, train_indexer, tmp_path):
    layer = make_attention(name, train_indexer=train_indexer)
    inputs = keras.Input((5, DIM))
    model = keras.Model(inputs, layer(inputs))
    expected = indexer_weights(layer) if train_indexer else set()
    assert trained_by(model.trainable_weights) == expected
    model.trainable = False
    assert not model.trainable_weights
    model.save(tmp_path / "frozen.keras")
    model.trainable = True
    assert trained_by(model.trainable_weights) == expected
    model.save(tmp_path / "model.keras")
    for file in ("frozen.keras", "model.keras"):
        revived = keras.saving.load_model(tmp_path / file)
        revived.trainable = True
        assert trained_by(revived.trainable_weights) == expected
        assert revived.layers[1].get_config()["train_indexer"] is train_indexer


@pytest.mark.parametrize("name", WITH_INDEXER)
@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_what_is_set_on_the_indexer_survives_build_and_saving(name, is_built, trainable, tmp_path):
    layer = make_attention(name, train_indexer=not trainable)
    if not is_built:
        layer = type(layer).from_config(layer.get_config())
    layer.indexer.trainable = trainable
    inputs = keras.Input((5, DIM))
    model = keras.Model(inputs, layer(inputs))
    expected = indexer_weights(layer) if trainable else set()
    assert trained_by(model.trainable_weights) == expected
    layer.trainable = False
    layer.trainable = True
    assert trained_by(model.trainable_weights) == expected
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert trained_by(revived.trainable_weights) == expected


@pytest.mark.parametrize("name", WITH_INDEXER)
def test_a_layer_that_was_frozen_before_has_a_frozen_indexer(name):
    layer = make_attention(name, train_indexer=True, trainable=False)
    assert not trained_by(weight for weight in layer.weights if weight.trainable)
    layer.trainable = True
    assert trained_by(layer.trainable_weights) == indexer_weights(layer)


@pytest.mark.parametrize("name", WITH_INDEXER)
@pytest.mark.each_backend
def test_a_fit_of_a_layer_that_was_thawed_warns_of_nothing(name):
    layer, inputs = make_attention(name), keras.Input((9, DIM))
    model = keras.Model(inputs, layer(inputs))
    model.trainable = False
    model.trainable = True
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(2, 9, DIM)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, x, verbose=0)


def test_a_loss_of_the_indexer_trains_it_unless_told_otherwise():
    for loss_weight, train_indexer, expected in ((None, None, 0), (1.0, None, 1), (1.0, False, 0)):
        layer = make_attention(
            "DeepSeekSparseAttention", indexer_loss_weight=loss_weight, train_indexer=train_indexer
        )
        assert bool(trained_by(layer.trainable_weights)) == expected
        assert layer.get_config()["train_indexer"] is bool(expected)


@pytest.mark.parametrize("name", WITH_INDEXER)
def test_whether_to_train_it_is_a_boolean(name):
    with pytest.raises(InvalidInputError, match=r"`train_indexer` must be True or False, .* 'yes'"):
        make_attention(name, train_indexer="yes")
