import json

import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.models import DeepSeekV2CausalLM, DeepSeekV2Config
from keras_deepseek.models.generation.load_model import load_language_model


def test_a_folder_is_read_by_the_class_of_its_architecture(tmp_path):
    config = DeepSeekV2Config.from_preset("tiny", vocabulary_size=20, num_layers=1)
    model = DeepSeekV2CausalLM(config)
    model.save_to_preset(tmp_path / "preset", verbose=False)
    loaded = load_language_model(tmp_path / "preset", verbose=False)
    assert type(loaded) is DeepSeekV2CausalLM
    prompt = [1, 2, 3]
    assert loaded.generate(prompt, max_new_tokens=3) == model.generate(prompt, max_new_tokens=3)


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], None])
def test_another_architecture_is_told(tmp_path, architectures):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
    with pytest.raises(InvalidInputError, match=r"architecture\. Language models of this package"):
        load_language_model(tmp_path)
