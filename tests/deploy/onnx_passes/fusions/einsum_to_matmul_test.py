import pytest

from keras_deepseek.deploy.onnx_passes.fusions.products import einsum_to_matmul


def weight(*shape):
    count = 1
    for size in shape:
        count *= size
    numbers = ", ".join(str((7 * n) % 5 - 2) for n in range(count))
    return f"float[{','.join(map(str, shape))}] w = {{{numbers}}}"


BY_KERNEL = {
    "heads from features": ("abc,cde->abde", (4, 2, 3)),
    "features from heads": ("abcd,cde->abe", (2, 3, 4)),
    "a kernel with its output first": ("abc,dc->abd", (3, 4)),
    "an output that is turned": ("abc,cde->adbe", (4, 2, 3)),
    "a kernel first": ("cde,abc->abde", (4, 2, 3)),
    "spaces": (" abc , cd -> abd ", (4, 3)),
}


@pytest.mark.parametrize("name", BY_KERNEL)
def test_a_product_with_a_kernel(parse, check_pass, draw, name):
    equation, shape = BY_KERNEL[name]
    is_first = name == "a kernel first"
    term = equation.split(",")[is_first].split("->")[0].strip()
    sizes = (2, 3) if term == "abcd" else (4,)
    inputs = f"float[N,S,{','.join(map(str, sizes))}] x"
    rank = len(equation.split("->")[1].strip())
    outputs = f"float[{','.join('ABCD'[:rank])}] y"
    order = "w, x" if is_first else "x, w"
    nodes = f'y = Einsum <equation = "{equation}"> ({order})'
    model = parse(nodes, inputs, outputs, weight(*shape))
    batches = [draw(x=(*free, *sizes)) for free in ((1, 1), (2, 5), (3, 2))]
    num_replaced, operators = check_pass(einsum_to_matmul, model, batches)
    assert (num_replaced, operators["MatMul"], operators["Einsum"]) == (1, 1, 0)


OF_TWO = {
    "scores": ("bqhd,bkhd->bhqk", (2, 3, 4), {"Transpose": 2, "MatMul": 1}),
    "scores with the keys first": ("bkhd,bqhd->bhqk", (2, 3, 4), {"Transpose": 2, "MatMul": 1}),
    "queries and heads exchanged": ("bqhd,bkhd->bqhk", (2, 3, 4), {"Transpose": 3, "MatMul": 1}),
    "a plain product": ("bqd,bdk->bqk", (3, 3), {"MatMul": 1}),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_a_product_of_two_tensors(parse, check_pass, draw, name):
    equation, shape, expected = OF_TWO[name]
    axes = ",".join("NSHD"[: len(shape) + 1])
    inputs = f"float[{axes}] x, float[{axes.replace('S', 'T')}] z"
    outputs = f"float[{','.join('ABCD'[: len(shape) + 1])}] y"
    model = parse(f'y = Einsum <equation = "{equation}"> (x, z)', inputs, outputs)
    batches = [draw(x=(size, *shape), z=(size, *shape)) for size in (1, 2, 5)]
    assert check_pass(einsum_to_matmul, model, batches) == (1, expected)


def test_layers_that_share_a_kernel_share_it_afterwards(parse, check_pass, draw):
    nodes = """left = Einsum <equation = "abc,cde->abde"> (x, w)
        right = Einsum <equation = "abc,cde->abde"> (z, w)
        y = Add (left, right)"""
    inputs = "float[N,S,4] x, float[N,S,4] z"
    model = parse(nodes, inputs, "float[A,B,C,D] y", weight(4, 2, 3))
    batches = [draw(x=(2, 3, 4), z=(2, 3, 4))]
    assert check_pass(einsum_to_matmul, model, batches)[0] == 2
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len({node.input[1] for node in products}) == 1


LEFT_ALONE = {
    "an axis that is summed in one alone": ("abc,bd->ad", "float[N,3,4] x, float[3,5] z"),
    "a diagonal": ("abb,bc->ac", "float[N,3,3] x, float[3,5] z"),
    "an ellipsis": ("...c,cd->...d", "float[N,3,4] x, float[4,5] z"),
    "an output that is not named": ("ab,bc", "float[N,3] x, float[3,5] z"),
    "no sum": ("abc,abd->abcd", "float[N,3,4] x, float[N,3,5] z"),
    "two tensors with several rows": ("abcd,de->abce", "float[N,2,3,4] x, float[4,E] z"),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_another_equation_stays(parse, check_pass, draw, name):
    equation, inputs = LEFT_ALONE[name]
    rank = len(equation.split("->")[1].replace("...", "ab")) if "->" in equation else 2
    outputs = f"float[{','.join('ABCD'[:rank])}] y"
    model = parse(f'y = Einsum <equation = "{equation}"> (x, z)', inputs, outputs)
    shapes = [text.split("[")[1].split("]")[0] for text in inputs.split(" x,")]
    shapes = [tuple(int(s) if s.isdigit() else 2 for s in shape.split(",")) for shape in shapes]
    batches = [draw(x=shapes[0], z=shapes[1])]
    assert check_pass(einsum_to_matmul, model, batches) == (0, {"Einsum": 1})


def test_one_operand_and_three_stay(parse, check_pass, draw):
    nodes = """turned = Einsum <equation = "abc->acb"> (x)
        y = Einsum <equation = "abc,abd,abe->cde"> (turned, turned, turned)"""
    model = parse(nodes)
    assert check_pass(einsum_to_matmul, model, [draw(x=(2, 3, 4))]) == (0, {"Einsum": 2})
