import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import BertBackbone, BertConfig, BertMaskedLM
from tests.oracles.language_models import to_numpy

CONFIG = BertConfig.from_preset("tiny", vocabulary_size=50)
TOKENS = np.random.default_rng(0).integers(0, 50, (4, 6))
PLAIN = {"token_ids": TOKENS, "padding_mask": np.ones((4, 6), "int32")}
WHOLE = {**PLAIN, "segment_ids": np.zeros((4, 6), "int32")}


@pytest.mark.parametrize("make", [BertBackbone, BertMaskedLM])
def test_segments_that_are_left_out_are_the_first(make):
    model = make(CONFIG)
    np.testing.assert_array_equal(to_numpy(model(PLAIN)), to_numpy(model(WHOLE)))
    other = {**PLAIN, "segment_ids": np.ones((4, 6), "int32")}
    assert np.abs(to_numpy(model(other)) - to_numpy(model(WHOLE))).max() > 1e-3


def test_it_is_trained_and_predicts_without_them():
    model = BertMaskedLM(CONFIG)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(PLAIN, TOKENS, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    predicted = model.predict(PLAIN, verbose=0)
    np.testing.assert_allclose(predicted, model.predict(WHOLE, verbose=0), atol=1e-6)


def test_ids_that_are_floats_are_refused_by_their_own_name():
    with pytest.raises(InvalidInputError, match="`token_ids` must be integers"):
        BertBackbone(CONFIG)({**PLAIN, "token_ids": TOKENS + 0.5})


def test_other_names_are_refused_as_keras_does():
    with pytest.raises(ValueError, match="token_ids"):
        BertBackbone(CONFIG)({"padding_mask": TOKENS})
