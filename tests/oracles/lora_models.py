"""Small models with a LoRA whose matrices are not zero, for the tests of it."""

import keras
import numpy as np

from keras_deepseek.models import (
    DeepSeekV3CausalLM,
    DeepSeekV4CausalLM,
    enable_lora,
)
from tests.oracles import language_models
from tests.oracles.language_models import to_numpy

ATTENTION = (
    *("query_down", "query_up", "key_value_down", "key_rope", "key_up", "value_up"),
    "output",
)


def make_model(seed=0, task=DeepSeekV3CausalLM, **overrides):
    """Returns the same model each time."""
    keras.utils.set_random_seed(seed)
    config = task.config_class.from_preset("tiny", vocabulary_size=31, hidden_dim=24, **overrides)
    return language_models.perturb(task(config))


def make_v4_model():
    """Returns one of a single layer, which is quick, and of the kind that has all parts."""
    types = {"layer_types": ("compressed_sparse_attention",), "router_types": ("score",)}
    return make_model(task=DeepSeekV4CausalLM, **types)


def tune(model, rank=2, target_names=None, lora_alpha=4.0):
    """Enables a LoRA and gives its matrices numbers, as a training would."""
    enable_lora(model, rank, lora_alpha, target_names)
    rng = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


def compute(model):
    """Returns the logits of a batch."""
    return to_numpy(model(language_models.draw_batch(31)))
