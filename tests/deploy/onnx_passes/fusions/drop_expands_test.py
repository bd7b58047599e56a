import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.fusions.sizes import drop_expands

INPUTS = "float[N,S,4] x, float[T,4] positions"
WEIGHTS = """int64[1] first = {0}, int64[1] second = {1}, int32[1] four = {4},
    int64[2] two = {1, 4}, int64[4] more = {2, 1, 1, 4}, int64[3] fixed = {2, 3, 4}"""
BY_TENSORFLOW = """z = Abs (x)  long = Shape (z)  shape = Cast <to = 6> (long)
    batch = Gather (shape, first)  length = Gather (shape, second)
    joined = Concat <axis = 0> (batch, length, four)  sizes = Cast <to = 7> (joined)
    repeated = Expand (positions, sizes)
    y = Add (z, repeated)"""


@pytest.fixture
def batches(draw):
    sizes = ((1, 3), (2, 5), (3, 1))
    return [draw(x=(batch, length, 4), positions=(length, 4)) for batch, length in sizes]


def test_positions_are_repeated_by_the_sum(parse, check_pass, batches):
    model = parse(BY_TENSORFLOW, INPUTS, weights=WEIGHTS)
    assert check_pass(drop_expands, model, batches) == (1, {"Abs": 1, "Add": 1})


@pytest.mark.parametrize("operator", ["Sub", "Mul", "Div", "Max", "Min"])
def test_other_operators_that_broadcast(parse, check_pass, batches, operator):
    nodes = BY_TENSORFLOW.replace("Add (z, repeated)", f"{operator} (repeated, z)")
    model = parse(nodes, INPUTS, weights=WEIGHTS)
    assert check_pass(drop_expands, model, batches) == (1, {"Abs": 1, operator: 1})


def test_an_operator_keeps_its_attributes(parse, check_pass, draw):
    nodes = BY_TENSORFLOW.replace("Add (z, repeated)", "Mod <fmod = 1> (z, repeated)")
    model = parse(nodes, INPUTS, weights=WEIGHTS)
    assert check_pass(drop_expands, model, [draw(x=(2, 3, 4), positions=(3, 4))])[0] == 1


def test_a_choice_between_it_and_another(parse, check_pass, batches):
    nodes = BY_TENSORFLOW.replace(
        "y = Add (z, repeated)", "asked = Greater (x, z)  y = Where (asked, z, repeated)"
    )
    model = parse(nodes, INPUTS, weights=WEIGHTS)
    assert check_pass(drop_expands, model, batches) == (1, {"Abs": 1, "Greater": 1, "Where": 1})


def test_sizes_of_which_the_other_has_more(parse, check_pass, batches):
    nodes = "repeated = Expand (positions, two)  y = Add (repeated, x)"
    model = parse(nodes, INPUTS, weights=WEIGHTS)
    assert check_pass(drop_expands, model, batches) == (1, {"Add": 1})


def test_of_two_that_are_repeated_one_stays(parse, check_pass, draw):
    nodes = "left = Expand (row, fixed)  right = Expand (row, fixed)  y = Add (left, right)"
    model = parse(nodes, "float[1,4] row", weights=WEIGHTS)
    assert check_pass(drop_expands, model, [draw(row=(1, 4))]) == (1, {"Expand": 1, "Add": 1})


LOOKUP = """places = Cast <to = 7> (ids)  z = Gather (table, places)
    none = Equal (ids, four32)  any = Not (none)  free = Shape <start = 0, end = 2> (any)
    sizes = Concat <axis = 0> (free, four)  repeated = Expand (row, sizes)  y = Add (z, repeated)"""
LOOKUP_INPUTS = "int32[N,S] ids, float[9,4] table, float[1,4] row"
LOOKUP_WEIGHTS = "int64[1] four = {4}, int32 four32 = {4}, int32[1,1,1] many = {4}"
SQUARE = {"ids": np.array([[1, 2], [3, 4]], "int32")}


def test_sizes_of_what_is_looked_up(parse, check_pass, draw):
    model = parse(LOOKUP, LOOKUP_INPUTS, weights=LOOKUP_WEIGHTS)
    batches = [draw(table=(9, 4), row=(1, 4)) | SQUARE]
    assert check_pass(drop_expands, model, batches) == (1, {"Cast": 1, "Gather": 1, "Add": 1})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Gather (table, places)", "Gather <axis = 1> (square, places)"),
        ("Equal (ids, four32)", "Equal (ids, other)"),
        ("Not (none)", "Transpose <perm = [1, 0]> (none)"),
        ("Equal (ids, four32)", "Equal (ids, many)"),
    ],
)
def test_sizes_of_something_near_it(check_changed, draw, old, new):
    arrays = draw(table=(9, 4), row=(1, 4), square=(2, 5)) | SQUARE
    inputs = f"{LOOKUP_INPUTS}, int32[A,B] other, float[2,5] square"
    outputs = "float[A,B,C] y"
    nodes = LOOKUP
    if "square" in new:
        nodes = nodes.replace("(free, four)", "(free, two)")
        arrays["row"] = arrays["row"][:, :2]
        inputs = inputs.replace("[1,4] row", "[1,2] row")
    weights = f"{LOOKUP_WEIGHTS}, int64[1] two = {{2}}"
    if "many" in new:
        nodes = nodes.replace("start = 0, end = 2", "start = 1, end = 3")
    batches = [arrays | {"other": np.array([[1, 2], [3, 4]], "int32")}]
    counts = check_changed(
        drop_expands, batches, nodes, weights, (old, new), inputs=inputs, outputs=outputs
    )
    assert counts[0] == 0


CHANGES = {
    "axes in another order": ("(batch, length, four)", "(length, batch, four)"),
    "the other is one row": ("y = Add (z, repeated)", "y = Add (row, repeated)"),
    "sizes of more axes": ("Expand (positions, sizes)", "Expand (positions, more)"),
    "the sizes of something else": ("long = Shape (z)", "w = Sin (x)  long = Shape (w)"),
    "an operator that does not broadcast": (
        "y = Add (z, repeated)",
        "y = Concat <axis = 0> (z, repeated)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(parse, check_pass, draw, name):
    nodes = BY_TENSORFLOW.replace(*CHANGES[name])
    if name == "the other is one row":
        nodes = nodes.replace("y = Add", "row = ReduceSum <keepdims = 1> (z, first)  y = Add")
    outputs = "float[A,B,C,D] y" if name == "sizes of more axes" else "float[A,B,C] y"
    model = parse(nodes, INPUTS, outputs, WEIGHTS)
    batches = [draw(x=(3, 3, 4), positions=(3, 4))]
    assert check_pass(drop_expands, model, batches)[0] == 0


def test_another_user_still_reads_it(parse, check_pass, batches):
    model = parse(
        f"{BY_TENSORFLOW}  w = Sin (repeated)",
        INPUTS,
        "float[A,B,C] y, float[D,E,F] w",
        WEIGHTS,
    )
    num_replaced, operators = check_pass(drop_expands, model, batches)
    assert (num_replaced, operators["Expand"]) == (1, 1)
