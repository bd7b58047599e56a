import pytest

from keras_deepseek.deploy.onnx_passes.fusions.sizes import sizes_from_factors

INPUTS = "float[N,H,Q,D] q, float[N,H,D,K] k"
OUTPUTS = "float[A,B,C,E] y, int32[1] size"
WEIGHTS = "float half = {0.5}, int64[1] from = {2}, int64[1] to = {3}, int64[1] axis = {0}"
NODES = """product = MatMul (q, k)  y = Mul (product, half)  long = Shape (y)
    shape = Cast <to = 6> (long)  size = Slice (shape, from, to, axis)"""


@pytest.fixture
def batches(draw):
    return [draw(q=(n, 2, q, 3), k=(n, 2, 3, k)) for n, q, k in ((1, 4, 5), (2, 3, 7))]


@pytest.mark.parametrize("axis", [2, 3])
def test_a_size_of_the_scores_is_one_of_a_factor(parse, check_pass, batches, axis):
    weights = WEIGHTS.replace("from = {2}", f"from = {{{axis}}}").replace(
        "to = {3}", f"to = {{{axis + 1}}}"
    )
    model = parse(NODES, INPUTS, OUTPUTS, weights)
    num_replaced, operators = check_pass(sizes_from_factors, model, batches)
    assert (num_replaced, operators["Slice"]) == (1, 0)
    (shape,) = (node for node in model.graph.node if node.op_type == "Shape")
    assert shape.input[0] == ("q" if axis == 2 else "k")


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (2, 4), (0, 4)])
def test_other_sizes_stay(parse, check_pass, batches, axes):
    weights = WEIGHTS.replace("from = {2}", f"from = {{{axes[0]}}}").replace(
        "to = {3}", f"to = {{{axes[1]}}}"
    )
    outputs = OUTPUTS.replace("int32[1]", f"int32[{axes[1] - axes[0]}]")
    model = parse(NODES, INPUTS, outputs, weights)
    assert check_pass(sizes_from_factors, model, batches)[0] == 0


def test_the_size_of_another_sum_stays(parse, check_pass, batches):
    model = parse(NODES.replace("Mul (product, half)", "Sin (product)"), INPUTS, OUTPUTS, WEIGHTS)
    assert check_pass(sizes_from_factors, model, batches)[0] == 0


def test_an_opset_without_a_shape_of_axes(parse, check_pass, batches):
    model = parse(NODES, INPUTS, OUTPUTS, WEIGHTS, opset=13)
    assert check_pass(sizes_from_factors, model, batches)[0] == 0
