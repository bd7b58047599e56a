import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.fold_scales import fold_scales

KERNEL = ", ".join(str((-1) ** index * 0.25 * index) for index in range(24))
WEIGHTS = f"""float[4,6] kernel = {{{KERNEL}}}, float[2,3] bias = {{1, -2, 3, -4, 5, -6}},
    float eighth = {{0.125}}, float root = {{0.57735026}}, float huge = {{1e38}},
    float tiny = {{2e-38}}, float none = {{0}}, float[1,1,1,1,1] wide = {{0.125}},
    int64[4] heads = {{0, 0, 2, 3}}"""
BY_TENSORFLOW = """product = MatMul (x, kernel)  split = Reshape (product, heads)
    sum = Add (split, bias)  y = Mul (sum, eighth)"""
OPTIONS = {"outputs": "float[A,B,C,D] y"}


@pytest.fixture
def batches(draw):
    return [draw(x=(1, 3, 4)), draw(x=(5, 2, 4))]


def test_queries_of_an_attention(parse, check_pass, batches, run_all):
    model, original = (parse(BY_TENSORFLOW, weights=WEIGHTS, **OPTIONS) for _ in range(2))
    counts = check_pass(fold_scales, model, batches)
    assert counts == (1, {"MatMul": 1, "Reshape": 1, "Add": 1})
    for arrays in batches:  # By a power of two not one digit is another.
        np.testing.assert_array_equal(run_all(model, arrays)[0], run_all(original, arrays)[0])


SAME = {
    "the number first": ("Mul (sum, eighth)", "Mul (eighth, sum)"),
    "a division": ("Mul (sum, eighth)", "Div (sum, eighth)"),
    "no power of two": ("Mul (sum, eighth)", "Mul (sum, root)"),
    "the bias first": ("Add (split, bias)", "Add (bias, split)"),
    "without a bias": ("sum = Add (split, bias)", "sum = Reshape (split, heads)"),
    "a transposition": (
        "y = Mul (sum, eighth)",
        "turned = Transpose <perm = [0, 2, 1, 3]> (sum)  y = Mul (turned, eighth)",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_other_forms(check_changed, batches, name):
    counts = check_changed(fold_scales, batches, BY_TENSORFLOW, WEIGHTS, SAME[name], **OPTIONS)
    assert counts[0] == 1
    assert not counts[1]["Mul"] + counts[1]["Div"]


CHANGES = {
    "another user": ("y = Mul", "z = Sin (product)  y = Mul"),
    "another user of the kernel": ("y = Mul", "z = MatMul (x, kernel)  y = Mul"),
    "a product of two inputs": ("MatMul (x, kernel)", "MatMul (x, computed)"),
    "a sum of two inputs": ("Add (split, bias)", "Add (split, other)"),
    "a factor that is computed": ("Mul (sum, eighth)", "Mul (sum, other)"),
    "a number that divides": ("Mul (sum, eighth)", "Div (eighth, sum)"),
    "too large": ("Mul (sum, eighth)", "Mul (sum, huge)"),
    "too small": ("Mul (sum, eighth)", "Mul (sum, tiny)"),
    "by zero": ("Mul (sum, eighth)", "Mul (sum, none)"),
    "a function between": ("Add (split, bias)", "Sin (split)"),
    "more axes": ("Mul (sum, eighth)", "Mul (sum, wide)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(check_changed, draw, name):
    outputs = "float[A,B,C,D] y"
    if name.startswith("another user"):
        outputs += ", float[E,F,G] z"
    if name == "more axes":
        outputs = "float[E,A,B,C,D] y"
    inputs = "float[N,S,4] x, float[4,6] computed, float[2,3] other"
    counts = check_changed(
        fold_scales,
        [draw(x=(2, 3, 4), computed=(4, 6), other=(2, 3))],
        BY_TENSORFLOW,
        WEIGHTS,
        CHANGES[name],
        inputs=inputs,
        outputs=outputs,
    )
    assert counts[0] == 0


def test_another_precision_stays(parse, check_pass):
    model = parse(
        "product = MatMul (x, kernel)  y = Mul (product, eighth)",
        "double[N,2] x",
        "double[A,B] y",
        "double[2,2] kernel = {1, 2, 3, 4}, double eighth = {0.125}",
    )
    assert check_pass(fold_scales, model, [{"x": np.ones((3, 2))}])[0] == 0
