import pytest

from keras_deepseek.deploy.onnx_passes.fusions.redundant_nodes import keep_reduced_axes

WEIGHTS = """int64[1] axes = {2}, int64[1] first = {0}, int64[1] second = {1}, int64[1] one = {1},
    float nothing = {0.5}, bool yes = {1}, bool no = {0}, int64[3] fixed = {-1, 3, 1}"""
BY_JAX = """
    sum = ReduceSum <keepdims = 0> (x, axes)
    shape = Shape (sum)
    batch = Gather (shape, first)
    length = Gather (shape, second)
    sizes = Concat <axis = 0> (batch, length, one)
    again = Reshape (sum, sizes)
    y = Expand (again, sizes)
"""
CHOICE = """
    z = Abs (x)
    shape = Shape (z)
    expanded = Expand (nothing, shape)
    y = Where (yes, z, expanded)
"""


@pytest.fixture
def batches(draw):
    return [draw(x=shape) for shape in ((1, 3, 4), (2, 3, 4), (5, 3, 4))]


@pytest.mark.parametrize("reduction", ["ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceMax"])
def test_a_reduction_keeps_its_axes(parse, check_pass, batches, reduction):
    model = parse(BY_JAX.replace("ReduceSum", reduction), weights=WEIGHTS)
    assert check_pass(keep_reduced_axes, model, batches) == (1, {reduction: 1})


def test_with_a_constant_shape(parse, check_pass, batches):
    nodes = BY_JAX.replace("Reshape (sum, sizes)", "Reshape (sum, fixed)")
    model = parse(nodes, "float[N,3,4] x", weights=WEIGHTS)
    assert check_pass(keep_reduced_axes, model, batches) == (1, {"ReduceSum": 1})


def test_a_choice_by_a_constant_goes(parse, check_pass, batches):
    assert check_pass(keep_reduced_axes, parse(CHOICE, weights=WEIGHTS), batches)[0] == 1
    model = parse(
        CHOICE.replace("y = Where (yes", "w = Where (yes") + "y = Sin (w)", weights=WEIGHTS
    )
    assert check_pass(keep_reduced_axes, model, batches) == (1, {"Abs": 1, "Sin": 1})


CHANGES = {
    "axes in another order": ("(batch, length, one)", "(length, batch, one)"),
    "axes put elsewhere": ("(batch, length, one)", "(batch, one, length)"),
    "axes that are there": ("keepdims = 0", "keepdims = 1"),
    "repeated rows": (
        "y = Expand (again, sizes)",
        "more = Concat <axis = 0> (batch, length, second2) y = Expand (again, more)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(parse, check_pass, batches, name):
    nodes = BY_JAX.replace(*CHANGES[name])
    weights = f"{WEIGHTS}, int64[1] second2 = {{2}}"
    model = parse(nodes, "float[N,3,4] x", weights=weights)
    assert check_pass(keep_reduced_axes, model, batches)[0] == 0


CHOICES = {
    "the other branch": ("(yes, z, expanded)", "(no, z, expanded)"),
    "a shape that grows": ("shape = Shape (z)", "y2 = Concat <axis = 0> (z, z) shape = Shape (y2)"),
    "a condition that is computed": ("(yes, z, expanded)", "(computed, z, expanded)"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_another_choice_stays(parse, check_pass, draw, name):
    nodes = CHOICE.replace(*CHOICES[name])
    if name == "a condition that is computed":
        nodes = f"computed = Greater (x, nothing) {nodes}"
    batches = [draw(x=(1, 3, 4))]
    assert check_pass(keep_reduced_axes, parse(nodes, weights=WEIGHTS), batches)[0] == 0
