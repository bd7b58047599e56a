from collections import Counter

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.kernel_differences import keep_nan, wrap_integers

onnx = pytest.importorskip("onnx")
LARGE = {
    "int32": np.array([[2**30, 2**30, 3, 2**31 - 1], [70000, -70000, 3, 1], [-(2**31), -1, 5, 7]]),
    "int64": np.array([[2**62, 2**62, 3, 2**63 - 1], [2**40, 3, -(2**25), 1], [-1, 5, 2**53, 1]]),
}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_recurrence_is_nan_from_the_step_of_a_nan_on(direction, parse, check_pass, run_all, draw):
    sides = 2 if direction == "bidirectional" else 1
    model = parse(
        f'y, h, c = LSTM <hidden_size = 3, direction = "{direction}"> (x, w, r, b)',
        f"float[S,N,4] x, float[{sides},12,4] w, float[{sides},12,3] r, float[{sides},24] b",
        "float[A,B,C,D] y, float[E,F,G] h, float[I,J,K] c",
    )
    arrays = draw(x=(5, 3, 4), w=(sides, 12, 4), r=(sides, 12, 3), b=(sides, 24))
    assert check_pass(keep_nan, model, [arrays], tolerance=0)[0] == 1
    arrays["x"][2, 1, 0] = np.nan
    arrays["x"][3, 0, 2] = np.inf
    sequence, *last = map(np.isnan, run_all(model, arrays))
    steps = np.arange(5)
    spoilt = {"forward": [steps >= 2], "reverse": [steps <= 2]}
    spoilt["bidirectional"] = spoilt["forward"] + spoilt["reverse"]
    expected = np.zeros((5, sides, 3, 3), bool)
    expected[:, :, 1] = np.stack(spoilt[direction], axis=1)[..., None]
    np.testing.assert_array_equal(sequence, expected)
    for state in last:
        np.testing.assert_array_equal(state, expected[2])


@pytest.fixture(params=LARGE)
def dtype(request):
    return request.param


@pytest.fixture
def wrapped(parse, run_all):
    """Returns a function that applies the pass, and returns its count and what it computes."""

    def run(nodes, dtype, x, output="[K]", weights="", opset=18):
        model = parse(nodes, f"{dtype}[N,M] x", f"{dtype}{output} y", weights, opset)
        count = wrap_integers(model)
        onnx.checker.check_model(model, full_check=True)
        return count, run_all(model, {"x": x})[0]

    return run


REDUCTIONS = {"ReduceSum": np.add.reduce, "ReduceProd": np.multiply.reduce}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keepdims"), [((1,), 0), ((-1,), 1), ((0,), 1), ((0, -1), 1)])
def test_reductions_wrap_around(wrapped, dtype, name, axes, keepdims):
    x = LARGE[dtype].astype(dtype)
    words = ", ".join(map(str, axes))
    count, received = wrapped(
        f"y = {name} <keepdims = {keepdims}> (x, axes)",
        dtype,
        x,
        "[K]" if not keepdims else "[K,L]",
        f"int64[{len(axes)}] axes = {{{words}}}",
    )
    expected = x
    for axis in axes:
        expected = REDUCTIONS[name](expected, axis=axis, keepdims=bool(keepdims), dtype=dtype)
    assert count == 1
    assert received.dtype == dtype
    np.testing.assert_array_equal(received, expected)


def test_a_product_of_all_axes_and_one_below_opset_18(wrapped, dtype):
    x = LARGE[dtype].astype(dtype)
    _, received = wrapped("y = ReduceProd <keepdims = 0> (x)", dtype, x, "")
    np.testing.assert_array_equal(received, np.multiply.reduce(x.reshape(-1), dtype=dtype))
    nodes = "y = ReduceProd <keepdims = 0, axes = [0]> (x)"
    _, received = wrapped(nodes, dtype, x, opset=13)
    np.testing.assert_array_equal(received, np.multiply.reduce(x, axis=0, dtype=dtype))


def test_a_product_of_nothing_is_one(wrapped):
    x = np.ones((3, 0), "int32")
    nodes = "y = ReduceProd <keepdims = 0> (x, axes)"
    _, received = wrapped(nodes, "int32", x, weights="int64[1] axes = {1}")
    np.testing.assert_array_equal(received, [1, 1, 1])
    _, received = wrapped(nodes, "int32", x.T, weights="int64[1] axes = {1}")
    assert received.shape == (0,)


@pytest.mark.parametrize("power", [2, 3, 5, 12, 64])
def test_powers_wrap_around(wrapped, dtype, power):
    x = LARGE[dtype].astype(dtype) - 2
    nodes = "y = Pow (x, power)"
    count, received = wrapped(nodes, dtype, x, "[N,M]", f"{dtype} power = {{{power}}}")
    assert count == 1
    expected = np.ones_like(x)
    for _ in range(power):
        expected = expected * x
    np.testing.assert_array_equal(received, expected)


def test_integers_in_branches_wrap_around(wrapped):
    nodes = """
        small = Cast <to = 9> (flag)
        y = If (small) <
            then_branch = then_graph () => (int32[K] a) { a = ReduceSum <keepdims = 0> (x, axes) },
            else_branch = else_graph () => (int32[K] b) { b = ReduceProd <keepdims = 0> (x, axes) }
        >
    """
    x = LARGE["int32"].astype("int32")
    for flag, reduce in ((1, np.add.reduce), (0, np.multiply.reduce)):
        weights = f"int64[1] axes = {{1}}, int32[1] flag = {{{flag}}}"
        count, received = wrapped(nodes, "int32", x, weights=weights)
        assert count == 2
        np.testing.assert_array_equal(received, reduce(x, axis=1, dtype="int32"))


KEPT = {
    "sizes": "s = Shape (x) \n p = ReduceProd <keepdims = 1> (s, axes) \n y = Expand (one, p)",
    "floats": "f = Cast <to = 1> (x) \n p = ReduceSum (f, axes) \n y = Cast <to = 6> (p)",
    "a count": "b = Cast <to = 9> (x) \n i = Cast <to = 6> (b) \n y = ReduceSum (i, axes)",
    "a power that is computed": "y = Pow (x, x)",
    "a sum of no axes": "y = ReduceSum <noop_with_empty_axes = 1> (x)",
}


@pytest.mark.parametrize("name", KEPT)
def test_other_integers_stay(parse, name):
    weights = "int64[1] axes = {0}, int32 one = {1}"
    model = parse(KEPT[name], "int32[N,M] x", "int32[A,B] y", weights)
    op_counts = Counter(node.op_type for node in model.graph.node)
    assert wrap_integers(model) == 0
    assert Counter(node.op_type for node in model.graph.node) == op_counts
