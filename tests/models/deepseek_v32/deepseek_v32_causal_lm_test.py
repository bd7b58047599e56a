import numpy as np
import pytest

from keras_deepseek.models import DeepSeekV32CausalLM, DeepSeekV32Config
from tests.oracles import language_models

SIZES = {
    "vocabulary_size": 31,
    "hidden_dim": 24,
    "intermediate_dim": 20,
    "index_top_k": 3,
}


@pytest.fixture(scope="module")
def model():
    config = DeepSeekV32Config.from_preset("tiny", **SIZES)
    return language_models.perturb(DeepSeekV32CausalLM(config))


def test_it_survives_saving(model, tmp_path):
    language_models.check_saving(model, tmp_path / "model.keras")


@pytest.mark.parametrize("pieces", [[(0, 4), (4, 5), (5, 7)], [(0, 7)]])
def test_cached_decoding_is_the_full_forward_pass(model, pieces):
    language_models.check_cached_decoding(model, pieces)


def test_padding_counts_for_nothing(model):
    language_models.check_padding_counts_for_nothing(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_computes_in_half_precision(model, dtype):
    language_models.check_half_precision(model, dtype)


def test_it_learns_and_so_does_its_indexer():
    config = DeepSeekV32Config.from_preset("tiny", **SIZES, indexer_loss_weight=0.1)
    model = DeepSeekV32CausalLM(config)
    kernel = model.backbone.transformer_layers[0].attention.indexer.key.kernel
    old_kernel = language_models.to_numpy(kernel)
    language_models.check_fit(model)
    assert np.any(language_models.to_numpy(kernel) != old_kernel)
