import keras
import numpy as np
import pytest

from keras_deepseek import __version__
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.artifact_files import installed_versions
from keras_deepseek.errors import BundleError, ExportError


def test_an_artifact_is_checked_against_its_model(digits, tmp_path, capsys, tensorflow_installed):
    for name in ("digits", "digits.onnx"):
        Exporter(digits, "onnx", verbose=False).export(tmp_path / name)
        assert Exporter(digits, "onnx").check(tmp_path / name).verified
        assert "checked" in capsys.readouterr().out
    digits.layers[-1].bias.assign(np.arange(10.0))
    for name in ("digits", "digits.onnx"):
        with pytest.raises(ExportError, match=r"differs by .*Export the model again"):
            Exporter(digits, "onnx", verbose=False).check(tmp_path / name)
    report = Exporter(digits, "onnx", verify="warn", verbose=False).check(tmp_path / "digits")
    assert report.verification.state == "failed"
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ExportError, match="belongs to another model: it has inputs image"):
        Exporter(other, "onnx", verbose=False).check(tmp_path / "digits")
    with pytest.raises(ExportError, match=r"holds 'onnx'.* Pass backend='onnx'"):
        Exporter(digits, "savedmodel", verbose=False).check(tmp_path / "digits")
    with pytest.raises(BundleError, match="No bundle"):
        Exporter(digits, "onnx", verbose=False).check(tmp_path / "nothing")
    (tmp_path / "damaged.onnx").write_text("no protobuf")
    with pytest.raises(ExportError, match=r"damaged.onnx' can't be loaded as onnx: .*Export the m"):
        Exporter(digits, "onnx", verbose=False).load(tmp_path / "damaged.onnx")


def test_a_saved_model_is_checked_on_every_backend(digits, tmp_path, tensorflow_installed):
    exporter = Exporter(digits, "savedmodel", verbose=False)
    exporter.export(tmp_path / "digits")
    assert exporter.check(tmp_path / "digits").verified


def test_installed_versions_leave_out_missing_packages():
    versions = installed_versions()
    assert versions["keras_deepseek"] == __version__
    assert versions["keras"] == keras.__version__
    assert keras.backend.backend() in versions
    assert all(versions.values())
    assert installed_versions(["pytest", "not-there"]).keys() - versions.keys() == {"pytest"}
