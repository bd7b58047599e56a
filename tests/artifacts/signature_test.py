import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.errors import InvalidInputError

ONE_INPUT = Signature((TensorSpec("image", (None, 2), "float32"),), ())
TWO_INPUTS = Signature(
    (TensorSpec("ids", (None, None), "int32"), TensorSpec("mask", (None, None), "bool")), ()
)


def test_lists_become_arrays_of_the_inputs_dtype():
    bound = ONE_INPUT.bind([[1, 2], [3, 4]])
    assert bound["image"].dtype == np.float32
    np.testing.assert_array_equal(bound["image"], [[1, 2], [3, 4]])


def test_an_array_of_the_right_dtype_is_not_copied():
    array = np.ones((3, 2), "float32")
    assert ONE_INPUT.bind(array)["image"] is array


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 2, 1), ()])
def test_a_shape_that_does_not_fit_is_named_with_the_expected_one(shape):
    received = r"received (shape \(|one float)"
    with pytest.raises(InvalidInputError, match=rf"image.*{received}.*float32 \(any, 2\)"):
        ONE_INPUT.bind(np.zeros(shape, "float32"))


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(InvalidInputError, match="rows of unequal length"):
        ONE_INPUT.bind([[1.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int32", [1.5]),
        ("int32", [2**40]),
        ("uint8", [-1]),
        ("bool", [2]),
        ("int32", [float("nan")]),
        ("float32", [1e300]),
        ("float16", [70000]),
        ("int64", [2.0**63]),
        ("uint64", [2.0**64]),
        ("int64", [0, 2**63]),
        ("int64", [-1, 2**64 - 1]),
        ("uint64", [-1, 2**64 - 1]),
        ("uint64", [0.5, 2**64 - 1]),
        ("int64", [float("inf")]),
        ("bfloat16", [1e39]),
    ],
)
def test_values_that_would_change_their_meaning_are_refused(dtype, values):
    with pytest.raises(InvalidInputError, match="can't all be"):
        TensorSpec("x", (None,), dtype).check(values)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int32", [1.0, 2.0]),
        ("bool", [0, 1]),
        ("float16", [1.1]),
        ("float32", [True]),
        ("float32", [float("inf")]),
        ("bfloat16", [1.1, 3e38, float("inf")]),
    ],
)
def test_values_that_keep_their_meaning_are_taken(dtype, values):
    assert TensorSpec("x", (None,), dtype).check(values).dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("uint64", [0, 2**64 - 1]),
        ("uint64", [[1], [2**63 + 1]]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("int64", [-(2.0**63), 1.0]),
    ],
)
def test_integers_keep_every_digit(dtype, values):
    array = TensorSpec("x", np.shape(values), dtype).check(values)
    assert (array.dtype, array.tolist()) == (dtype, values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["text"], "text"),
        ([1, "text"], "text"),
        (np.array(["text"], object), "text"),
        ([None, 1], "a null"),
        ([{"b64": "AAE="}], 'an object, and {"b64": ...} is for strings alone'),
        ([2**70], "integers of more than 64 bits"),
        (np.array(["text", 1], object), "values of several kinds"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_what_is_no_number_is_told_in_words(dtype, values, words):
    with pytest.raises(InvalidInputError) as caught:
        TensorSpec("x", (None,), dtype).check(values)
    assert str(caught.value) == f"Input 'x': received {words}; expected x: {dtype} (any)."


def test_values_of_any_shape_are_cast():
    spec = TensorSpec("x", (None, 2), "float32")
    assert spec.cast([1, 2, 3]).dtype == "float32"
    for value, message in (([[1], [1, 2]], "unequal length"), (["a"], "received text")):
        with pytest.raises(InvalidInputError, match=message):
            spec.cast(value)


def test_bfloat16_is_a_float_among_others():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    for dtype in ("float32", "float16", "bfloat16"):
        assert TensorSpec("x", (2,), dtype).check(array).tolist() == [1.5, -2]
    assert TensorSpec("x", (2,), "int8").check(array[1:].repeat(2)).tolist() == [-2, -2]
    with pytest.raises(InvalidInputError, match="can't all be int8"):
        TensorSpec("x", (2,), "int8").check(array)


def test_strings_of_any_kind_are_strings():
    spec = TensorSpec("text", (None,), "object")
    for value in (["a", "bc"], np.array([b"a", b"bc"]), np.array(["a", "bc"], object), []):
        array = spec.check(value)
        assert (array.dtype, array.tolist()) == (object, list(value))
    with pytest.raises(InvalidInputError, match="dtype int64, whose values can't all be text"):
        spec.check([1, 2])
    with pytest.raises(InvalidInputError, match="received text"):
        TensorSpec("x", (None,), "float32").check(["1"])


def test_an_empty_batch_is_a_batch():
    assert ONE_INPUT.bind(np.zeros((0, 2)))["image"].shape == (0, 2)


def test_several_inputs_come_by_name_or_in_order():
    ids, mask = [[1, 2]], [[True, False]]
    by_name = TWO_INPUTS.bind({"mask": mask, "ids": ids})
    in_order = TWO_INPUTS.bind([ids, mask])
    for name in ("ids", "mask"):
        np.testing.assert_array_equal(by_name[name], in_order[name])


@pytest.mark.parametrize("values", [{"ids": [[1]]}, {"ids": [[1]], "mask": [[True]], "x": 1}])
def test_missing_and_unknown_names_are_listed(values):
    with pytest.raises(InvalidInputError, match=r"missing .* unknown"):
        TWO_INPUTS.bind(values)


def test_one_array_for_two_inputs_is_refused():
    with pytest.raises(InvalidInputError, match="sequence of 2 arrays"):
        TWO_INPUTS.bind(np.zeros((2, 2)))


def test_inputs_of_different_batch_sizes_are_refused():
    with pytest.raises(InvalidInputError, match="differ in batch size"):
        TWO_INPUTS.bind({"ids": [[1], [2]], "mask": [[True]]})


sizes = st.lists(st.one_of(st.none(), st.integers(1, 9)), max_size=4).map(tuple)
specs = st.builds(TensorSpec, st.text(min_size=1), sizes, st.sampled_from(["float32", "int64"]))


@given(st.builds(Signature, st.tuples(specs, specs), st.tuples(specs)))
def test_a_signature_comes_back_from_its_dict(signature):
    assert Signature.from_dict(signature.to_dict()) == signature


def test_a_printed_signature_shows_inputs_and_outputs():
    tokens, scores = (
        TensorSpec("tokens", (None, None), "int32", 9),
        TensorSpec("y", (None, 2), "i4"),
    )
    assert str(Signature((tokens,), (scores, scores))) == (
        "tokens: int32 (any, any) from 0 to 8 -> y: i4 (any, 2); y: i4 (any, 2)"
    )


def test_a_value_beyond_the_vocabulary_is_named_with_its_place_and_the_range():
    spec = TensorSpec("ids", (None, None), "int32", vocabulary_size=100)
    assert spec.check([[0, 99]]).tolist() == [[0, 99]]
    assert spec.check(np.zeros((0, 1), "int32")).shape == (0, 1)
    for value in (100, -1):
        with pytest.raises(InvalidInputError) as caught:
            spec.check([[1, 2], [3, value]])
        assert str(caught.value) == (
            f"Input 'ids': received {value} at index (1, 1); expected ids: int32 (any, any) "
            "from 0 to 99."
        )


@pytest.mark.parametrize("values", [[[float("nan")]], [[-0.5]], [[100.0]]])
def test_a_vocabulary_holds_for_floats_too(values):
    with pytest.raises(InvalidInputError, match=r"at index \(0, 0\)"):
        TensorSpec("ids", (None, None), "float32", vocabulary_size=100).check(values)


def test_a_vocabulary_is_kept_in_a_dict_and_left_out_where_there_is_none():
    spec = TensorSpec("ids", (None, None), "int32", vocabulary_size=100)
    assert TensorSpec.from_dict(spec.to_dict()) == spec
    assert TWO_INPUTS.inputs[0].to_dict().keys() == {"name", "shape", "dtype"}


@pytest.mark.parametrize("shape", [(1, 0), (0, 0), (2, 0)])
def test_an_empty_axis_beside_the_batch_is_refused(shape):
    with pytest.raises(InvalidInputError, match=r"whose axis 1 is empty; .*at least one value"):
        TWO_INPUTS.inputs[0].check(np.zeros(shape, "int32"))


def test_a_model_whose_axis_is_always_empty_gets_it():
    assert TensorSpec("x", (None, 0), "float32").check(np.zeros((2, 0))).shape == (2, 0)


def test_a_misspelt_input_is_named_with_the_nearest_one():
    with pytest.raises(InvalidInputError) as caught:
        TWO_INPUTS.bind({"idz": [[1]], "mask": [[True]]})
    assert str(caught.value) == (
        "Inputs by name: missing ['ids'], unknown ['idz']; expected ['ids', 'mask']. "
        "Did you mean 'ids' instead of 'idz'?"
    )
