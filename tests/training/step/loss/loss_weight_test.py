import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.loss.compiled_losses import (
    check_reduction,
    compute_loss_weight,
    find_reduction,
)

MASK = np.array([[True, True, False], [True, False, False]])


def masked(shape=(2, 3, 4)):
    tokens = MASK.astype("int32")
    embedding = keras.layers.Embedding(3, shape[-1], mask_zero=True)
    return embedding(ops.convert_to_tensor(tokens))


def weigh(loss, y, y_pred, sample_weight=None):
    return float(ops.convert_to_numpy(compute_loss_weight(loss, y, y_pred, sample_weight)))


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        ("mse", "sum_over_batch_size"),
        (None, "sum_over_batch_size"),
        (lambda y, y_pred: y - y_pred, "sum_over_batch_size"),
        (keras.losses.MeanSquaredError(reduction="sum"), "sum"),
        (["mse", keras.losses.MeanSquaredError(reduction="mean"), None], "sum_over_batch_size"),
    ],
)
def test_the_reduction_of_losses_is_found(loss, reduction):
    assert find_reduction(loss) == reduction


def test_losses_of_two_reductions_are_refused():
    with pytest.raises(InvalidInputError, match="with sum, sum_over_batch_size"):
        find_reduction({"a": "mse", "b": keras.losses.MeanSquaredError(reduction="sum")})


def test_a_loss_without_reduction_is_refused():
    check_reduction(["mse", None, keras.losses.MeanSquaredError()])
    with pytest.raises(InvalidInputError, match="has reduction=None: it returns a number for each"):
        check_reduction({"a": keras.losses.MeanSquaredError(reduction=None)})


def test_the_weight_without_masks_is_the_number_of_rows():
    assert weigh("mse", None, ops.ones((5, 2))) == 5.0
    assert weigh("mse", None, ops.ones((5, 2)), ops.full((5,), 3.0)) == 5.0


def test_the_weight_with_a_mask_is_the_number_of_unmasked_tokens():
    assert weigh("mse", None, masked()) == 3.0


def test_the_weight_of_a_weighted_mean_is_the_sum_of_weights():
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    assert weigh(loss, None, ops.ones((2, 4)), ops.convert_to_tensor([0.5, 2.0])) == 2.5
    assert weigh(loss, None, masked(), ops.convert_to_tensor([0.5, 2.0])) == 3.0


def test_classes_that_are_ignored_do_not_count():
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=7)
    y = np.array([[1, 7, 1], [0, 0, 7]])
    assert weigh(loss, y, ops.ones((2, 3, 4))) == 4.0
    assert weigh(loss, y[..., None], ops.ones((2, 3, 4))) == 4.0
    assert weigh({"a": loss}, {"a": y}, {"a": ops.ones((2, 3, 4))}) == 4.0
    assert weigh(loss, y, masked()) == 2.0


def test_several_outputs_with_masks_are_refused():
    with pytest.raises(InvalidInputError, match="can't weigh 2 outputs that have their own masks"):
        weigh(["mse", "mse"], None, [masked(), masked()])
