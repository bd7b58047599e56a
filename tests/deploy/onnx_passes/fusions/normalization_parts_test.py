import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.fusions import normalizations as parts
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView

WEIGHTS = """int64[1] last = {-1}, int64[1] third = {2}, int64[1] second = {1},
    int64[2] both = {2, 1},
    float four = {4}, float three = {3}, float two = {2}, float one = {1}, float epsilon = {0.5}"""


@pytest.fixture
def view_of(parse):
    return lambda nodes, **options: GraphView(parse(nodes, weights=WEIGHTS, **options))


@pytest.mark.parametrize(
    ("nodes", "num_axes"),
    [
        ("y = ReduceMean (x, last)", 1),
        ("y = ReduceMean (x, third)", 1),
        ("y = ReduceMean (x, both)", 2),
        ("s = ReduceSum (x, last) y = Div (s, four)", 1),
    ],
)
def test_means(view_of, nodes, num_axes):
    mean = parts.find_mean(view_of(nodes), "y")
    assert (mean.source, mean.num_axes) == ("x", num_axes)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = ReduceMean (x, second)",
        "y = ReduceMean (x)",
        "y = ReduceMean <keepdims = 0> (x, last)",
        "s = ReduceSum (x, last) y = Div (s, three)",
        "s = ReduceSum (x, second) y = Div (s, four)",
        "y = ReduceMax (x, last)",
    ],
)
def test_other_reductions_are_no_mean(view_of, nodes):
    assert parts.find_mean(view_of(nodes), "y") is None


def test_axes_that_are_an_attribute(view_of):
    assert parts.find_mean(view_of("y = ReduceMean <axes = [2]> (x)", opset=17), "y").num_axes == 1


@pytest.mark.parametrize(
    ("nodes", "is_one"),
    [
        ("s = Mul (x, x) y = ReduceMean (s, last)", True),
        ("s = Pow (x, two) y = ReduceMean (s, last)", True),
        ("s = ReduceSumSquare (x, last) y = Div (s, four)", True),
        ("s = Pow (x, three) y = ReduceMean (s, last)", False),
        ("s = Mul (x, two) y = ReduceMean (s, last)", False),
        ("s = ReduceSumSquare (x, last) y = Div (s, two)", False),
    ],
)
def test_means_of_squares(view_of, nodes, is_one):
    mean = parts.find_mean_square(view_of(nodes), "y")
    assert (mean is not None and mean.source == "x") == is_one


@pytest.mark.parametrize(
    ("last", "is_one"),
    [("Reciprocal (r)", True), ("Div (one, r)", True), ("Div (two, r)", False), ("Neg (r)", False)],
)
def test_inverse_roots(view_of, last, is_one):
    root = parts.find_inverse_root(view_of(f"t = Add (epsilon, x) r = Sqrt (t) y = {last}"), "y")
    assert (root is not None and (root.source, root.epsilon) == ("x", 0.5)) == is_one


def test_weights_take_the_shape_of_the_last_axes():
    def fit(array, sizes, rank=3):
        return parts.fit_weight(array, sizes, rank, np.dtype("float32"))

    scale = np.arange(4, dtype="float32")
    assert fit(scale.reshape(1, 1, 4), [4]).tolist() == [0, 1, 2, 3]
    assert fit(scale[:1], [2]).tolist() == [0, 0]
    assert fit(scale.reshape(4, 1), [4]) is None
    assert fit(scale, [3]) is None
    assert fit(scale.astype("float16"), [4]) is None
    assert fit(scale.reshape(1, 1, 1, 4), [4]) is None


def test_factors_and_sizes(view_of):
    view = view_of("y = Mul (x, two)")
    products = list(parts.with_constant(view, "y", "Mul"))
    assert [(name, factor) for name, factor, _ in products] == [("y", None), ("x", 2)]
    assert parts.last_sizes(view, "x", 1) == [4]
    assert parts.last_sizes(view, "x", 2) is None
    assert parts.last_sizes(view, "unheard", 1) is None
