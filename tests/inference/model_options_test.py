import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.model_options import ModelOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_queue_rows": -1}, "max_queue_rows=-1"),
        ({"batch_size": 64}, "above max_batch_size=32"),
        ({"replicas": True}, "replicas=True"),
        ({"target_latency": 0.0}, "target_latency=0.0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        ModelOptions(**options)
