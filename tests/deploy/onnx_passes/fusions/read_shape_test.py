import pytest

from keras_deepseek.deploy.onnx_passes.fusions.sizes import read_shape
from keras_deepseek.deploy.onnx_passes.graph_view import GraphView

WEIGHTS = """int64[2] two = {0, 1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] minus = {-1},
    int64[1] least = {-9223372036854775808}, int64[1] step = {2}, float[1] number = {1.5}"""


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("s = Shape (x)", [("x", 0), ("x", 1), 4]),
        ("s = Shape <start = 1> (x)", [("x", 1), 4]),
        ("s = Shape <start = 0, end = -1> (x)", [("x", 0), ("x", 1)]),
        ("a = Shape (x) s = Gather (a, two)", [("x", 0), ("x", 1)]),
        ("a = Shape (x) s = Gather (a, minus)", [4]),
        ("a = Shape (x) b = Cast <to = 6> (a) s = Slice (b, one, minus)", [("x", 1)]),
        ("a = Shape (x) s = Slice (a, least, one)", [("x", 0)]),
        ("a = Shape (x) b = Gather (a, zero) s = Concat <axis = 0> (b, minus)", [("x", 0), -1]),
        ("s = Constant <value_ints = [2, 3]> ()", None),
        ("a = Shape (x) s = Slice (a, zero, minus, zero, step)", None),
        ("a = Shape (x) s = Mul (a, one)", None),
        ("s = Identity (number)", None),
    ],
)
def test_read_shape_returns_sizes(parse, nodes, expected):
    model = parse(f"{nodes} y = Cast <to = 1> (s)", weights=WEIGHTS)
    assert read_shape(GraphView(model), "s") == expected


def test_constants(parse):
    view = GraphView(parse("y = Abs (x)", weights=WEIGHTS))
    assert read_shape(view, "two") == [0, 1]
    assert read_shape(view, "number") is None
    assert read_shape(view, "x") is None
