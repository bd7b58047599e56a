import numpy as np
import pytest

from keras_deepseek.artifacts.errors import InvalidInputError
from keras_deepseek.deploy.onnx_passes.check_bfloat16 import check_bfloat16

onnx = pytest.importorskip("onnx")
from onnx import helper  # noqa: E402 - after the test is known to run

BRIEF, FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def in_bfloat16(*nodes):
    """Returns a graph whose nodes compute `y` of `x`, both in bfloat16."""
    around = [helper.make_node("Cast", ["given"], ["x"], to=BRIEF), *nodes]
    around.append(helper.make_node("Cast", ["y"], ["returned"], to=FLOAT))
    kernel = helper.make_tensor("kernel", BRIEF, (1, 1, 3), np.ones(3))
    graph = helper.make_graph(
        around,
        "brief",
        [helper.make_tensor_value_info("given", FLOAT, (2, 1, 8))],
        [helper.make_tensor_value_info("returned", FLOAT, None)],
        [kernel],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_what_onnx_has_in_bfloat16_passes():
    model = in_bfloat16(
        helper.make_node("Mul", ["x", "kernel"], ["z"]),
        helper.make_node("Concat", ["z", "z", "z"], ["y"], axis=0),
    )
    check_bfloat16(model, 25)


def test_the_opset_that_has_the_operator_is_named():
    model = in_bfloat16(helper.make_node("Conv", ["x", "kernel"], ["y"]))
    with pytest.raises(InvalidInputError, match="no Conv in bfloat16 at opset 18: pass opset=22"):
        check_bfloat16(model, 25)
    with pytest.raises(InvalidInputError, match="opset 18: pass precision='float16'"):
        check_bfloat16(model, 21)


def test_operators_inside_of_others_count():
    branch = helper.make_graph(
        [helper.make_node("Conv", ["x", "kernel"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", BRIEF, None)],
    )
    whether = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", 9, (), [1]))
    both = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(InvalidInputError, match="no Conv in bfloat16"):
        check_bfloat16(in_bfloat16(whether, both), 25)
