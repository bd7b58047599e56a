import pytest

from keras_deepseek.deploy.onnx_passes.fusions.products import transpose_products

INPUTS = "float[N,K,H,D] k, float[N,Q,H,D] q"
NODES = """keys = Transpose <perm = [0, 2, 1, 3]> (k)
    queries = Transpose <perm = [0, 2, 3, 1]> (q)
    product = MatMul (keys, queries)
    y = Transpose <perm = [0, 1, 3, 2]> (product)"""


@pytest.fixture
def batches(draw):
    sizes = ((1, 3, 5), (2, 4, 4), (3, 2, 6))
    return [draw(k=(batch, keys, 2, 3), q=(batch, queries, 2, 3)) for batch, keys, queries in sizes]


def test_scores_are_computed_as_they_are_needed(parse, check_pass, batches):
    model = parse(NODES, INPUTS, "float[A,B,C,D] y")
    assert check_pass(transpose_products, model, batches) == (1, {"Transpose": 2, "MatMul": 1})
    assert model.graph.node[-1].op_type == "MatMul"


def test_a_factor_that_was_not_transposed_is(parse, check_pass, draw):
    nodes = NODES.replace("keys = Transpose <perm = [0, 2, 1, 3]> (k)", "keys = Abs (k)")
    model = parse(nodes, "float[N,H,K,D] k, float[N,Q,H,D] q", "float[A,B,C,E] y")
    batches = [draw(k=(2, 2, 4, 3), q=(2, 5, 2, 3))]
    assert check_pass(transpose_products, model, batches)[0] == 1
    assert model.graph.node[-1].op_type == "MatMul"


def test_a_transposition_that_undoes_another_goes(parse, check_pass, draw):
    nodes = """left = Transpose <perm = [0, 2, 1]> (x) product = MatMul (left, x)
        y = Transpose <perm = [0, 2, 1]> (product)"""
    model = parse(nodes)
    batches = [draw(x=(2, 3, 4)), draw(x=(1, 5, 4))]
    assert check_pass(transpose_products, model, batches) == (1, {"Transpose": 1, "MatMul": 1})


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [1, 0, 3, 2], [0, 1, 2, 3], [3, 2, 1, 0]])
def test_other_orders_stay(parse, check_pass, batches, order):
    model = parse(NODES.replace("[0, 1, 3, 2]", str(order)), INPUTS, "float[A,B,C,D] y")
    assert check_pass(transpose_products, model, batches)[0] == 0


def test_with_another_user_of_the_product_it_stays(parse, check_pass, batches):
    outputs = "float[A,B,C,E] y, float[F,G,I,J] z"
    model = parse(f"{NODES} z = Abs (product)", INPUTS, outputs)
    assert check_pass(transpose_products, model, batches)[0] == 0


def test_factors_of_other_ranks_stay(parse, check_pass, draw):
    nodes = """left = Transpose <perm = [1, 0]> (w) product = MatMul (x, left)
        y = Transpose <perm = [0, 2, 1]> (product)"""
    model = parse(nodes, "float[N,S,4] x, float[2,4] w")
    assert check_pass(transpose_products, model, [draw(x=(2, 3, 4), w=(2, 4))])[0] == 0
