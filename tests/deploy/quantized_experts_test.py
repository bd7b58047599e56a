"""Exports of a model whose experts are quantized, and of a language model with a LoRA on them."""

import keras
import numpy as np
import pytest

from keras_deepseek.deploy import Exporter
from keras_deepseek.errors import ExportError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
from keras_deepseek.testing import assert_close
from tests.oracles.language_models import draw_batch
from tests.oracles.lora_models import compute, tune
from tests.oracles.lora_models import make_model as make_language_model
from tests.oracles.quantization import MODES, in_each_mode

ROWS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def make_model(mode):
    """The router and the experts: Keras's own layers have tests of their own."""
    layer = DeepSeekMoE(ExpertRouter(6, 2), 12, num_shared_experts=0, name="moe")
    inputs = keras.Input((5, 8), name="tokens")
    # As in a transformer: for large inputs, the scores of several experts would be equal.
    model = keras.Model(inputs, layer(keras.layers.RMSNormalization()(inputs)))
    for kernels in (layer.expert_gate, layer.expert_up, layer.expert_down):
        kernels.quantize(**MODES[mode])
    return model


@in_each_mode
def test_a_saved_model_computes_the_same(tmp_path, mode):
    model = make_model(mode)
    Exporter(model, "savedmodel", verbose=False).export(tmp_path / "bundle")
    expected = keras.ops.convert_to_numpy(model(ROWS))
    for source in (tmp_path / "bundle", model):
        with ServingEngine(source) as engine:
            assert_close(engine.predict({"tokens": ROWS}), expected)


def test_onnx_files_are_refused_by_the_name_of_the_layer(tmp_path):
    with pytest.raises(ExportError, match=r"layer 'moe' .*has quantized experts"):
        Exporter(make_model("int8"), "onnx", verbose=False).export(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def make_tuned(mode):
    """A DeepSeek-V3 whose layers are all quantized, with a LoRA on attention and experts."""
    model = make_language_model()
    model.quantize(**MODES[mode])
    return tune(model, target_names=["expert_gate", "expert_up", "expert_down", "query_up"])


@in_each_mode
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="TensorFlow would compute it, and round some inputs to other integers.",
)
@pytest.mark.nightly
def test_a_tuned_language_model_is_exported_and_served(tmp_path, mode):
    model, batch = make_tuned(mode), draw_batch(31)
    expected = compute(model)
    Exporter(model, "savedmodel", verbose=False).export(tmp_path / "bundle")
    # A language model that is served as it is answers texts.
    for source in (tmp_path / "bundle", keras.Model(model.inputs, model.outputs)):
        with ServingEngine(source) as engine:
            # The last digit of a layer's input may decide to which integer it is rounded.
            assert_close(engine.predict(batch), expected, "bfloat16")


@in_each_mode
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.nightly
def test_a_tuned_language_model_is_refused_as_onnx_by_the_name_of_a_layer(tmp_path, mode):
    with pytest.raises(ExportError, match=r"layer 'token_embedding' .* the layer is quantized"):
        Exporter(make_tuned(mode), "onnx", verbose=False).export(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
