from dataclasses import dataclass

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.models import (
    BertBackbone,
    BertMaskedLM,
    DeepSeekV2Config,
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    DeepSeekV32Config,
    SequentialRecommender,
    SequentialRecommenderConfig,
)
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


def test_a_policy_that_quantizes_is_refused():
    items = SequentialRecommenderConfig.from_preset("tiny", num_items=10)
    with pytest.raises(NotSupportedError, match="can't be 'int8_from_float32', which quantizes"):
        SequentialRecommender(items, dtype="int8_from_float32")
    with pytest.raises(NotSupportedError, match="can't be 'float8_from_float32'"):
        DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny"), dtype="float8_from_float32")
    with pytest.raises(InvalidInputError, match="must be a dtype policy"):
        DeepSeekV3CausalLM(DeepSeekV3Config.from_preset("tiny"), dtype="half")


def test_a_model_is_what_its_config_and_its_policy_say(tmp_path):
    model = WidthModel(WidthConfig(4), dtype="mixed_bfloat16", name="of_four", trainable=False)
    model.save(tmp_path / "model.keras")
    revived = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(revived, WidthModel)
    assert revived.config == model.config
    assert revived.get_config() == model.get_config()
    assert (revived.name, revived.trainable) == ("of_four", False)
    assert revived.get_layer("dense").compute_dtype == "bfloat16"
    assert revived.dtype_policy == model.dtype_policy == keras.DTypePolicy("mixed_bfloat16")
    rows = np.ones((1, 2), "float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(revived(rows)), keras.ops.convert_to_numpy(model(rows))
    )


@keras.saving.register_keras_serializable("tests_of_models")
class IdsModel(ConfigModel):
    config_class = WidthConfig

    def __init__(self, config, *, dtype=None, **kwargs):
        inputs = {name: keras.Input((2,), dtype="int32", name=name) for name in ("ids", "a_mask")}
        super().__init__(inputs, inputs["ids"] * inputs["a_mask"], **kwargs)
        self.config = config
        self.layers_policy = keras.dtype_policies.get(dtype)


def test_ids_that_are_floats_are_refused_and_masks_are_not():
    model = IdsModel(WidthConfig())
    ids = np.array([[3, 4]])
    for mask in (np.array([[1.0, 0.0]], "float32"), np.array([[True, False]]), np.array([[1, 0]])):
        outputs = model({"ids": ids, "a_mask": mask})
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), ids * mask)
    floats = {"ids": ids + 0.5, "a_mask": ids}
    for call in (model, model.call, model.predict):
        with pytest.raises(InvalidInputError, match=r"`ids` must be integers, received .*float"):
            call(floats)


def test_the_loss_of_a_model_in_float16_is_scaled():
    model = WidthModel(WidthConfig(), dtype="mixed_float16")
    model.compile("sgd", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_policies_that_keras_would_act_on_stay_those_of_the_layers_alone():
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="bfloat16")
    model = WidthModel(WidthConfig(), dtype=policies)
    assert model.layers_policy is policies
    assert model.get_layer("dense").variable_dtype == "bfloat16"
    assert model.dtype_policy.name == "float32"
    assert len(policies) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("tiny", r"a BertConfig, received 'tiny': write BertConfig.from_preset\('tiny'\)"),
        ("tinny", r"received 'tinny', as in BertConfig.from_preset\('tiny'\)"),
        ({"num_layers": 2}, "received a dict, as in BertConfig"),
        (None, "received None"),
        (SequentialRecommenderConfig(9), "received a SequentialRecommenderConfig"),
    ],
)
@pytest.mark.parametrize("model_class", [BertMaskedLM, BertBackbone])
def test_a_model_is_made_from_a_config_of_its_own_family_alone(model_class, config, message):
    with pytest.raises(InvalidInputError, match=f"`config` of {model_class.__name__} .*{message}"):
        model_class(config)
    with pytest.raises(InvalidInputError, match=r"`config` of .* must be a BertConfig"):
        model_class(config=config, dtype="bfloat16")


def test_a_copy_is_made_by_the_config_and_no_clone_that_has_its_table_twice():
    model = SequentialRecommender(SequentialRecommenderConfig.from_preset("tiny", num_items=9))
    with pytest.raises(
        NotSupportedError, match="a SequentialRecommender layer by layer: 'backbone' shares"
    ):
        keras.models.clone_model(model)
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    for mine, its in zip(model.weights, copy.weights, strict=True):
        assert mine is not its
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (mine, its)))


def test_the_config_of_another_deepseek_is_of_another_family():
    with pytest.raises(InvalidInputError, match="a DeepSeekV3Config, received a DeepSeekV2Config"):
        DeepSeekV3CausalLM(DeepSeekV2Config.from_preset("tiny"))
    with pytest.raises(InvalidInputError, match="a DeepSeekV3Config, received a DeepSeekV32Config"):
        DeepSeekV3CausalLM(DeepSeekV32Config.from_preset("tiny"))
