from dataclasses import dataclass

import keras
import numpy as np

from keras_deepseek.models.config_model import ConfigModel


@dataclass(frozen=True)
class WidthConfig:
    width: int = 3


@keras.saving.register_keras_serializable("tests_of_models")
class WidthModel(ConfigModel):
    config_class = WidthConfig

    def __init__(self, config, *, dtype=None, **kwargs):
        policy = keras.dtype_policies.get(dtype)
        inputs = keras.Input((2,))
        outputs = keras.layers.Dense(config.width, dtype=policy, name="dense")(inputs)
        super().__init__(inputs, outputs, **kwargs)
        self.config = config
        self.layers_policy = policy


def test_a_model_is_what_its_config_and_its_policy_say(tmp_path):
    model = WidthModel(WidthConfig(4), dtype="mixed_bfloat16", name="of_four", trainable=False)
    model.save(tmp_path / "model.keras")
    revived = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(revived, WidthModel)
    assert revived.config == model.config
    assert revived.get_config() == model.get_config()
    assert (revived.name, revived.trainable) == ("of_four", False)
    assert revived.get_layer("dense").compute_dtype == "bfloat16"
    rows = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(revived(rows)), keras.ops.convert_to_numpy(model(rows))
    )
