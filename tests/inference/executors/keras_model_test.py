from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import Padding, ServingEngine
from keras_deepseek.inference.executors.keras_model import KerasModel


def make_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="scores")])


def test_outputs_by_name_are_those_of_the_model():
    model = make_model()
    executor = KerasModel(model)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(executor.run({"input_0": x})["scores"], expected, atol=1e-6)
    assert [spec.name for spec in executor.signature.outputs] == ["scores"]


def test_several_inputs_and_outputs_go_by_their_names():
    first, second = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    model = keras.Model(
        {"left": first, "right": second}, {"sum": first + second, "both": first * second}
    )
    executor = KerasModel(model)
    first, second = np.full((1, 2), 3, "float32"), np.full((1, 2), 4, "float32")
    outputs = executor.run({"left": first, "right": second})
    assert outputs["sum"].tolist() == [[7, 7]]
    assert outputs["both"].tolist() == [[12, 12]]


def test_a_model_runs_in_inference_mode_also_after_training_mode():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.9)])
    x = np.ones((2, 3), "float32")
    model(x, training=True)
    (output,) = KerasModel(model).run({"input_0": x}).values()
    assert output.tolist() == x.tolist()


class DoublesFewRows(keras.layers.Layer):
    def call(self, x):
        return 2 * x if x.shape[0] is not None and x.shape[0] < 5 else x

    def compute_output_shape(self, shape):
        return shape  # JAX can't tell which it is for any number of rows.


def test_a_layer_that_looks_at_the_number_of_rows_is_served_as_it_predicts():
    model = keras.Sequential([keras.Input((3,)), DoublesFewRows()])
    x = np.ones((4, 3), "float32")
    (output,) = KerasModel(model).run({"input_0": x}).values()
    assert output.tolist() == model.predict(x, verbose=0).tolist()


def test_repeated_requests_of_threads_get_the_numbers_of_the_model():
    """On PyTorch the second batch of a shape is recorded, and the weights change after it."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    executor = KerasModel(model)
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")

    def run(rows):
        (output,) = executor.run({"input_0": x[:rows]}).values()
        return output

    for factor in (1.0, 0.5):
        model.set_weights([factor * weight for weight in model.get_weights()])
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(run, [4, 2, 6] * 6))
        for output in outputs:
            expected = keras.ops.convert_to_numpy(model(x[: len(output)], training=False))
            np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
        if keras.backend.backend() == "torch":
            np.testing.assert_array_equal(run(6), keras.ops.convert_to_numpy(model(x)))


def test_a_file_computes_what_the_saved_model_computed(tmp_path):
    model = make_model()
    model.save(tmp_path / "model.keras")
    x = np.ones((1, 3), "float32")
    loaded = KerasModel.from_path(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.run({"input_0": x})["scores"], KerasModel(model).run({"input_0": x})["scores"]
    )


def test_a_file_with_layers_of_ours_is_loaded(tmp_path):
    from keras_deepseek import layers

    model = keras.Sequential([keras.Input((3, 4)), layers.SwiGLU(8)])
    model.save(tmp_path / "model.keras")
    assert KerasModel.from_path(tmp_path / "model.keras").signature.inputs[0].shape == (None, 3, 4)


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"not a zip file")
    with pytest.raises(InvalidInputError, match=r"Keras can't load .*model\.keras") as caught:
        KerasModel.from_path(tmp_path / "model.keras")
    assert "\n" not in str(caught.value)


def test_what_is_not_a_model_is_refused():
    with pytest.raises(InvalidInputError, match=r"Expected a keras\.Model"):
        KerasModel(keras.layers.Dense(1))


@pytest.mark.parametrize("kind", ["LSTM", "GlobalAveragePooling1D"])
def test_rows_of_unequal_lengths_share_batches_and_are_answered_as_alone(kind):
    layer = keras.layers.LSTM(3) if kind == "LSTM" else keras.layers.GlobalAveragePooling1D()
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    embedded = keras.layers.Embedding(9, 4, mask_zero=True)(tokens)
    pooled = layer(embedded)
    model = keras.Model(tokens, keras.layers.Dense(2, name="scores")(pooled))
    padding = Padding(lengths=(4, 6), values={"tokens": 0}, masks="by_value")
    rows = [np.arange(1, 1 + length, dtype="int32")[None] for length in (2, 3, 6)]
    with ServingEngine(model, max_batch_size=4, padding=padding) as engine:
        answers = [future.result()["scores"] for future in map(engine.submit, rows)]
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_allclose(answer, model.predict(row, verbose=0), atol=1e-5)
