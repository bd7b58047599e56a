from keras_deepseek.inference import Executor


def test_whatever_has_a_signature_and_runs_is_an_executor(doubler):
    assert isinstance(doubler, Executor)
    assert not isinstance(object(), Executor)
