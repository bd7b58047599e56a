import pytest

from keras_deepseek.deploy.onnx_passes.onnx_file import raise_opset
from keras_deepseek.errors import ExportError


@pytest.mark.parametrize("opset", [18, 19, 23, 25])
def test_it_computes_the_same(parse, run_all, draw, opset):
    nodes = "z = ReduceMean <keepdims = 1> (x, axes) y = Sub (x, z)"
    model = parse(nodes, weights="int64[1] axes = {-1}")
    raised = raise_opset(model, opset)
    assert [entry.version for entry in raised.opset_import] == [opset]
    arrays = draw(x=(2, 3, 4))
    assert (run_all(raised, arrays)[0] == run_all(model, arrays)[0]).all()


def test_one_that_is_there_is_left(parse):
    model = parse("y = Abs (x)", opset=23)
    assert raise_opset(model, 23) is model


def test_what_can_not_be_converted_is_named(parse):
    model = parse("y = Unheard (x)")
    with pytest.raises(ExportError, match=r"opset 18, .* opset 23: .*opset=18"):
        raise_opset(model, 23)
