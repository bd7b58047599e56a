import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.fusions.redundant_nodes import (
    simplify_negative_indices,
)

WEIGHTS = """float[3,2] table = {1, 2, 3, 4, 5, 6}, float zero = {0}, int32 zero32 = {0},
    int32 size = {3}, int32 less32 = {2}, int32 one = {1}"""
BY_TENSORFLOW = """number = Cast <to = 1> (x)  negative = Less (number, zero)
    added = Add (x, size)  places = Where (negative, added, x)
    y = Gather <axis = 0> (table, places)"""
OPTIONS = {"inputs": "int32[N,S] x"}
BATCHES = [
    {"x": np.array([[0, 1, 2], [-1, -2, -3]], "int32")},
    {"x": np.array([[-3], [2]], "int32")},
]


def test_places_from_the_end(parse, check_pass):
    model = parse(BY_TENSORFLOW, weights=WEIGHTS, **OPTIONS)
    assert check_pass(simplify_negative_indices, model, BATCHES) == (1, {"Gather": 1})


SAME = {
    "without a cast": (("(number, zero)", "(x, zero32)"),),
    "in int64": (("<to = 1> (x)", "<to = 7> (x)"), ("float zero = {0}", "int64 zero = {0}")),
    "the size first": (("Add (x, size)", "Add (size, x)"),),
    "the last axis": (("<axis = 0>", "<axis = -1>"), ("int32 size = {3}", "int32 size = {2}")),
}


@pytest.mark.parametrize("name", SAME)
def test_other_forms(check_changed, name):
    outputs = "float[A,B,C] y"
    batches = BATCHES
    if name == "the last axis":
        batches = [{"x": np.array([[0, 1], [-1, -2]], "int32")}]
    counts = check_changed(
        simplify_negative_indices,
        batches,
        BY_TENSORFLOW,
        WEIGHTS,
        *SAME[name],
        outputs=outputs,
        **OPTIONS,
    )
    assert counts == (1, {"Gather": 1})


CHANGES = {
    "not all rows are added": (("(x, size)", "(x, less32)"),),
    "it is less than 1": (("Less (number, zero)", "Less (x, one)"), ("(x, size)", "(x, less32)")),
    "the other way round": (("(negative, added, x)", "(negative, x, added)"),),
    "another's sign": (("<to = 1> (x)", "<to = 1> (other)"),),
    "another's places": (("(negative, added, x)", "(negative, added, other)"),),
    "a cast that may turn the sign": (
        ("<to = 1> (x)", "<to = 3> (x)"),
        ("float zero = {0}", "int8 zero = {0}"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(check_changed, name):
    x = np.array([[0, 1], [-1, -2]], "int32")
    if name == "the other way round":
        x = np.array([[-1, -2]], "int32")
    counts = check_changed(
        simplify_negative_indices,
        [{"x": x, "other": np.array([[1], [0]], "int32")[: len(x)]}],
        BY_TENSORFLOW,
        WEIGHTS,
        *CHANGES[name],
        inputs="int32[N,S] x, int32[N,T] other",
    )
    assert counts[0] == 0


def test_rows_that_are_not_counted_stay(parse, check_pass):
    nodes, inputs = BY_TENSORFLOW.replace("table", "rows"), "int32[N,S] x, float[R,2] rows"
    model = parse(nodes, inputs, weights=WEIGHTS)
    batches = [{**batch, "rows": np.ones((3, 2), "float32")} for batch in BATCHES]
    assert check_pass(simplify_negative_indices, model, batches)[0] == 0
