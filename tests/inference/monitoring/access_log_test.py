import contextlib
import io
import json
import logging
import os
import subprocess
import sys

import pytest

from keras_deepseek.inference.batching.batch import BatchDecision, Request
from keras_deepseek.inference.monitoring import access_log
from keras_deepseek.inference.monitoring.access_log import LOGGER, AccessLog, choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.protocols import json_text


@contextlib.contextmanager
def untouched_logger():
    """Gives the logger as nobody has set it up. Pytest adds handlers before each test begins."""
    logger = logging.getLogger(LOGGER)
    settings = logger.level, logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.NOTSET)
    try:
        yield logger
    finally:
        level, logger.handlers, logger.propagate = settings
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
        for path in ("/a\nb", "/healthz"):
            log = AccessLog()
            write(log, path)
            log.close()
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
        log = AccessLog()
        write(log)
        log.close()
        assert (stream.getvalue(), logger.level, len(logger.handlers)) == ("", logging.ERROR, 1)


def test_the_handler_of_the_command_does_not_get_the_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    package, stream = logging.getLogger("keras_deepseek"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.set_name("keras-deepseek")
    package.addHandler(handler)
    monkeypatch.setattr(package, "propagate", False)
    try:
        with untouched_logger() as logger:
            logger.propagate = True
            log = AccessLog()
            write(log)
            log.close()
    finally:
        package.removeHandler(handler)
    assert json.loads(sys.stderr.getvalue())["status"] == 200
    assert stream.getvalue() == ""


def test_an_id_that_can_be_logged_is_taken_over():
    assert choose_request_id("a-b.1") == "a-b.1"
    for offered in (None, "", "a b", "a\nb", "é", "x" * 129):
        chosen = choose_request_id(offered)
        assert chosen != offered
        assert len(chosen) == 32
    assert choose_request_id(None) != choose_request_id(None)


def test_only_ascii_is_written(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with untouched_logger():
        log = AccessLog()
        for path in ("/é\x9b31m\u2028", "/\ud800", '/"\\\r'):
            write(log, path)
        log.close()
    lines = sys.stderr.getvalue().split("\n")
    assert sys.stderr.getvalue().isascii()
    assert [json.loads(line)["path"] for line in lines[:3]] == [
        "/é\x9b31m\u2028",
        "/\ud800",
        '/"\\\r',
    ]


def test_a_model_s_name_that_is_not_ascii_is_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with untouched_logger():
        log = AccessLog()
        trace = RequestTrace("tf_serving_grpc", "Predict")
        trace.model = "café"
        log.write(trace, method="POST", path="/P", status="OK", size=2, seconds=0.1, client="::1")
        log.close()
    assert sys.stderr.getvalue().isascii()
    assert json.loads(sys.stderr.getvalue())["model"] == "café"


@pytest.mark.parametrize("has_orjson", [True, False])
def test_a_line_says_what_is_known_of_a_request(monkeypatch, rows, has_orjson):
    if has_orjson:
        pytest.importorskip("orjson", reason="orjson is not installed")
    else:
        monkeypatch.setattr(json_text, "_orjson", lambda: None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(access_log.time, "time", lambda: 1767225600.25)
    trace = RequestTrace("tf_serving", "predict")
    trace.model, trace.version, trace.request_id = "digits", "3", "mine"
    trace.request = Request(rows(1))
    trace.request.arrived = 10.0
    trace.request.decision = BatchDecision("idle", 3, 1, 0.5, 0.2, started=10.25)
    with untouched_logger():
        log = AccessLog()
        log.write(
            trace, method="POST", path="/x" * 2000, status="OK", size=7, seconds=1.5, client="::1"
        )
        log.close()
    assert json.loads(sys.stderr.getvalue()) == {
        "time": "2026-01-01T00:00:00.250Z",
        "protocol": "tf_serving",
        "method": "POST",
        "path": "/x" * 1024,
        "status": "OK",
        "bytes": 7,
        "milliseconds": 1500.0,
        "queue_milliseconds": 250.0,
        "model_milliseconds": 200.0,
        "batch_rows": 3,
        "cached": False,
        "model": "digits",
        "version": "3",
        "client": "::1",
        "request_id": "mine",
    }


class Broken(io.StringIO):
    is_broken = True

    def write(self, text):
        if self.is_broken:
            raise BrokenPipeError
        return super().write(text)


def test_lines_that_could_not_be_written_are_counted(monkeypatch):
    stream = Broken()
    monkeypatch.setattr(sys, "stderr", stream)
    with untouched_logger():
        log = AccessLog()
        for _ in range(2):  # The second time, that lines were lost is lost, too.
            for _ in range(50):
                write(log)
            log.flush()
        stream.is_broken = False
        write(log)
        log.close()
    line, report = map(json.loads, stream.getvalue().splitlines())
    assert (line["path"], report["dropped"]) == ("/healthz", 100)


def test_a_level_that_is_chosen_later_is_kept_to(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with untouched_logger() as logger:
        log = AccessLog()
        logger.setLevel(logging.WARNING)
        write(log)
        log.close()
    assert sys.stderr.getvalue() == ""


SCRIPT = """
import sys
from keras_deepseek.inference.monitoring.access_log import AccessLog
from keras_deepseek.inference.monitoring.request_trace import RequestTrace

log = AccessLog()
for number in range(int(sys.argv[1])):
    log.write(RequestTrace(), method="GET", path=f"/{number}", status=200, size=2, seconds=0.01,
              client="::1")
print("noted", flush=True)
sys.stdin.readline()
"""


def run(number, **pipes):
    call = [sys.executable, "-c", SCRIPT, str(number)]
    return subprocess.Popen(call, stdin=-1, stdout=-1, text=True, **pipes)


def test_no_line_is_lost_when_the_process_ends():
    with run(5000, stderr=-1) as process:
        _, errors = process.communicate("\n", timeout=300)
    paths = [json.loads(line)["path"] for line in errors.splitlines()]
    assert paths == [f"/{number}" for number in range(5000)]


def test_a_standard_error_that_nobody_reads_holds_up_neither_requests_nor_the_end():
    read, written = os.pipe()
    try:
        with run(100_000, stderr=written) as process:
            assert process.stdout.readline() == "noted\n"
            process.communicate("\n", timeout=300)
            assert process.returncode == 0
    finally:
        os.close(read)
        os.close(written)


def test_a_standard_error_that_is_closed_is_no_trouble():
    read, written = os.pipe()
    os.close(read)
    try:
        with run(5000, stderr=written) as process:
            assert process.communicate("\n", timeout=300)[0] == "noted\n"
            assert process.returncode == 0
    finally:
        os.close(written)
