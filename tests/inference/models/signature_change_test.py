import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.models.signature_change import find_changes, rename_like

DTYPES = ("bool", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def signature(*inputs, outputs="y"):
    specs = tuple(TensorSpec(name, (None, *shape), dtype) for name, shape, dtype in inputs)
    return Signature(specs, tuple(TensorSpec(name, (None, 3), "float32") for name in outputs))


@st.composite
def signatures(draw):
    sizes = st.sampled_from([(), (2,), (None,), (2, 2)])
    spec = st.tuples(st.sampled_from("ab"), sizes, st.sampled_from(DTYPES))
    inputs = draw(st.lists(spec, min_size=1, max_size=2, unique_by=lambda item: item[0]))
    return signature(*inputs, outputs=draw(st.sampled_from(["y", "z", "yz"])))


@given(signatures(), signatures(), st.integers(0, 2**32))
def test_right_requests_stay_right_where_no_change_is_found(old, new, seed):
    if find_changes(old, new):
        return
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in old.inputs:
        shape = [size or 2 for size in spec.shape]
        largest = 1 if spec.dtype == "bool" else 60_000 if "float" in spec.dtype else 127
        arrays[spec.name] = spec.check(rng.integers(-largest if largest > 1 else 0, largest, shape))
    bound = (rename_like(new, old) or new).bind(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(bound[name].astype("float64"), array.astype("float64"))


X = ("x", (4,), "float32")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ([X], [("x", (5,), "float32")], "an input was x: float32 (any, 4) and is x: float32"),
        ([X], [("keras_tensor_4", (5,), "float32")], "and is keras_tensor_4: float32 (any, 5)"),
        ([X], [("x", (4,), "int32")], "and is x: int32 (any, 4)"),
        ([X], [X, ("mask", (4,), "bool")], "the inputs were ['x'] and are ['x', 'mask']"),
        ([X, ("z", (4,), "float32")], [X, ("w", (4,), "float32")], "and are ['x', 'w']"),
        ([X, ("z", (4,), "float32")], [("z", (4,), "float32"), X], "the order of the inputs"),
    ],
)
def test_what_breaks_requests_is_named(old, new, words):
    (change,) = find_changes(signature(*old), signature(*new))
    assert words in change


def test_an_output_that_clients_may_ask_for_must_stay():
    assert find_changes(signature(X), signature(X, outputs="z")) == [
        "the outputs were ['y'] and are ['z']"
    ]
    assert find_changes(signature(X), signature(("w", (4,), "float32"), outputs="z")) == []


def test_a_smaller_vocabulary_breaks_requests():
    tokens = [
        Signature((TensorSpec("x", (None, 4), "int32", size),), ()) for size in (None, 90, 100)
    ]
    assert [bool(find_changes(tokens[2], new)) for new in tokens] == [False, True, False]
    assert find_changes(tokens[0], tokens[2])


def test_a_request_under_neither_name_is_refused():
    old, new = signature(X), signature(("w", (4,), "float32"))
    with pytest.raises(InvalidInputError, match=r"expected \['x'\]"):
        rename_like(new, old).bind({"v": np.zeros((1, 4))})
