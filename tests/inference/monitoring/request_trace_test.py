import pytest

from keras_deepseek.inference.batching.batch import BatchDecision, Request
from keras_deepseek.inference.monitoring.request_trace import RequestTrace


def test_a_request_that_did_not_run_has_no_times(rows):
    trace = RequestTrace("http", "predict")
    assert (trace.queue_seconds, trace.model_seconds, trace.batch_rows) == (None, None, None)
    trace.request = Request(rows(1))
    assert (trace.queue_seconds, trace.model_seconds, trace.batch_rows) == (None, None, None)


def test_a_log_mentions_a_request_that_has_an_id():
    trace = RequestTrace()
    assert trace.log_suffix == ""
    trace.request_id = "mine-1"
    assert trace.log_suffix == " Request: mine-1."


def test_the_times_are_those_of_the_request_and_of_its_batch(rows):
    trace = RequestTrace()
    trace.request = Request(rows(1))
    trace.request.arrived = 10.0
    trace.request.decision = BatchDecision("idle", 3, 1, 0.5, 0.2, started=10.25)
    assert trace.queue_seconds == pytest.approx(0.25)
    assert (trace.model_seconds, trace.batch_rows) == (0.2, 3)
