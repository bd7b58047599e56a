import base64
import json
import stat
import threading

import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.batching.batch import Request
from keras_deepseek.inference.monitoring.request_log import RequestLog, encode_array


def decode_array(content):
    """Reads an array as docs/how_to/cache_and_log_requests.md says."""
    dtype, shape, data = content["dtype"], content["shape"], content["data"]
    if dtype == "object":
        values = np.empty(len(data), object)
        values[:] = [base64.b64decode(value) for value in data]
        return values.reshape(shape)
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, np.nan]], "float32"),
        np.arange(6).reshape(2, 3)[:, ::2],
        np.zeros((0, 3), "int8"),
        np.array([True, False]),
        np.array([[b"a", b"\xff\x00"]], object),
        np.array([], object),
    ],
)
def test_an_array_is_read_as_it_was_written(array):
    again = decode_array(json.loads(json.dumps(encode_array(array))))
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(again, array)


def test_bfloat16_is_read_as_it_was_written():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    again = decode_array(encode_array(array))
    assert (again.dtype, again.tolist()) == (array.dtype, [1.5, -2.0])


def test_requests_are_written_with_their_answers(doubler, rows, tmp_path):
    path = tmp_path / "requests"
    x = rows(1, 2)
    with ServingEngine(doubler, log_requests=path, sample=1) as engine:
        engine.predict(x)
        x["x"][:] = 7  # The caller may change what is its own.
        with pytest.raises(ArithmeticError):
            engine.predict(rows(-1))
    first, second = lines(path)
    assert (first["model"], first["version"]) == ("model", 1)
    assert decode_array(first["inputs"]["x"]).tolist() == rows(1, 2)["x"].tolist()
    assert decode_array(first["outputs"]["y"])[:, 0].tolist() == [2, 4]
    assert (second["error"], "outputs" in second) == ("ArithmeticError", False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def write(log, rows, number=1, value=1):
    for _ in range(number):
        request = Request(rows(value), log.watch("m", 1, rows(value), lambda request: None))
        request.answer(0, rows(value), 1)


def test_a_sample_is_written(rows, tmp_path):
    draws = iter([0.05, 0.2, 0.99, 0.0])
    log = RequestLog(tmp_path / "a", 0.1, draw=lambda: next(draws))
    write(log, rows, 4)
    log.close()
    assert len(lines(tmp_path / "a")) == 2


def test_a_request_outside_of_the_sample_is_delivered_as_it_was(rows, tmp_path):
    log = RequestLog(tmp_path / "a", 0.1, draw=lambda: 0.5)

    def deliver(request):
        raise AssertionError

    assert log.watch("m", 1, rows(1), deliver) is deliver
    log.close()


def test_a_file_that_is_full_is_renamed_and_the_oldest_are_dropped(rows, tmp_path):
    log = RequestLog(tmp_path / "a", 1, max_bytes=1, num_files=2)
    for value in (1, 2, 3, 4):
        write(log, rows, value=value)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.1", "a.2"]
    newest_first = [lines(tmp_path / name)[0] for name in ("a", "a.1", "a.2")]
    assert [decode_array(record["inputs"]["x"])[0, 0] for record in newest_first] == [4, 3, 2]


def test_what_is_there_is_appended_to(rows, tmp_path):
    for _ in range(2):
        log = RequestLog(tmp_path / "a", 1)
        write(log, rows)
        log.close()
    assert len(lines(tmp_path / "a")) == 2


def test_a_slow_disk_holds_nobody_up(rows, tmp_path, monkeypatch):
    entered, gate = threading.Event(), threading.Event()
    log = RequestLog(tmp_path / "a", 1)
    written = log._write

    def write_slowly(entry):
        entered.set()
        assert gate.wait(60)
        written(entry)

    monkeypatch.setattr(log, "_write", write_slowly)
    write(log, rows)
    assert entered.wait(60)
    write(log, rows, 300)
    gate.set()
    log.close()
    assert log.dropped == 300 - 256
    assert len(lines(tmp_path / "a")) == 257


def test_a_full_disk_is_told_of_once_and_harms_no_request(rows, tmp_path, monkeypatch, caplog):
    log = RequestLog(tmp_path / "a", 1)

    def fail(entry):
        raise OSError("No space left on device")

    monkeypatch.setattr(log, "_write", fail)
    write(log, rows, 3)
    log.close()
    assert log.dropped == 3
    assert caplog.text.count("No space left") == 1


@pytest.mark.parametrize("sample", [0, -1, 1.5, True, "1"])
def test_a_sample_that_is_none_is_refused(sample, tmp_path):
    with pytest.raises(InvalidInputError, match="sample"):
        RequestLog(tmp_path / "a", sample)


def test_a_file_that_can_t_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't write requests"):
        RequestLog(tmp_path / "missing" / "a")
