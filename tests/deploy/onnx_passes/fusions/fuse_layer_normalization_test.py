"""The three ways in which Keras's layer reaches ONNX, and what is near it and is something else."""

import re

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.fusions.normalizations import (
    fuse_layer_normalization,
)

WEIGHTS = """float[4] scale = {1, 2, 3, 4}, float[1,1,4] bias = {0.5, 0.25, -1, 2},
    int64[1] axes = {-1}, float epsilon = {0.001}, float one = {1}, float four = {4}"""
SHAPES = [(1, 1, 4), (2, 3, 4), (5, 2, 4)]

BY_TENSORFLOW = """
    mean = ReduceMean (x, axes)
    difference = Sub (x, mean)
    square = Mul (difference, difference)
    variance = ReduceMean (square, axes)
    total = Add (variance, epsilon)
    root = Sqrt (total)
    inverse = Reciprocal (root)
    factor = Mul (inverse, scale)
    scaled = Mul (x, factor)
    negative = Neg (mean)
    moved = Mul (negative, factor)
    shift = Add (moved, bias)
    y = Add (scaled, shift)
"""
BY_JAX = """
    sum = ReduceSum (x, axes)
    first_mean = Div (sum, four)
    difference = Sub (x, first_mean)
    squares = ReduceSumSquare (difference, axes)
    variance = Div (squares, four)
    total = Add (variance, epsilon)
    root = Sqrt (total)
    inverse = Div (one, root)
    factor = Mul (inverse, scale)
    scaled = Mul (x, factor)
    mean = ReduceMean (x, axes)
    negative = Neg (mean)
    moved = Mul (negative, factor)
    shift = Add (moved, bias)
    y = Add (scaled, shift)
"""


@pytest.fixture
def batches(draw):
    return [draw(x=shape) for shape in SHAPES]


@pytest.mark.parametrize("nodes", [BY_TENSORFLOW, BY_JAX])
def test_the_layer_is_one_operator(parse, check_pass, batches, nodes):
    model = parse(nodes, weights=WEIGHTS)
    num_replaced, operators = check_pass(fuse_layer_normalization, model, batches)
    assert (num_replaced, operators) == (1, {"LayerNormalization": 1})
    (node,) = model.graph.node
    attributes = {attribute.name: attribute for attribute in node.attribute}
    assert attributes["axis"].i == -1
    assert attributes["epsilon"].f == np.float32(0.001)


def test_a_layer_of_pytorch_is_left_as_it_is(parse, check_pass, batches):
    nodes = "y = LayerNormalization <axis = -1> (x, scale)"
    model = parse(nodes, weights="float[4] scale = {1, 2, 3, 4}")
    assert check_pass(fuse_layer_normalization, model, batches) == (0, {"LayerNormalization": 1})


WITHOUT = {
    "scale": (
        ("factor = Mul (inverse, scale)", ""),
        ("inverse = Reciprocal (root)", "factor = Reciprocal (root)"),
    ),
    "bias": (("shift = Add (moved, bias)", ""), ("moved = Mul", "shift = Mul")),
}


@pytest.mark.parametrize("left_out", [["bias"], ["scale"], ["scale", "bias"]])
def test_without_scale_or_bias(check_changed, batches, left_out):
    changes = [change for name in left_out for change in WITHOUT[name]]
    counts = check_changed(fuse_layer_normalization, batches, BY_TENSORFLOW, WEIGHTS, *changes)
    assert counts == (1, {"LayerNormalization": 1})


def test_over_two_axes(parse, check_pass, draw):
    weights = """float[1,2,4] scale = {1,2,3,4,5,6,7,8}, float[1,2,1] bias = {1, 2},
        int64[2] axes = {1, 2}, float epsilon = {0.001}"""
    model = parse(BY_TENSORFLOW, "float[N,2,4] x", weights=weights)
    batches = [draw(x=(size, 2, 4)) for size in (1, 3)]
    assert check_pass(fuse_layer_normalization, model, batches) == (1, {"LayerNormalization": 1})


def test_two_layers_one_after_the_other(parse, check_pass, batches):
    intermediates = "|".join(re.findall(r"(\w+) =", BY_TENSORFLOW)[:-1])
    second = re.sub(rf"\b({intermediates})\b", r"\1_2", re.sub(r"\bx\b", "z", BY_TENSORFLOW))
    first = BY_TENSORFLOW.replace("y = ", "z = ")
    model = parse(first + second, weights=WEIGHTS)
    assert check_pass(fuse_layer_normalization, model, batches) == (2, {"LayerNormalization": 2})


