import numpy as np
import pytest

from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.batching.future_delivery import open_future


def test_outputs_and_errors_reach_the_future():
    answer, deliver = open_future()
    Request({"x": np.zeros((1, 1))}, deliver).answer(0, {"y": 1}, 1)
    assert answer.result(timeout=0) == {"y": 1}
    answer, deliver = open_future()
    Request({"x": np.zeros((1, 1))}, deliver).fail(ArithmeticError("no"))
    with pytest.raises(ArithmeticError, match="no"):
        answer.result(timeout=0)


def test_what_comes_after_the_cancellation_is_let_go():
    answer, deliver = open_future()
    answer.cancel()
    Request({"x": np.zeros((1, 1))}, deliver).answer(0, {"y": 1}, 1)
    assert answer.cancelled()
