import pytest

from keras_deepseek.models import DeepSeekV32CausalLM, DeepSeekV32Config
from keras_deepseek.models.deepseek_v32.checkpoint_map import checkpoint_entries
from tests.oracles import golden_language_models
from tests.oracles.golden_language_models import read_case


def test_a_checkpoint_of_transformers_gives_its_logits_loss_and_gradients():
    case = read_case("deepseek_v32")
    config = DeepSeekV32Config.from_checkpoint_config(case.config)
    model = DeepSeekV32CausalLM(config)
    golden_language_models.assign(checkpoint_entries(model), case.tensors)
    golden_language_models.check_outputs(model, case)


@pytest.mark.slow_on_jax
@pytest.mark.slow_on_tensorflow
@pytest.mark.parametrize("overrides", [{}, {"tie_embeddings": True, "use_attention_bias": True}])
def test_every_weight_has_its_tensors_and_they_give_it_back(overrides):
    config = DeepSeekV32Config.from_preset("tiny", num_prediction_layers=2, **overrides)
    model = DeepSeekV32CausalLM(config)
    golden_language_models.check_entries(model, checkpoint_entries(model))
