import pytest

from keras_deepseek.backend.export import onnx_types


def test_they_are_those_of_onnx():
    onnx = pytest.importorskip("onnx")
    names = [name for name, value in vars(onnx_types).items() if isinstance(value, int)]
    assert len(names) == 12
    for name in names:
        assert getattr(onnx_types, name) == getattr(onnx.TensorProto, name)
