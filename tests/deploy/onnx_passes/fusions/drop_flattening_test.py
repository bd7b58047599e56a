import pytest

from keras_deepseek.deploy.onnx_passes.fusions.products import drop_flattening

WEIGHTS = """float[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64[2] flat = {-1, 4},
    int64[2] first = {0, 1}, int32[1] columns32 = {2}"""
BY_TENSORFLOW = """
    matrix = Reshape (x, flat)
    product = MatMul (matrix, w)
    shape = Shape (x)
    short = Cast <to = 6> (shape)
    free = Gather (short, first)
    joined = Concat <axis = 0> (free, columns32)
    sizes = Cast <to = 7> (joined)
    y = Reshape (product, sizes)
"""
SHAPES = [(1, 3, 4), (2, 3, 4), (5, 3, 4)]


@pytest.fixture
def batches(draw):
    return [draw(x=shape) for shape in SHAPES]


def test_a_dense_layer_of_tensorflow(parse, check_pass, draw):
    model = parse(BY_TENSORFLOW, weights=WEIGHTS)
    batches = [draw(x=shape) for shape in ((1, 1, 4), (2, 5, 4), (3, 2, 4))]
    assert check_pass(drop_flattening, model, batches) == (1, {"MatMul": 1})


@pytest.mark.parametrize(("shape", "count"), [("{-1, 3, 2}", 1), ("{-1, 1, 2}", 0)])
def test_a_shape_that_is_constant(parse, check_pass, batches, shape, count):
    nodes = "matrix = Reshape (x, flat) product = MatMul (matrix, w) y = Reshape (product, fixed)"
    model = parse(nodes, "float[N,3,4] x", weights=f"{WEIGHTS}, int64[3] fixed = {shape}")
    assert check_pass(drop_flattening, model, batches)[0] == count


CHANGES = {
    "the shape of something else": (
        ("shape = Shape (x)", "z = Transpose <perm = [1, 0, 2]> (x) shape = Shape (z)"),
    ),
    "other axes": (("first = {0, 1}", "first = {1, 0}"),),
    "other sizes": (
        ("columns32 = {2}", "columns32 = {1}"),
        ("int64[2] first = {0, 1}", "int64[3] first = {0, 1, 1}"),
    ),
    "no matrix of rows": (
        ("flat = {-1, 4}", "flat = {-1, 2}"),
        ("float[4,2] w", "float[2,4] w"),
        ("columns32 = {2}", "columns32 = {8}"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(check_changed, draw, name):
    has_more = name == "other sizes"
    outputs = "float[A,B,C,D] y" if has_more else "float[A,B,C] y"
    batches = [draw(x=(3, 2, 4) if has_more else (3, 5, 4))]
    counts = check_changed(
        drop_flattening, batches, BY_TENSORFLOW, WEIGHTS, *CHANGES[name], outputs=outputs
    )
    assert counts[0] == 0


def test_with_another_user_of_the_product_it_stays(parse, check_pass, batches):
    nodes = f"{BY_TENSORFLOW} z = Abs (product)"
    model = parse(nodes, outputs="float[A,B,C] y, float[D,E] z", weights=WEIGHTS)
    assert check_pass(drop_flattening, model, batches)[0] == 0


def test_a_kernel_that_is_computed_stays(parse, check_pass, draw):
    nodes = BY_TENSORFLOW.replace("(matrix, w)", "(matrix, kernel)")
    model = parse(nodes, "float[N,S,4] x, float[4,2] kernel", weights=WEIGHTS)
    batches = [draw(x=(2, 3, 4), kernel=(4, 2))]
    assert check_pass(drop_flattening, model, batches)[0] == 0
