import pytest

from keras_deepseek.deploy.onnx_passes.onnx_file import check_operators
from keras_deepseek.errors import ExportError


def test_what_onnx_has_passes(parse):
    check_operators(parse("y = Relu (x)"))


def test_each_operator_that_it_lacks_is_named_with_its_layer(parse):
    model = parse("a = Svd (x) \n b = CumProd (a) \n y = Relu (b)")
    model.graph.node[0].name = "model/decomposed/Svd"
    with pytest.raises(ExportError, match="Svd in 'model/decomposed', CumProd"):
        check_operators(model)


def test_one_of_a_later_opset_is_lacking_and_so_is_one_in_a_branch(parse):
    nodes = """
        y = If (flag) <
            then_branch = then_graph () => (float[A,B,C] a) { a = Gelu (x) },
            else_branch = else_graph () => (float[A,B,C] b) { b = Relu (x) }
        >
    """
    check_operators(parse(nodes, weights="bool[1] flag = {1}", opset=20))
    with pytest.raises(ExportError, match="write Gelu as ONNX"):
        check_operators(parse(nodes, weights="bool[1] flag = {1}", opset=18))