NEAR_MISSES = {
    "another axis": (BY_TENSORFLOW, ("{-1}", "{0}")),
    "an axis in the middle": (BY_TENSORFLOW, ("{-1}", "{1}")),
    "a mean over other axes than the variance": (
        BY_TENSORFLOW,
        ("mean = ReduceMean (x, axes)", "mean = ReduceMean (x, others)"),
        ("int64[1] axes", "int64[2] others = {1, 2}, int64[1] axes"),
    ),
    "a variance of something else": (
        BY_TENSORFLOW,
        ("Mul (difference, difference)", "Mul (x, x)"),
    ),
    "a product that is no square": (
        BY_TENSORFLOW,
        ("Mul (difference, difference)", "Mul (difference, x)"),
    ),
    "an epsilon that is computed": (
        BY_TENSORFLOW,
        ("total = Add (variance, epsilon)", "some = Abs (x) total = Add (variance, some)"),
    ),
    "another factor for the mean": (BY_TENSORFLOW, ("(negative, factor)", "(negative, inverse)")),
    "a mean that is not taken off": (BY_TENSORFLOW, ("Neg (mean)", "Abs (mean)")),
    "a sum by another number": (BY_JAX, ("four = {4}", "four = {5}")),
    "a scale of the positions": (
        BY_TENSORFLOW,
        ("float[4] scale = {1, 2, 3, 4}", "float[2,1] scale = {1, 2}"),
    ),
    "a scale with more axes": (BY_TENSORFLOW, ("float[4] scale", "float[1,1,1,4] scale")),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(check_changed, draw, name):
    nodes, *changes = NEAR_MISSES[name]
    names = {"inputs": "float[N,2,4] x"}  # Of known sizes: these are not to be what keeps it.
    if "more axes" in name:
        names["outputs"] = "float[A,B,C,D] y"
    batches = [draw(x=shape) for shape in ((1, 2, 4), (3, 2, 4))]
    num_replaced, operators = check_changed(
        fuse_layer_normalization, batches, nodes, WEIGHTS, *changes, **names
    )
    assert (num_replaced, operators["LayerNormalization"]) == (0, 0)


@pytest.mark.parametrize("inner", ["mean", "variance", "inverse", "factor", "moved"])
def test_with_another_user_of_an_inner_value_it_stays(parse, check_pass, batches, inner):
    outputs = "float[A,B,C] y, float[D,E,F] z"
    nodes = f"{BY_TENSORFLOW} z = Abs ({inner})"
    model = parse(nodes, outputs=outputs, weights=WEIGHTS)
    num_replaced, operators = check_pass(fuse_layer_normalization, model, batches)
    assert (num_replaced, operators["LayerNormalization"]) == (0, 0)


def test_an_inner_value_that_is_an_output_keeps_it(parse, check_pass, batches):
    outputs = "float[A,B,C] y, float[D,E,F] mean"
    model = parse(BY_TENSORFLOW, outputs=outputs, weights=WEIGHTS)
    assert check_pass(fuse_layer_normalization, model, batches)[0] == 0


def test_a_free_last_axis_stays(parse, check_pass, batches):
    weights = "float scale = {2}, float bias = {1}, int64[1] axes = {-1}, float epsilon = {0.001}"
    model = parse(BY_TENSORFLOW, "float[N,S,C] x", weights=weights)
    assert check_pass(fuse_layer_normalization, model, batches)[0] == 0


def test_float64_stays(parse, check_pass, draw):
    weights = WEIGHTS.replace("float", "double")
    model = parse(BY_TENSORFLOW, "double[N,S,4] x", "double[A,B,C] y", weights)
    batches = [{"x": draw(x=shape)["x"].astype("float64")} for shape in SHAPES]
    assert check_pass(fuse_layer_normalization, model, batches)[0] == 0


def test_below_opset_17_it_stays(check_changed, batches):
    changes = [
        ("ReduceMean (x, axes)", "ReduceMean <axes = [-1]> (x)"),
        ("ReduceMean (square, axes)", "ReduceMean <axes = [-1]> (square)"),
    ]
    for opset, expected in ((16, 0), (17, 1)):
        counts = check_changed(
            fuse_layer_normalization, batches, BY_TENSORFLOW, WEIGHTS, *changes, opset=opset
        )
        assert counts[0] == expected
