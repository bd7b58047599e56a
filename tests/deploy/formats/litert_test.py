import importlib.util
import os
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.formats.litert import LiteRTFormat
from keras_deepseek.errors import (
    ExportError,
    InvalidInputError,
    MissingExtraError,
    NotSupportedError,
)
from keras_deepseek.inference import ServingEngine

pytestmark = pytest.mark.usefixtures("tensorflow_installed")


def export(model, path, **options):
    return Exporter(model, "litert", verbose=0, **options).export(path)


@pytest.mark.parametrize("model", ["digits", "text", "two heads"], indirect=True)
def test_a_model_is_verified_by_its_own_runtime_at_several_sizes(model, tmp_path):
    report = export(model, tmp_path / "out")
    assert report.verified
    assert report.verification.num_samples >= 3
    bundle = Bundle.open(tmp_path / "out")
    assert (bundle.manifest.format, bundle.manifest.entry) == ("litert", "model.tflite")
    assert Exporter(model, "litert", verbose=0).check(tmp_path / "out").verified


@pytest.mark.nightly
def test_a_file_runs_at_sizes_that_it_was_not_verified_on(tmp_path):
    """A loop over a free length, with a free batch: LiteRT itself wants both to be fixed."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    features = keras.layers.Embedding(11, 6, mask_zero=True)(tokens)
    model = keras.Model(tokens, keras.layers.Bidirectional(keras.layers.GRU(5))(features))
    export(model, tmp_path / "model.tflite")
    infer = Exporter(model, "litert", verbose=0).load(tmp_path / "model.tflite")
    random = np.random.default_rng(0)
    for shape in ((7, 3), (1, 50), (2, 17)):
        rows = random.integers(0, 11, shape).astype("int32")
        (outputs,) = infer({"tokens": rows}).values()
        expected = keras.ops.convert_to_numpy(model(rows))
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_weights_are_kept_in_float16(digits, tmp_path):
    for name, precision in (("full", None), ("half", "float16")):
        report = export(digits, tmp_path / f"{name}.tflite", precision=precision)
        assert report.verified
    sizes = {path.stem: path.stat().st_size for path in tmp_path.glob("*.tflite")}
    assert sizes["half"] < 0.8 * sizes["full"]


def test_int8_is_made_for_the_ranges_of_the_calibration(digits, tmp_path):
    images = np.random.default_rng(0).random((60, 8, 8, 1)).astype("float32")
    path = tmp_path / "out"
    report = export(digits, path, precision="int8", calibration=images)
    assert report.verified
    assert "int8 for the ranges of 48 rows" in report.route
    assert Bundle.open(path).manifest.precision == "int8"
    with ServingEngine(path) as engine:
        outputs = engine.predict(images[:3])
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs, digits.predict(images[:3], verbose=0), atol=0.05)


def test_without_calibration_there_is_no_int8(digits):
    with pytest.raises(InvalidInputError, match=r"'int8' needs calibration="):
        Exporter(digits, "litert", precision="int8")


def test_bfloat16_is_refused(digits):
    with pytest.raises(InvalidInputError, match=r"LiteRT has no bfloat16.*'float16'"):
        Exporter(digits, "litert", precision="bfloat16")


def test_an_operation_that_litert_lacks_is_named_with_its_layer(tmp_path, capfd):
    volume = keras.Input((4, 4, 4, 1), name="volume")
    pooled = keras.layers.MaxPooling3D(name="deep_pool")(volume)
    model = keras.Model(volume, pooled)
    with pytest.raises(ExportError, match=r"no operation for MaxPool3D\(.*deep_pool.*Flex"):
        export(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert "loc(" not in capfd.readouterr().err


def test_one_that_has_changed_is_found(dense, tmp_path):
    export(dense, tmp_path / "out")
    dense.layers[-1].bias.assign(np.arange(3.0))
    with pytest.raises(ExportError, match="differs by"):
        Exporter(dense, "litert", verbose=0).check(tmp_path / "out")


def test_it_is_built_only_from_a_saved_model(dense, tmp_path):
    with pytest.raises(NotSupportedError, match="converted from a SavedModel"):
        LiteRTFormat().write(NamedModel(dense), tmp_path)


def test_without_tensorflow_the_extra_is_named(dense, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: find_spec(name) if name != "tensorflow" else None
    )
    with pytest.raises(MissingExtraError, match=r"`tensorflow` is needed.*\[tensorflow\]"):
        export(dense, tmp_path / "out")


@pytest.mark.nightly
def test_tensorflow_runs_the_file_where_litert_is_not_installed(dense, tmp_path, monkeypatch):
    for module in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: find_spec(name) if name != "ai_edge_litert" else None,
    )
    assert export(dense, tmp_path / "out").verified
