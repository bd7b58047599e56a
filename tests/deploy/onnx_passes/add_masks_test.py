"""Rows without a key are where a mask that is added could differ from one that is chosen by."""

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.attention import add_masks

INPUTS = "float[N,H,Q,K] scores, float[N,H,K,D] values, bool[M,1,1,K] mask"
OUTPUTS = "float[A,B,C,E] y"
WEIGHTS = "float least = {-1000000000}, float zero = {0}, bool yes = {1}"
BY_KERAS = """
    masked = Where (mask, scores, least)
    probabilities = Softmax <axis = -1> (masked)
    zeroed = Where (mask, probabilities, zero)
    y = MatMul (zeroed, values)
"""
BY_ATTENTION = BY_KERAS.replace("zeroed = Where (mask, probabilities, zero)", "").replace(
    "(zeroed, values)", "(probabilities, values)"
)


@pytest.fixture
def batches(draw):
    masked_batches = []
    for batch, queries, keys in ((1, 3, 3), (2, 4, 7), (3, 5, 2)):
        arrays = draw(scores=(batch, 2, queries, keys), values=(batch, 2, keys, 3))
        mask = np.random.default_rng(keys).random((batch, 1, 1, keys)) > 0.4
        mask[0] = False  # A row without a key.
        masked_batches.append({**arrays, "mask": mask})
    return masked_batches


def test_the_softmax_of_keras(parse, check_pass, batches):
    model = parse(BY_KERAS, INPUTS, OUTPUTS, WEIGHTS)
    num_replaced, operators = check_pass(add_masks, model, batches)
    assert (num_replaced, operators["Add"], operators["Where"]) == (1, 1, 2)
    outputs = {node.output[0]: node for node in model.graph.node if node.op_type == "Where"}
    assert "y" in outputs  # The other makes what is added, of the mask's shape.


@pytest.mark.parametrize("opset", [18, 20])
def test_at_other_opsets(parse, check_pass, batches, opset):
    model = parse(BY_KERAS, INPUTS, OUTPUTS, WEIGHTS, opset=opset)
    assert check_pass(add_masks, model, batches)[0] == 1


def test_layers_share_what_they_add(parse, check_pass, batches):
    second = BY_KERAS.replace("zeroed", "zeroed_2").replace("masked", "masked_2")
    second = second.replace("probabilities", "probabilities_2").replace("y =", "z =")
    outputs = f"{OUTPUTS}, float[F,G,I,J] z"
    model = parse(BY_KERAS + second, INPUTS, outputs, WEIGHTS)
    num_replaced, operators = check_pass(add_masks, model, batches)
    assert (num_replaced, operators["ReduceMax"], operators["Where"]) == (2, 1, 3)


CHANGES = {
    "a number that leaves something": ("least = {-1000000000}", "least = {-5}"),
    "zero where there are none": ("zero = {0}", "zero = {1}"),
    "another axis": ("axis = -1", "axis = 2"),
    "another mask afterwards": (
        "zeroed = Where (mask,",
        "other = Not (mask) zeroed = Where (other,",
    ),
    "a positive number": ("least = {-1000000000}", "least = {1000000000}"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(check_changed, batches, name):
    names = {"inputs": INPUTS, "outputs": OUTPUTS}
    assert check_changed(add_masks, batches, BY_KERAS, WEIGHTS, CHANGES[name], **names)[0] == 0


def test_without_zeroing_less_than_nothing_must_be_left(parse, check_pass, batches):
    # Beside -1e9 a score of 1,000 counts, in a row that has no key.
    model = parse(BY_ATTENTION, INPUTS, OUTPUTS, WEIGHTS)
    assert check_pass(add_masks, model, batches)[0] == 0


@pytest.mark.parametrize("inner", ["masked", "probabilities", "zeroed"])
def test_with_another_user_of_an_inner_value_it_stays(parse, check_pass, batches, inner):
    outputs = f"{OUTPUTS}, float[F,G,I,J] z"
    model = parse(f"{BY_KERAS} z = Abs ({inner})", INPUTS, outputs, WEIGHTS)
    assert check_pass(add_masks, model, batches)[0] == 0


def test_float16_stays(parse, check_pass, batches):
    from onnx import numpy_helper

    model = parse(
        BY_KERAS, *(text.replace("float", "float16") for text in (INPUTS, OUTPUTS)), WEIGHTS
    )
    for tensor in model.graph.initializer:
        if tensor.name != "yes":
            array = np.maximum(numpy_helper.to_array(tensor), -3e4).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    halves = [
        {
            name: array if name == "mask" else array.astype("float16")
            for name, array in arrays.items()
        }
        for arrays in batches
    ]
    assert check_pass(add_masks, model, halves)[0] == 0
