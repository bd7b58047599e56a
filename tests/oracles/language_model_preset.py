"""The preset of a tiny DeepSeek-V3 with a tokenizer that was trained on a few words."""

import numpy as np

from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config, Tokenizer
from tests.oracles.trained_tokenizer import train_tokenizer


def write_language_model(folder, seed=0, max_length=1024, **tokenizer_config):
    """Writes a preset whose answers are far from even, and returns the model."""
    train_tokenizer(folder, **tokenizer_config)
    config = DeepSeekV3Config.from_preset("tiny", vocabulary_size=320, max_length=max_length)
    model = DeepSeekV3CausalLM(config)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(rng.normal(size=variable.shape) * variable.shape[-2] ** -0.5)
    embeddings = model.backbone.token_embedding
    embeddings.embeddings.assign(embeddings.embeddings * 20)
    model.tokenizer = Tokenizer.from_preset(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()  # Else the folder would hold what is no part of a preset.
    model.save_to_preset(folder, verbose=False)
    return model
