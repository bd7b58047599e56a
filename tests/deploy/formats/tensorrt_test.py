import importlib.util

import pytest

from keras_deepseek.artifacts.bundle import Bundle
from keras_deepseek.artifacts.errors import ExportError, MissingExtraError
from keras_deepseek.artifacts.signature import TensorSpec
from keras_deepseek.deploy import Exporter
from keras_deepseek.deploy.formats import tensorrt
from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat

INSTALLED = importlib.util.find_spec("tensorrt_rtx") is not None
needs_tensorrt = pytest.mark.skipif(not INSTALLED, reason="tensorrt_rtx is not installed")


@pytest.mark.skipif(INSTALLED, reason="tensorrt_rtx is installed")
def test_without_tensorrt_the_extra_is_named(digits):
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[tensorrt-rtx\]"):
        Exporter(model=digits, backend="tensorrt")


def test_free_axes_are_bounded_and_fixed_ones_kept():
    assert tensorrt._bounds(TensorSpec("x", (None, None, 8), "float32")) == [
        (1, 1, 8),
        (4, 16, 8),
        (32, 64, 8),
    ]


@needs_tensorrt
def test_an_engine_is_built_from_the_verified_onnx(model, tmp_path, tensorflow_installed):
    report = Exporter(model=model, backend="tensorrt", verbose=False).export(tmp_path / "engine")
    assert report.verification.state == "unverified"
    assert "the ONNX that it was built from is verified" in report.verification.reason
    bundle = Bundle.open(tmp_path / "engine")
    assert bundle.entry.stat().st_size > 1000
    assert set(bundle.manifest.files) == {"model.trt"}


@needs_tensorrt
def test_a_path_with_the_suffix_asks_for_the_file(digits, tmp_path, tensorflow_installed):
    Exporter(model=digits, backend="tensorrt", verbose=False).export(tmp_path / "model.trt")
    assert (tmp_path / "model.trt").stat().st_size > 1000


@needs_tensorrt
def test_what_can_not_be_parsed_is_named(tmp_path, digits):
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x01broken")
    signature = Exporter(digits, "savedmodel").signature
    with pytest.raises(ExportError, match="TensorRT can't take this model"):
        TensorRTFormat().build(tmp_path / "broken.onnx", signature, tmp_path)
