import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.models.model_options import ModelOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size=0"),
        ({"max_queue_rows": -1}, "max_queue_rows=-1"),
        ({"batch_size": 64}, "above max_batch_size=32"),
        ({"replicas": True}, "replicas=True"),
        ({"max_wait": -0.001}, "max_wait=-0.001. Expected seconds, 0 or above"),
        ({"max_wait": None}, "max_wait=None"),
        ({"max_wait": float("nan")}, "max_wait=nan"),
        ({"target_latency": 0.0}, "target_latency=0.0"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        ModelOptions(**options)
