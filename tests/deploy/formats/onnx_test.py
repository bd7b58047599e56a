import keras
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError, MissingExtraError
from keras_deepseek.backend.named_model import NamedModel
from keras_deepseek.deploy import import_extra
from keras_deepseek.deploy.formats.onnx import OnnxFormat

IN_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.skipif(not IN_TENSORFLOW, reason="the others know 18, and are asked for it alone")
@pytest.mark.parametrize("opset", [13, 18])
def test_names_and_free_axes_are_the_models(digits, tmp_path, opset):
    import onnx

    OnnxFormat(opset).write(NamedModel(digits), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    (value,) = graph.input
    assert value.name == "image"
    assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in graph.output] == ["probabilities"]


@pytest.mark.parametrize("opset", [0, -1, 7, 99, "18", True, None])
def test_an_opset_that_can_not_be_written_is_refused(opset):
    with pytest.raises(InvalidInputError, match="from 13 to 18"):
        OnnxFormat(opset)


def test_without_onnx_the_extra_is_named(digits, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(import_extra.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[onnx\]"):
        OnnxFormat().write(NamedModel(digits), tmp_path)
