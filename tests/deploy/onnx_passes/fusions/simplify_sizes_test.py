import pytest

from keras_deepseek.deploy.onnx_passes.fusions.sizes import simplify_sizes

INPUTS = "float[N,S,4] x, float[9,4] table"
WEIGHTS = """int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int32[1] four = {4},
    int32[2] starts = {0, 0}, int32[1] three = {3}, int32[2] later = {0, 1},
    int32[2] steps = {1, 2}, int32[2] both = {0, 1}"""
SIZES = """long = Shape (x)  shape = Cast <to = 6> (long)
    batch = Slice (shape, zero, one, zero)  length = Slice (shape, one, two, zero)"""
SLICE = f"""{SIZES}  ends = Concat <axis = 0> (length, four)
    y = Slice (table, starts, ends)"""
EXPAND = f"""{SIZES}  joined = Concat <axis = 0> (batch, length, four)
    sizes = Cast <to = 7> (joined)  y = Expand (table, sizes)"""


@pytest.fixture
def batches(draw):
    return [draw(x=(batch, length, 4), table=(9, 4)) for batch, length in ((1, 3), (2, 9), (3, 1))]


def test_a_slice_of_as_many_positions(parse, check_pass, batches):
    model = parse(SLICE, INPUTS, "float[A,B] y", WEIGHTS)
    assert check_pass(simplify_sizes, model, batches) == (1, {"Shape": 1, "Slice": 1})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Slice (table, starts, ends)", "Slice (table, later, ends)"),
        ("Slice (table, starts, ends)", "Slice (table, starts, ends, both, steps)"),
        ("(length, four)", "(length, three)"),
    ],
)
def test_an_axis_that_is_cut_stays_in_it(parse, check_pass, batches, old, new):
    model = parse(SLICE.replace(old, new), INPUTS, "float[A,B] y", WEIGHTS)
    counts = check_pass(simplify_sizes, model, batches)
    assert counts == (1, {"Shape": 1, "Concat": 1, "Slice": 1})


def test_sizes_to_repeat_by(parse, check_pass, draw):
    model = parse(EXPAND, INPUTS, weights=WEIGHTS)
    batches = [draw(x=(batch, 9, 4), table=(9, 4)) for batch in (1, 3)]
    assert check_pass(simplify_sizes, model, batches) == (1, {"Shape": 1, "Concat": 1, "Expand": 1})


def test_sizes_that_two_ask_for_are_made_once(parse, check_pass, draw):
    model = parse(
        f"{EXPAND}  z = Reshape (x, sizes)", INPUTS, "float[A,B,C] y, float[D,E,F] z", WEIGHTS
    )
    batches = [draw(x=(batch, 9, 4), table=(9, 4)) for batch in (1, 3)]
    counts = check_pass(simplify_sizes, model, batches)
    assert counts == (2, {"Shape": 1, "Concat": 1, "Expand": 1, "Reshape": 1})


def test_sizes_of_one_axis_between_constants(parse, check_pass, draw):
    nodes = EXPAND.replace("(batch, length, four)", "(four, batch, four)")
    model = parse(nodes, INPUTS.replace("[9,4]", "[1,4]"), weights=WEIGHTS)
    batches = [draw(x=(batch, 9, 4), table=(1, 4)) for batch in (1, 3)]
    assert check_pass(simplify_sizes, model, batches) == (1, {"Shape": 1, "Concat": 1, "Expand": 1})


NEAR = {
    "a constant": ("y = Slice (table, zero, two, zero)", "float[A,B] y"),
    "asked for as it should be": (
        """size = Shape <start = 1, end = 2> (x)  y = Slice (table, zero, size, zero)""",
        "float[A,B] y",
    ),
    "computed": (
        f"""{SIZES}  more = Mul (length, four)  ends = Concat <axis = 0> (more, four)
            y = Slice (table, starts, ends)""",
        "float[A,B] y",
    ),
}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_stay(parse, check_pass, batches, name):
    nodes, outputs = NEAR[name]
    assert check_pass(simplify_sizes, parse(nodes, INPUTS, outputs, WEIGHTS), batches)[0] == 0


def test_an_opset_without_a_shape_of_axes(parse, check_pass, batches):
    model = parse(SLICE, INPUTS, "float[A,B] y", WEIGHTS, opset=13)
    assert check_pass(simplify_sizes, model, batches)[0] == 0
