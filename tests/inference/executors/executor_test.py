from keras_deepseek.inference import Executor
from keras_deepseek.inference.executors.executor import ClosingExecutor


def test_whatever_has_a_signature_and_runs_is_an_executor(doubler):
    assert isinstance(doubler, Executor)
    assert not isinstance(object(), Executor)


def test_one_that_can_be_closed_holds_something(doubler):
    assert not isinstance(doubler, ClosingExecutor)
    doubler.close = lambda: None
    assert isinstance(doubler, ClosingExecutor)
