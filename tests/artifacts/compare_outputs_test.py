import numpy as np
import pytest

from keras_deepseek.artifacts.compare_outputs import (
    TOLERANCES,
    agreements,
    compare_outputs,
    differing_places,
)
from keras_deepseek.errors import ExportError


def outputs(value, dtype="float32"):
    return [{"y": np.asarray(value, dtype)}]


def constant_outputs(expected, received=None):
    return compare_outputs(expected, received or expected).constant_outputs


def test_the_largest_difference_is_told():
    comparison = compare_outputs(outputs([1.0, 2.0]), outputs([1.0, 2.00001]))
    assert comparison.num_samples == 1
    assert comparison.largest_difference == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_what_is_beyond_the_tolerance_fails_at_every_scale(scale):
    allowed = TOLERANCES["float32"] * scale
    compare_outputs(outputs([scale, 0.0]), outputs([scale, 0.5 * allowed]))
    with pytest.raises(ExportError, match=r"Output 'y' of batch 0: differs by"):
        compare_outputs(outputs([scale, 0.0]), outputs([scale, 2 * allowed]))


def test_probabilities_of_many_classes_are_not_taken_for_nothing():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(50_000), size=2)
    compare_outputs(outputs(probabilities), outputs(probabilities))
    with pytest.raises(ExportError, match="differs by"):
        compare_outputs(outputs(probabilities), outputs(probabilities[:, ::-1]))


def test_what_rounding_leaves_is_nothing():
    compare_outputs(outputs([0.0, 1e-7]), outputs([1e-7, 0.0]))


def test_less_precision_may_differ_by_more():
    compare_outputs(outputs([1.0]), outputs([1.005]), "float16")
    compare_outputs(outputs([1.0]), outputs([1.05]), "int8")
    with pytest.raises(ExportError, match="differs by"):
        compare_outputs(outputs([1.0]), outputs([1.05]), "float16")


def test_each_output_has_a_precision_of_its_own():
    rows = np.arange(8.0, dtype="float32").reshape(4, 2)
    expected, received = [{"a": rows, "b": rows}], [{"a": rows * 1.001, "b": rows}]
    assert compare_outputs(expected, received, {"a": "float16", "b": None}).num_samples == 1
    with pytest.raises(ExportError, match="Output 'a' of batch 0: differs"):
        compare_outputs(expected, received, {"a": None, "b": "float16"})


def test_the_places_that_differ_are_told():
    expected = np.array([[1.0, np.nan, np.inf, 4.0]], "float32")
    received = np.array([[1.1, np.nan, np.inf, 4.0]], "float32")
    masks = differing_places({"y": expected}, {"y": received}, {})
    assert masks["y"].tolist() == [[True, False, False, False]]
    assert not differing_places({"y": expected}, {"y": received}, {"y": "int8"})["y"].any()
    assert differing_places({"y": expected}, {"y": expected[:, :2]}, {}) is None
    assert differing_places({"y": expected}, {"z": expected}, {}) is None
    whole = differing_places({"y": np.array([1, 2])}, {"y": np.array([1, 3])}, {})
    assert whole["y"].tolist() == [False, True]


def test_agreement_is_over_all_rows():
    expected = [{"y": np.array([[3.0, 4.0], [1.0, 0.0]])}, {"y": np.array([[0.0, 5.0]])}]
    received = [{"y": np.array([[3.0, 4.0], [0.0, 1.0]])}, {"y": np.array([[0.0, 5.0]])}]
    measures = agreements(expected, received)["y"]
    assert measures["relative_error"] == pytest.approx((2 / 51) ** 0.5)
    assert measures["same_largest"] == pytest.approx(2 / 3)
    assert agreements(expected, expected)["y"] == {"relative_error": 0.0, "same_largest": 1.0}


def test_one_value_a_row_has_no_largest():
    assert "same_largest" not in agreements([{"y": np.ones((3, 1))}], [{"y": np.ones((3, 1))}])["y"]


def test_nan_must_stand_in_the_same_place():
    compare_outputs(outputs([np.nan, 1.0]), outputs([np.nan, 1.0]))
    for received in ([1.0, np.nan], [1.0, 1.0], [np.nan, np.nan], [np.inf, 1.0]):
        with pytest.raises(ExportError, match="NaN or infinity"):
            compare_outputs(outputs([np.nan, 1.0]), outputs(received))


def test_infinities_must_have_the_same_sign():
    compare_outputs(outputs([np.inf]), outputs([np.inf]))
    with pytest.raises(ExportError, match="NaN or infinity"):
        compare_outputs(outputs([np.inf]), outputs([-np.inf]))


def test_integers_must_be_equal():
    compare_outputs(outputs([1, 2], "int32"), outputs([1, 2], "int32"))
    with pytest.raises(ExportError, match="must be equal"):
        compare_outputs(outputs([1, 2], "int32"), outputs([1, 3], "int32"))


@pytest.mark.parametrize(
    ("received", "match"),
    [
        ([{"y": np.zeros((1, 2), "float32")}], r"shape \(1, 2\); expected \(2,\)"),
        ([{"y": np.zeros(2, "float64")}], "dtype float64; expected float32"),
        ([{"z": np.zeros(2, "float32")}], r"\['z'\]; expected \['y'\]"),
        ([], "of 0 batches, expected 1"),
    ],
)
def test_shapes_dtypes_names_and_batches_must_agree(received, match):
    with pytest.raises(ExportError, match=match):
        compare_outputs(outputs([0.0, 0.0]), received)


