import pytest

from keras_deepseek.backend.export import tf2onnx_integers


def test_they_are_those_of_onnx():
    onnx = pytest.importorskip("onnx")
    constants = vars(tf2onnx_integers).items()
    names = [name for name, value in constants if isinstance(value, int) and name[0] != "_"]
    assert len(names) == 12
    for name in names:
        assert getattr(tf2onnx_integers, name) == getattr(onnx.TensorProto, name)
