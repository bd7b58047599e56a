import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import LightningIndexer, RotaryEmbedding
from keras_deepseek.layers.position.inner_rotary import make_rotary, read_rotary
from tests.oracles.attention_layers import ATTENTIONS, DIM, make_attention

WITH_ROTARY = sorted(set(ATTENTIONS) - {"CachedAttention", "LinearAttention", "SparseAttention"})
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def test_it_is_made_of_the_arguments_and_the_dtype_of_a_layer():
    layer = keras.layers.Identity(dtype="mixed_float16")
    rotary = make_rotary(layer, 100.0, YARN, max_length=7)
    assert (rotary.name, rotary.compute_dtype) == ("rotary", "float16")
    assert (rotary.max_wavelength, rotary.scaling, rotary.max_length) == (100.0, YARN, 7)


def test_one_that_is_given_may_be_serialized():
    rotary = RotaryEmbedding(max_wavelength=100.0)
    assert read_rotary(None) is None
    assert read_rotary(rotary) is rotary
    assert read_rotary(keras.saving.serialize_keras_object(rotary)).max_wavelength == 100.0
    for other in (3, keras.layers.Dense(2)):
        with pytest.raises(InvalidInputError, match="`rotary` must be a `RotaryEmbedding` or None"):
            read_rotary(other)


@pytest.mark.parametrize("name", WITH_ROTARY)
def test_errors_name_the_arguments_of_the_layer(name):
    def refuse(message, **kwargs):
        with pytest.raises(InvalidInputError, match=message):
            make_attention(name, **kwargs)

    refuse("`rope_max_wavelength` must be a finite number above 1", rope_max_wavelength=1.0)
    refuse("`rope_max_wavelength` must be a finite number above 1", rope_max_wavelength="1e4")
    refuse("`rope_scaling` must be None or a dict", rope_scaling="yarn")
    refuse("`rope_scaling` has no 'rope_type'", rope_scaling={"factor": 2.0})
    refuse("rope_type of `rope_scaling`", rope_scaling={"rope_type": "yam"})
    refuse("A yarn `rope_scaling` needs .*factor", rope_scaling={"rope_type": "yarn"})
    refuse(r"`rope_scaling\['factor'\]` must be a finite", rope_scaling=YARN | {"factor": -1})
    refuse("pass rope_max_wavelength=5000.0", rope_theta=5000.0)


@pytest.mark.parametrize("name", WITH_ROTARY)
def test_a_call_beyond_the_positions_names_the_layer(name):
    layer = make_attention(name, max_length=4, name="attending")
    tokens = np.ones((2, 5, DIM), "float32")
    with pytest.raises(InvalidInputError, match="'attending' has a `max_length` of 4 positions"):
        layer(tokens)
    with pytest.raises(InvalidInputError, match="'attending' has a `max_length` of 4 positions"):
        layer(tokens[:, :2], cache=layer.make_cache(2, 9), cache_index=3)


def test_an_indexer_and_a_rotary_embedding_name_their_own_arguments():
    for kwargs, message in (
        ({"rope_max_wavelength": 0.5}, "`rope_max_wavelength` must be a finite number above 1"),
        ({"rope_theta": 5000}, "pass rope_max_wavelength=5000"),
        ({"rope_head_dim": 6}, "`rope_head_dim` must be even and at most `head_dim` .4."),
    ):
        with pytest.raises(InvalidInputError, match=message):
            LightningIndexer(2, 4, **{"rope_head_dim": 2, **kwargs})
    with pytest.raises(InvalidInputError, match="is `max_wavelength` here: pass max_wavelength=5"):
        RotaryEmbedding(rope_theta=5)
