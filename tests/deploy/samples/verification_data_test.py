import keras
import numpy as np
import pytest

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.samples.verification_data import choose_data
from keras_deepseek.errors import InvalidInputError


def test_own_samples_are_what_it_is_verified_on(digits, tmp_path, tensorflow_installed):
    images = np.zeros((2, 8, 8, 1))
    exporter = Exporter(digits, "onnx", samples=[images, images[:1]], verbose=False)
    assert exporter.export(tmp_path / "digits").verification.num_samples == 2


@pytest.mark.parametrize("samples", [[], [np.zeros((2, 7, 8, 1))], [np.zeros((0, 8, 8, 1))]])
def test_samples_that_do_not_fit_are_refused(digits, samples):
    with pytest.raises(InvalidInputError):
        Exporter(digits, "savedmodel", samples=samples)


def test_int8_is_made_for_data_and_verified_on_others(digits, tmp_path, tensorflow_installed):
    import onnx

    images = np.random.default_rng(0).random((40, 8, 8, 1))
    report = Exporter(digits, "onnx", precision="int8", calibration=images, verbose=False).export(
        tmp_path / "small.onnx"
    )
    assert report.verification.num_samples == 3  # Of 1, 3 and 4 rows, a fifth of what was given.
    assert report.verification.agreement["probabilities"]["relative_error"] < 0.05
    assert "% off" in str(report)
    assert "int8 for the ranges of 32 rows of image" in report.route
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    assert any(node.op_type == "QuantizeLinear" for node in nodes)


def test_samples_that_move_no_output_verify_nothing(tmp_path, tensorflow_installed):
    inputs = keras.Input((3,), name="features")
    saturated = keras.layers.Dense(
        2, activation="sigmoid", kernel_initializer="ones", bias_initializer="ones", name="share"
    )(inputs * 1e4 + 1e6)
    exporter = Exporter(keras.Model(inputs, saturated), "onnx", verbose=False)
    report = exporter.export(tmp_path / "saturated.onnx")
    assert report.verification.state == "unverified"
    assert "output 'share' hardly changes" in report.verification.reason
    rows = np.linspace(-110.0, -90.0, 6, dtype="float32")[:, None] * np.ones(3, "float32")
    exporter = Exporter(keras.Model(inputs, saturated), "onnx", samples=[rows], verbose=False)
    assert exporter.check(tmp_path / "saturated.onnx").verified


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((0, 8, 8, 1), "float32"), "has no rows"),
        (np.full((3, 8, 8, 1), np.nan, "float32"), "NaN or infinity in input 'image'"),
    ],
)
def test_rows_that_give_no_ranges_are_refused(digits, rows, match):
    with pytest.raises(InvalidInputError, match=match):
        Exporter(digits, "onnx", precision="int8", calibration=rows)


def count_rows(batches):
    return sum(len(batch["input_0"]) for batch in batches)


def test_a_fifth_of_the_rows_is_verified_on_where_there_are_no_samples(dense):
    named, rows = NamedModel(dense), np.ones((40, 4), "float32")
    data = choose_data(named, None, rows)
    assert (count_rows(data.calibration), count_rows(data.samples)) == (32, 8)
    data = choose_data(named, [rows[:3]], rows)
    assert (count_rows(data.calibration), count_rows(data.samples)) == (40, 3)
    assert not data.has_random_samples


def test_without_data_all_is_drawn(dense):
    data = choose_data(NamedModel(dense), None, None)
    assert data.has_random_samples
    assert data.calibration is None
    assert all(
        (data.samples, data.alternative_samples, data.optional_samples, data.extreme_samples)
    )


def test_inputs_with_unequal_rows_are_refused_by_the_argument():
    left_input, right_input = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    model = keras.Model([left_input, right_input], keras.layers.Add()([left_input, right_input]))
    rows = {"left": np.ones((5, 4)), "right": np.ones((6, 4))}
    with pytest.raises(InvalidInputError, match=r"^`calibration`: Inputs differ in batch size"):
        Exporter(model, "onnx", precision="int8", calibration=rows)
    with pytest.raises(InvalidInputError, match=r"^`samples\[0\]`: Inputs differ in batch size"):
        Exporter(model, "onnx", samples=[rows])