def test_int8_is_judged_by_the_range_of_all_rows():
    expected = [{"y": np.array([[0.1]], "float32")}, {"y": np.array([[1.0], [-0.5]], "float32")}]
    received = [{"y": np.array([[0.15]], "float32")}, expected[1]]
    compare_outputs(expected, received, "int8")
    with pytest.raises(ExportError, match="of batch 0: differs by"):
        compare_outputs(expected, received, "float16")


def test_a_small_column_is_not_hidden_by_a_large_one():
    price_and_share = np.random.default_rng(0).uniform([5e5, 0.0], [1e6, 1.0], (8, 2))
    other = price_and_share.copy()
    other[:, 1] = 0.5
    compare_outputs(outputs(price_and_share), outputs(price_and_share + np.array([0.5, 1e-3])))
    for precision in (None, "float16"):
        with pytest.raises(ExportError, match="Output 'y': column 1 differs by"):
            compare_outputs(outputs(price_and_share), outputs(other), precision)
    with pytest.raises(ExportError, match="Output 'y': column 1 differs by"):
        compare_outputs(outputs(price_and_share), outputs(price_and_share * [1.0, 0.0]), "int8")


def test_a_rare_class_is_off_by_as_much_as_its_logit():
    rare = np.random.default_rng(0).uniform([0.9, 0.0], [1.0, 1e-4], (8, 2))
    other = rare * [1.0, 1.15]
    compare_outputs(outputs(rare), outputs(other), "bfloat16")
    compare_outputs(outputs(rare), outputs(other), by_column=False)
    with pytest.raises(ExportError, match="column 1"):
        compare_outputs(outputs(rare), outputs(other), "float16")


@pytest.mark.parametrize("mask", [-1e4, -65504.0, -1e9, -1e38])
@pytest.mark.parametrize("masked_rows", [1, 4, 8])
def test_masked_logits_hide_no_difference(mask, masked_rows):
    logits = np.random.default_rng(0).normal(size=(8, 10))
    logits[:masked_rows, 3] = mask
    logits[0, 4] = 2 * mask  # A causal and a padding mask, added up.
    other = np.where(logits <= mask, logits, logits + 0.01)
    arrays = [array.astype("float32") for array in (logits, other)]
    rounded = outputs(np.where(logits <= mask, logits * (1 + 1e-6), logits))
    comparison = compare_outputs(outputs(arrays[0]), rounded)
    assert (comparison.largest_difference, comparison.constant_outputs) == (0.0, ())
    assert agreements(outputs(arrays[0]), rounded)["y"]["relative_error"] == 0.0
    with pytest.raises(ExportError, match=r"differs by 0.01; 0.000\d+ is allowed"):
        compare_outputs(outputs(arrays[0]), outputs(arrays[1]))
    differing = differing_places({"y": arrays[0]}, {"y": arrays[1]}, {})["y"]
    assert np.array_equal(differing, logits > mask)
    assert agreements(outputs(arrays[0]), outputs(arrays[1]))["y"]["relative_error"] > 1e-3


def test_values_masked_elsewhere_differ():
    expected, received = np.random.default_rng(0).normal(size=(2, 4, 5))
    expected[0, 0] = received[1, 1] = -1e9
    with pytest.raises(ExportError, match="differs by 1e"):
        compare_outputs(outputs(expected), outputs(received))


def test_large_negative_numbers_that_differ_are_no_mask():
    values = np.random.default_rng(0).uniform([-2.2e6, 0.0], [-2e6, 1.0], (8, 2))
    other = np.stack([np.full(8, -2.1e6), values[:, 1]], axis=1)
    comparison = compare_outputs(outputs(values), outputs(other), "int8")
    assert comparison.constant_outputs == ("y",)


def test_an_output_that_is_a_mask_is_compared_whole():
    mask = np.where(np.tri(4), 0.0, -1e9)
    assert constant_outputs(outputs(mask)) == ()
    with pytest.raises(ExportError, match="differs by 1e"):
        compare_outputs(outputs(mask), outputs(mask.T))


def test_what_rounding_leaves_in_a_column_is_no_difference():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(8, 2)) * [1.0, 1e-7]
    compare_outputs(outputs(values), outputs(values[:, :] * [1.0, -1.0]))


def test_an_output_that_hardly_moves_is_told_from_a_constant_if_both_move_alike():
    values = 0.1 + 1e-6 * np.random.default_rng(0).normal(size=(8, 10))
    assert constant_outputs(outputs(values, "float64")) == ()
    constant = np.full_like(values, 0.1)
    assert constant_outputs(outputs(values), outputs(constant)) == ("y",)
    assert constant_outputs(outputs(constant)) == ("y",)


def test_rows_of_several_batches_tell_together():
    rows = [{"y": np.array([[value, 1.0]], "float32")} for value in (1.0, 2.0)]
    assert constant_outputs(rows) == ()
    assert constant_outputs(rows[:1]) == ("y",)


def test_integers_that_are_the_same_in_all_rows_tell_nothing():
    assert constant_outputs(outputs([1, 1], "int32")) == ("y",)
    assert constant_outputs(outputs([1, 2], "int32")) == ()


def test_each_untold_output_is_named():
    batches = [{"moves": np.arange(3.0), "stands": np.ones((3, 2)), "none": np.ones((3, 0))}]
    assert constant_outputs(batches) == ("stands", "none")


def test_an_empty_batch_has_no_difference():
    empty = outputs(np.zeros((0, 3)))
    assert compare_outputs(empty, empty).largest_difference == 0.0
