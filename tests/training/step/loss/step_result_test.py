import pytest
from keras import ops

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.gradients.batch_part import check_log_names, read_result


def test_read_result_takes_a_loss_or_a_dict():
    loss = ops.convert_to_tensor(2.0)
    assert read_result(loss) == (loss, None, {})
    result = {"loss": loss, "weight": 3.0, "soft": ops.convert_to_tensor(1.0), "count": 4}
    received_loss, weight, logs = read_result(result)
    assert (float(received_loss), weight) == (2.0, 3.0)
    assert logs == {"soft": result["soft"], "count": 4}


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (None, "must return the loss; it returned nothing"),
        ({"los": 1.0}, "or a dict with 'loss'; received a dict with 'los'"),
        (ops.ones((2,)), r"one floating-point number as the loss.*float32 of shape \(2,\)"),
        ({"loss": ops.ones((), "int32")}, "it returned int32 of shape"),
        (
            {"loss": 1.0, "each": ops.ones((3,))},
            r"must return scalars; 'each' has the shape \(3,\)",
        ),
        ({"loss": 1.0, "weight": ops.ones((2,))}, "must return scalars; 'weight' has"),
    ],
)
def test_invalid_results_are_refused(result, match):
    with pytest.raises(InvalidInputError, match=match):
        read_result(result)


def test_a_log_named_like_a_metric_is_refused():
    check_log_names({"soft": 1.0}, {"loss": 1.0, "accuracy": 1.0})
    with pytest.raises(InvalidInputError, match="`train_step` returns 'accuracy', which is also"):
        check_log_names({"soft": 1.0, "accuracy": 1.0}, {"loss": 1.0, "accuracy": 1.0})


def test_strings_are_refused():
    with pytest.raises(InvalidInputError, match="must return scalars; 'phase' is 'warm'"):
        read_result({"loss": 1.0, "phase": "warm"})
