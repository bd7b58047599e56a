import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference.models.model_options import ModelOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 0}, "`max_batch_size` must be a positive integer, received 0"),
        ({"max_queue_rows": -1}, "`max_queue_rows` must be a positive integer, received -1"),
        ({"batch_size": 64}, "above max_batch_size=32"),
        ({"replicas": True}, "`replicas` must be a positive integer, received True"),
        (
            {"max_wait": -0.001},
            "`max_wait` must be a number of seconds, 0 or more; received -0.001",
        ),
        ({"max_wait": 0.01}, "`max_wait` without a fixed `batch_size`"),
        ({"max_wait": float("nan")}, "received nan"),
        ({"target_latency": 0.0}, "`target_latency` must be a number of seconds, above 0"),
        ({"cache_entries": -1}, "`cache_entries` must be an integer of at least 0"),
        ({"isolated": "yes"}, "`isolated` must be True or False, received 'yes'"),
        ({"warm_up": "no"}, "`warm_up` must be True or False, received 'no'"),
        ({"padding": (16, 32)}, r"`padding` must be a `Padding`.* received \(16, 32\)"),
        ({"custom_objects_from": 3}, "`custom_objects_from` must be a list of module names"),
        ({"custom_objects_from": ["nothing.py"]}, "there is no such file"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        ModelOptions(**options)


def test_integers_of_numpy_become_integers_of_python():
    options = ModelOptions(
        batch_size=np.int64(4), max_batch_size=np.int64(8), isolated=np.False_, replicas=np.int64(2)
    )
    values = (options.batch_size, options.max_batch_size, options.isolated, options.replicas)
    assert values == (4, 8, False, 2)
    assert [type(value) for value in values] == [int, int, bool, int]
