import pytest

from keras_deepseek.deploy.onnx_passes.fusions.normalizations import fuse_rms_normalization

WEIGHTS = """float[4] scale = {1, 2, 3, 4}, int64[1] axes = {-1}, float epsilon = {0.000001},
    float one = {1}, float two = {2}"""
BY_TENSORFLOW = """
    square = Mul (x, x)
    mean = ReduceMean (square, axes)
    total = Add (mean, epsilon)
    root = Sqrt (total)
    inverse = Reciprocal (root)
    factor = Mul (inverse, scale)
    y = Mul (x, factor)
"""
BY_JAX = """
    square = Mul (x, x)
    mean = ReduceMean (square, axes)
    total = Add (mean, epsilon)
    root = Sqrt (total)
    inverse = Div (one, root)
    normal = Mul (x, inverse)
    y = Mul (normal, scale)
"""
BY_TORCH = BY_JAX.replace("Mul (x, x)", "Pow (x, two)").replace(
    "Div (one, root)", "Reciprocal (root)"
)


@pytest.fixture
def batches(draw):
    return [draw(x=shape) for shape in ((1, 1, 4), (2, 3, 4), (5, 2, 4))]


@pytest.mark.parametrize("nodes", [BY_TENSORFLOW, BY_JAX, BY_TORCH])
@pytest.mark.parametrize("opset", [23, 24, 25])
def test_the_layer_is_one_operator(parse, check_pass, batches, nodes, opset):
    model = parse(nodes, weights=WEIGHTS, opset=opset)
    assert check_pass(fuse_rms_normalization, model, batches) == (1, {"RMSNormalization": 1})


def test_without_scale(check_changed, batches):
    changes = [("y = Mul (normal, scale)", ""), ("normal =", "y =")]
    counts = check_changed(fuse_rms_normalization, batches, BY_JAX, WEIGHTS, *changes, opset=23)
    assert counts == (1, {"RMSNormalization": 1})


def test_below_opset_23_it_stays(parse, check_pass, batches):
    model = parse(BY_TENSORFLOW, weights=WEIGHTS, opset=22)
    assert check_pass(fuse_rms_normalization, model, batches)[0] == 0


NEAR_MISSES = {
    "another axis": (BY_JAX, ("{-1}", "{1}")),
    "a mean of something else": (BY_JAX, ("Mul (x, x)", "Abs (x)")),
    "a fourth power": (BY_TORCH, ("two = {2}", "two = {4}")),
    "another numerator": (BY_JAX, ("one = {1}", "one = {2}")),
    "an epsilon that is computed": (
        BY_JAX,
        ("total = Add (mean, epsilon)", "some = Abs (x) total = Add (mean, some)"),
    ),
    "another tensor is scaled": (BY_JAX, ("normal = Mul (x", "z = Abs (x) normal = Mul (z")),
    "a scale of the positions": (
        BY_JAX,
        ("float[4] scale = {1, 2, 3, 4}", "float[2,1] scale = {1, 2}"),
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(check_changed, draw, name):
    nodes, *changes = NEAR_MISSES[name]
    batches = [draw(x=shape) for shape in ((1, 2, 4), (3, 2, 4))]
    counts = check_changed(fuse_rms_normalization, batches, nodes, WEIGHTS, *changes, opset=23)
    if name == "a scale of the positions":  # The part before the scale is one all the same.
        assert counts == (1, {"RMSNormalization": 1, "Mul": 1})
    else:
        assert counts[0] == 0


@pytest.mark.parametrize("inner", ["mean", "inverse", "normal"])
def test_with_another_user_of_an_inner_value(parse, check_pass, batches, inner):
    model = parse(
        f"{BY_JAX} z = Abs ({inner})",
        outputs="float[A,B,C] y, float[D,E,F] z",
        weights=WEIGHTS,
        opset=23,
    )
    num_replaced, operators = check_pass(fuse_rms_normalization, model, batches)
    assert num_replaced == (inner == "normal")  # That is a normalization of its own.
    assert operators["Mul"] == (1 if inner == "normal" else 3)
