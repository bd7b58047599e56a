import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.fusions.redundant_nodes import drop_casts

MASK = """mask = Greater (x, zero)  number = Cast <to = 1> (mask)
    most = ReduceMax (number, axes)  again = Cast <to = 9> (most)  y = Where (again, x, zero)"""
WEIGHTS = "float zero = {0}, int64[1] axes = {-1}, int64[0] no_axes = {}"
CASTS = "first = Cast <to = 7> (x)  y = Cast <to = 6> (first)"


def test_a_mask_of_which_nothing_is_reduced(parse, check_pass, draw):
    model = parse(MASK, "float[N,S,1] x", weights=WEIGHTS)
    batches = [draw(x=(2, 3, 1)), draw(x=(1, 5, 1))]
    assert check_pass(drop_casts, model, batches) == (2, {"Greater": 1, "Where": 1})


@pytest.mark.parametrize("reduction", ["ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd"])
def test_other_reductions(parse, check_pass, draw, reduction):
    model = parse(f"y = {reduction} (x, axes)", "float[N,S,1] x", weights=WEIGHTS)
    assert check_pass(drop_casts, model, [draw(x=(2, 3, 1))]) == (1, {"Identity": 1})


REDUCTIONS = {
    "an axis of a free size": ("float[N,S,T] x", "y = ReduceMax (x, axes)"),
    "an axis that goes": ("float[N,S,1] x", "y = ReduceMax <keepdims = 0> (x, axes)"),
    "all axes": ("float[N,S,1] x", "y = ReduceMax (x, no_axes)"),
    "a square": ("float[N,S,1] x", "y = ReduceSumSquare (x, axes)"),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_another_reduction_stays(parse, check_pass, draw, name):
    inputs, nodes = REDUCTIONS[name]
    outputs = "float[A,B] y" if name == "an axis that goes" else "float[A,B,C] y"
    model = parse(nodes, inputs, outputs, WEIGHTS)
    assert check_pass(drop_casts, model, [draw(x=(2, 3, 1))])[0] == 0


def test_axes_that_are_an_attribute(parse, check_pass, draw):
    model = parse("y = ReduceMax <axes = [2]> (x)", "float[N,S,1] x", weights=WEIGHTS, opset=13)
    assert check_pass(drop_casts, model, [draw(x=(2, 3, 1))])[0] == 1


X = np.array([[0, 1, -1], [2**31 - 1, -(2**31), 2**24 + 1]], "int32")


def test_a_cast_there_and_back(parse, check_pass):
    model = parse(CASTS, "int32[N,S] x", "int32[A,B] y")
    assert check_pass(drop_casts, model, [{"x": X}]) == (1, {"Identity": 1})


CHANGES = {
    "digits are lost": ("first = Cast <to = 7>", "first = Cast <to = 1>"),
    "numbers are cut": ("first = Cast <to = 7>", "first = Cast <to = 3>"),
    "to another type": ("y = Cast <to = 6>", "y = Cast <to = 1>"),
    "something between": ("y = Cast <to = 6> (first)", "z = Neg (first)  y = Cast <to = 6> (z)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(parse, check_pass, name):
    outputs = "float[A,B] y" if name == "to another type" else "int32[A,B] y"
    model = parse(CASTS.replace(*CHANGES[name]), "int32[N,S] x", outputs)
    x = X // 2 if name == "digits are lost" else X
    assert check_pass(drop_casts, model, [{"x": x}])[0] == 0
