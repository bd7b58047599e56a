"""Attention as it looks after the passes before, and what is near it and is something else."""

import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.attention import fuse_attention

INPUTS = "float[N,2,Q,4] q, float[N,2,K,4] k, float[N,2,K,4] v"
MASK = "float[M,1,R,K] mask"
OUTPUTS = "float[A,B,C,D] y"
WEIGHTS = "float scale = {0.5}, float two = {2}"
PLAIN = """
    keys = Transpose <perm = [0, 1, 3, 2]> (k)
    product = MatMul (q, keys)
    scores = Mul (product, scale)
    probabilities = Softmax <axis = -1> (scores)
    y = MatMul (probabilities, v)
"""
MASKED = PLAIN.replace("(scores)", "(masked)").replace(
    "probabilities =", "masked = Add (scores, mask) probabilities ="
)
LENGTHS = ((1, 3, 3), (2, 4, 7), (3, 1, 5))


@pytest.fixture
def batches(draw):
    return [
        draw(q=(batch, 2, queries, 4), k=(batch, 2, keys, 4), v=(batch, 2, keys, 4))
        for batch, queries, keys in LENGTHS
    ]


def with_masks(batches, make):
    """Returns the batches with a mask, of which a first row has no key."""
    masked_batches = []
    for arrays in batches:
        batch, _, queries, _ = arrays["q"].shape
        visible = make(batch, queries, arrays["k"].shape[2])
        mask = np.where(visible, 0.0, -1e9).astype("float32")
        masked_batches.append({**arrays, "mask": mask})
    return masked_batches


def random_mask(*shape):
    visible = np.random.default_rng(0).random(shape) > 0.4
    visible[0, 0, 0] = False
    return visible


MASKS = {
    "of the keys": lambda batch, queries, keys: random_mask(batch, 1, 1, keys),
    "of queries and keys": lambda batch, queries, keys: random_mask(batch, 1, queries, keys),
    "causal": lambda batch, queries, keys: np.tri(queries, keys, dtype=bool)[None, None],
}


@pytest.mark.parametrize("opset", [23, 24])
def test_plain_attention_is_one_operator(parse, check_pass, batches, opset):
    model = parse(PLAIN, INPUTS, OUTPUTS, WEIGHTS, opset=opset)
    assert check_pass(fuse_attention, model, batches) == (1, {"Attention": 1})


@pytest.mark.parametrize("opset", [22, 25])
def test_where_onnxruntime_has_no_such_operator_it_stays(parse, check_pass, batches, opset):
    model = parse(PLAIN, INPUTS, OUTPUTS, WEIGHTS, opset=opset)
    assert check_pass(fuse_attention, model, batches)[0] == 0


@pytest.mark.parametrize("kind", MASKS)
def test_with_a_mask(parse, check_pass, batches, kind):
    model = parse(MASKED, f"{INPUTS}, {MASK}", OUTPUTS, WEIGHTS, opset=23)
    masked = with_masks(batches, MASKS[kind])
    num_replaced, operators = check_pass(fuse_attention, model, masked)
    assert (num_replaced, operators["Attention"], operators["Softmax"]) == (1, 1, 0)


def test_without_a_factor_and_with_a_quotient(parse, check_pass, batches):
    nodes = PLAIN.replace("scores = Mul (product, scale)", "").replace("(scores)", "(product)")
    model = parse(nodes, INPUTS, OUTPUTS, WEIGHTS, opset=23)
    assert check_pass(fuse_attention, model, batches) == (1, {"Attention": 1})
    nodes = PLAIN.replace("Mul (product, scale)", "Div (product, two)")
    model = parse(nodes, INPUTS, OUTPUTS, WEIGHTS, opset=23)
    assert check_pass(fuse_attention, model, batches) == (1, {"Attention": 1})


CHANGES = {
    "a softmax over the queries": ("axis = -1", "axis = 2"),
    "a softmax over the heads": ("axis = -1", "axis = 1"),
    "a negative factor": ("scale = {0.5}", "scale = {-0.5}"),
    "something after the product": ("scores = Mul (product, scale)", "scores = Abs (product)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_misses_stay(parse, check_pass, batches, name):
    old, new = CHANGES[name]
    model = parse(PLAIN.replace(old, new), INPUTS, OUTPUTS, WEIGHTS.replace(old, new), opset=23)
    assert check_pass(fuse_attention, model, batches)[0] == 0


@pytest.mark.parametrize("inner", ["product", "scores", "probabilities"])
def test_with_another_user_of_an_inner_value_it_stays(parse, check_pass, batches, inner):
    outputs = f"{OUTPUTS}, float[E,F,G,H] z"
    model = parse(f"{PLAIN} z = Abs ({inner})", INPUTS, outputs, WEIGHTS, opset=23)
    assert check_pass(fuse_attention, model, batches)[0] == 0


def test_heads_that_are_broadcast_stay(parse, check_pass, draw):
    inputs = INPUTS.replace("float[N,2,K,4] k", "float[N,1,K,4] k")
    model = parse(PLAIN, inputs, OUTPUTS, WEIGHTS, opset=23)
    batches = [draw(q=(2, 2, 3, 4), k=(2, 1, 5, 4), v=(2, 2, 5, 4))]
    assert check_pass(fuse_attention, model, batches)[0] == 0


def test_three_axes_stay(parse, check_pass, draw):
    nodes = PLAIN.replace("[0, 1, 3, 2]", "[0, 2, 1]")
    inputs = "float[N,Q,4] q, float[N,K,4] k, float[N,K,4] v"
    model = parse(nodes, inputs, "float[A,B,C] y", WEIGHTS, opset=23)
    batches = [draw(q=(2, 3, 4), k=(2, 5, 4), v=(2, 5, 4))]
    assert check_pass(fuse_attention, model, batches)[0] == 0
