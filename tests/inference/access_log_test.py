import contextlib
import io
import json
import logging
import sys

from keras_deepseek.inference import access_log
from keras_deepseek.inference.access_log import LOGGER, AccessLog, choose_request_id
from keras_deepseek.inference.request_trace import RequestTrace


@contextlib.contextmanager
def untouched_logger():
    """Gives the logger as nobody has set it up. Pytest adds handlers before each test begins."""
    logger = logging.getLogger(LOGGER)
    before = logger.level, logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.NOTSET)
    try:
        yield logger
    finally:
        level, logger.handlers, logger.propagate = before
        logger.setLevel(level)


def write(log, path="/healthz"):
    log.write(
        RequestTrace("http", "health"),
        method="GET",
        path=path,
        status=200,
        size=2,
        seconds=0.0125,
        client="::1",
    )


def test_lines_go_to_the_standard_error_where_nobody_has_chosen(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(access_log.time, "time", lambda: 1.5)
    with untouched_logger():
        write(AccessLog(), "/a\nb")
        write(AccessLog())
    first, second = sys.stderr.getvalue().splitlines()
    line = json.loads(first)
    assert (line["time"], line["path"]) == ("1970-01-01T00:00:01.500Z", "/a\nb")
    assert (line["milliseconds"], line["queue_milliseconds"]) == (12.5, None)
    assert json.loads(second)["client"] == "::1"


def test_a_logger_that_was_set_up_is_left_alone():
    stream = io.StringIO()
    with untouched_logger() as logger:
        logger.addHandler(logging.StreamHandler(stream))
        logger.setLevel(logging.ERROR)
        write(AccessLog())
        assert (stream.getvalue(), logger.level, len(logger.handlers)) == ("", logging.ERROR, 1)


def test_an_id_that_can_be_logged_is_taken_over():
    assert choose_request_id("a-b.1") == "a-b.1"
    for offered in (None, "", "a b", "a\nb", "é", "x" * 129):
        chosen = choose_request_id(offered)
        assert chosen != offered
        assert len(chosen) == 32
    assert choose_request_id(None) != choose_request_id(None)
