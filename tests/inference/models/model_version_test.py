import gc
import threading
import weakref

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError, Signature, TensorSpec
from keras_deepseek.inference.batching.padding import Padding
from keras_deepseek.inference.errors import ClosedError
from keras_deepseek.inference.executors.executor import Executor
from keras_deepseek.inference.models import model_version
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.version import MOST_CHARACTERS, FailedVersion
from tests.inference.conftest import DOUBLE, Doubler


class ClosingDoubler(Doubler, Executor):
    """An executor that counts how often it was closed."""

    signature = DOUBLE

    def __init__(self, is_isolated=False):
        super().__init__()
        self.closed = 0
        self._is_isolated = is_isolated

    @property
    def is_isolated(self):
        return self._is_isolated

    def close(self):
        self.closed += 1


def open_version(model, **options):
    return ModelVersion("m", 3, model, ModelOptions(**options), lambda: None)


def submit(version, value, **options):
    answered = threading.Event()
    x = np.full((1, 2), value, "float32")
    request = version.submit({"x": x}, lambda _: answered.set(), **options)
    return request, answered


def test_its_life_goes_from_loading_to_the_end(doubler):
    version = open_version(doubler, max_batch_size=2)
    assert version.state == "LOADING"
    with pytest.raises(ClosedError, match=r"Version 3 of the model 'm' is loading"):
        submit(version, 1)
    version.start()
    assert version.state == "AVAILABLE"
    assert version.signature == DOUBLE
    request, answered = submit(version, 1)
    assert answered.wait(60)
    assert request.outputs["y"].tolist() == [[2, 2]]
    version.close()
    assert version.state == "END"
    with pytest.raises(ClosedError, match="is end"):
        submit(version, 1)


def test_a_batch_of_a_fixed_size_waits_as_long_as_it_is_told(doubler):
    version = open_version(doubler, batch_size=2, max_wait=3600.0, warm_up=False)
    version.start()
    _, first = submit(version, 1)
    assert not first.wait(0.05)
    _, second = submit(version, 2)
    assert first.wait(60)
    assert second.wait(60)
    version.close()
    (decision,) = version.statistics().decisions
    assert (decision.rows, decision.reason) == (2, "full")


def test_a_warm_up_that_fails_is_the_end_and_remembered():
    class Broken(Doubler):
        def run(self, inputs):
            raise ArithmeticError("no")

    version = open_version(Broken())
    with pytest.raises(ArithmeticError):
        version.start()
    assert version.state == "END"
    assert str(version.error) == "no"


def test_what_came_from_a_path_is_closed_and_a_user_s_own_is_not(monkeypatch):
    doubler = ClosingDoubler()
    version = open_version(doubler, max_batch_size=1)
    version.start()
    version.close()
    assert doubler.closed == 0
    monkeypatch.setattr(model_version, "open_executor", lambda *_: doubler)
    version = open_version("a/path", max_batch_size=1, replicas=2)
    version.start()
    version.close()
    assert doubler.closed == 2


@pytest.mark.parametrize("isolated", [True, False])
def test_a_model_that_hangs_is_given_up_and_a_process_of_its_own_ended(
    isolated, monkeypatch, caplog
):
    hanging = ClosingDoubler(isolated)
    monkeypatch.setattr(model_version, "_open", lambda model, options: hanging)
    version = open_version("a path", warm_up=False)
    version.start()
    hanging.hold()
    request, answered = submit(version, 1)
    assert hanging.entered.wait(60)
    version.close(seconds=0.0)
    hanging.release()
    assert answered.is_set()
    assert isinstance(request.error, ClosedError)
    assert (version.state, hanging.closed) == ("END", int(isolated))
    assert "did not end in time" in caplog.text


def test_what_fails_its_warm_up_is_closed(monkeypatch):
    doubler = ClosingDoubler()
    doubler.run = lambda inputs: {}[inputs]
    monkeypatch.setattr(model_version, "open_executor", lambda *_: doubler)
    with pytest.raises(TypeError):
        open_version("a/path").start()
    assert doubler.closed == 1


def test_what_can_not_be_batched_is_refused():
    fixed = Doubler(Signature((TensorSpec("x", (8, 2), "float32"),), DOUBLE.outputs))
    with pytest.raises(NotSupportedError, match="leave the batch size open"):
        open_version(fixed)


def test_options_of_a_request_are_looked_at_before_it_waits(doubler):
    version = open_version(doubler, warm_up=False)
    version.start()
    with pytest.raises(InvalidInputError, match="timeout"):
        submit(version, 1, timeout=-1)
    with pytest.raises(InvalidInputError, match="priority"):
        submit(version, 1, priority="high")
    version.close()


def test_what_is_too_large_is_refused_before_it_is_filled():
    class Free(Doubler):
        signature = Signature(
            (TensorSpec("x", (None, None), "float32"),), (TensorSpec("y", (None, None), "float32"),)
        )

    padding = Padding(lengths=(4,), values={"x": 0}, masks="by_value")
    version = open_version(Free(), padding=padding, warm_up=False)
    version.start()
    answers = []
    with pytest.raises(InvalidInputError, match="1099511627776 rows, and at most 65536 may"):
        version.submit({"x": np.empty((2**40, 0), "float32")}, answers.append)
    version.close()
    assert answers == []


def test_every_replica_is_warmed_up():
    doublers = [ClosingDoubler(), ClosingDoubler()]
    version = open_version(doublers[0], replicas=2, max_batch_size=1)
    version._executors = doublers
    version.start()
    version.close()
    assert [doubler.sizes for doubler in doublers] == [[1, 1], [1]]


class Model:
    pass


def test_why_stays_and_nothing_that_was_there():
    model = Model()
    reference = weakref.ref(model)

    def run(model):
        raise ValueError("no", model)

    try:
        run(model)
    except ValueError as error:
        failed = FailedVersion.of(3, error)
    del model
    gc.collect()
    assert (failed.number, failed.state, failed.kind) == (3, "END", "ValueError")
    assert failed.error.startswith("ValueError: ('no', ")
    assert reference() is None


def test_of_a_long_error_the_beginning_is_kept():
    assert len(FailedVersion.of(3, ValueError("no" * MOST_CHARACTERS)).error) == MOST_CHARACTERS
