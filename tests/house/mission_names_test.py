"""The names that users were promised: they are never renamed."""

import inspect
from pathlib import Path

import keras
import numpy as np

from keras_deepseek import callbacks, deploy, inference, layers, studio, training
from keras_deepseek.inference.models.model_options import ModelOptions

ARGUMENTS = {
    training.Trainer: "fp16_enabled device_map distributed_strategy world_size rank",
    ModelOptions: "batch_size max_batch_size",  # Those of `ServingEngine(model, **options)`.
}


def test_promised_names_can_be_imported() -> None:
    """All names, and the arguments of the trainer and of the serving engine."""
    names = ["Conv2D", "LSTM", "MultiHeadAttention", "SparseAttention", "Dropout", "LayerNorm"]
    assert all(issubclass(getattr(layers, name), keras.Layer) for name in names)
    assert issubclass(callbacks.LRScheduler, keras.callbacks.Callback)
    assert callable(deploy.Exporter)
    assert callable(studio.launch_studio)
    for owner, arguments in ARGUMENTS.items():
        assert set(arguments.split()) <= set(inspect.signature(owner).parameters), owner


def test_a_serving_engine_takes_dynamic_batches() -> None:
    """`batch_size="dynamic"` with `max_batch_size`."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with inference.ServingEngine(model, batch_size="dynamic", max_batch_size=4) as engine:
        assert engine.predict(np.ones((3, 2), "float32")).shape == (3, 1)


def test_a_model_with_second_names_of_layers_is_saved_and_loaded(tmp_path: Path) -> None:
    """The loaded model computes the same."""
    model = keras.Sequential(
        [
            keras.Input((64, 8)),
            layers.SparseAttention(2, head_dim=4, sliding_window=32),
            layers.LayerNorm(),
        ]
    )
    inputs = np.random.default_rng(0).normal(size=(1, 64, 8)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    outputs = [keras.ops.convert_to_numpy(either(inputs)) for either in (model, loaded)]
    np.testing.assert_array_equal(*outputs)
