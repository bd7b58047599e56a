import os
import signal
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError
from keras_deepseek.inference import ReplicaError, ServingEngine
from keras_deepseek.inference.executors.isolated_model import (
    IsolatedModel,
    receive_message,
    send_message,
)
from tests.oracles import faulty_executor
from tests.oracles.faulty_executor import CRASHES, EXITS, FAILS, HANGS, REFUSED, START

SOURCE = "tests.oracles.faulty_executor"


def rows_of(*values):
    return {"x": np.array([[value, 0] for value in values], "float32")}


@pytest.fixture
def isolated():
    model = IsolatedModel(f"{SOURCE}:Faulty", batch_timeout=1.0)
    yield model
    model.close()


def check_answers(isolated):
    assert isolated.run(rows_of(1, 2))["y"][:, 0].tolist() == [2, 4]


def test_it_computes_in_another_process(isolated):
    assert isolated.signature == faulty_executor.Faulty.signature
    check_answers(isolated)
    assert isolated._process.pid != os.getpid()


def test_an_error_of_the_model_is_told_and_the_process_stays(isolated):
    pid = isolated._process.pid
    with pytest.raises(ReplicaError, match="ArithmeticError: a row fails"):
        isolated.run(rows_of(FAILS))
    with pytest.raises(InvalidInputError, match=r"^a row is refused$"):
        isolated.run(rows_of(REFUSED))
    check_answers(isolated)
    assert isolated._process.pid == pid


@pytest.mark.parametrize(
    ("value", "message"),
    [(EXITS, "code 7"), (CRASHES, f"code -{int(signal.SIGSEGV)}"), (HANGS, "no answer in 1 s")],
)
def test_one_that_crashes_or_hangs_is_told_and_started_anew(isolated, value, message):
    first_process = isolated._process
    with pytest.raises(ReplicaError, match=message):
        isolated.run(rows_of(value))
    assert first_process.poll() is not None
    check_answers(isolated)


def test_one_that_was_killed_between_two_batches_is_started_anew(isolated):
    isolated._process.kill()
    isolated._process.wait()
    with pytest.raises(ReplicaError, match="code -9"):
        isolated.run(rows_of(1))
    check_answers(isolated)


def test_closing_ends_the_process(isolated):
    process = isolated._process
    isolated.close()
    assert process.poll() is not None
    assert isolated.close() is None


def test_a_source_that_can_t_be_opened_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="FileNotFoundError: no such model"):
        IsolatedModel(f"{SOURCE}:refuse")
    with pytest.raises(ReplicaError, match="code 9"):
        IsolatedModel(f"{SOURCE}:leave")
    with pytest.raises(InvalidInputError, match="it does not exist"):
        IsolatedModel(tmp_path / "missing.keras")
    with pytest.raises(InvalidInputError, match="can't be sent to a separate process"):
        IsolatedModel(faulty_executor.Faulty())


def test_a_bundle_is_served_from_a_process_of_its_own(bundle_of):
    pytest.importorskip("onnxruntime")
    with ServingEngine(bundle_of("onnx").path, isolated=True, max_batch_size=2) as engine:
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("value", "message"),
    [(CRASHES, "ended with code"), (EXITS, "ended with code 7"), (HANGS, "no answer in 1 s")],
)
def test_only_the_request_that_breaks_its_process_gets_an_error(value, message):
    options = {"isolated": True, "batch_size": 3, "batch_timeout": 1.0}
    with ServingEngine(f"{SOURCE}:Faulty", **options) as engine:
        futures = [engine.submit(rows_of(number)) for number in (1, value, 2)]
        assert futures[0].result(60)["y"][0, 0] == 2
        assert futures[2].result(60)["y"][0, 0] == 4
        with pytest.raises(ReplicaError, match=message):
            futures[1].result(60)
        process = engine.find()._executors[0]._process
    assert process.poll() is not None


def test_a_model_that_is_refused_leaves_no_process(monkeypatch):
    closed, close = [], IsolatedModel.close
    monkeypatch.setattr(IsolatedModel, "close", lambda self: closed.append(close(self)))
    with pytest.raises(NotSupportedError, match="leave the batch size open"):
        ServingEngine(f"{SOURCE}:OfOneSize", isolated=True, replicas=2)
    assert len(closed) == 2


def test_a_version_that_does_not_warm_up_leaves_no_process():
    with ServingEngine(f"{SOURCE}:Faulty", isolated=True, max_batch_size=1) as engine:
        loaded = []
        add = engine.models["model"].add
        engine.models["model"].add = lambda version, share: (
            loaded.append(version),
            add(version, share),
        )
        with pytest.raises(ReplicaError, match="zeros"):
            engine.load(f"{SOURCE}:AfraidOfZeros")
        (version,) = loaded
        assert version.state == "END"
        assert all(executor._process is None for executor in version._executors)


@pytest.fixture
def killed():
    model = IsolatedModel(f"{SOURCE}:start_as_told", batch_timeout=1.0)
    model._process.kill()
    model._process.wait()
    with pytest.raises(ReplicaError, match="code -9"):
        model.run(rows_of(1))
    yield model
    model.close()


def test_one_that_does_not_start_again_is_no_fault_of_the_request(killed, monkeypatch):
    monkeypatch.setenv(START, "fails")
    with pytest.raises(ReplicaError, match="loaded again: ConnectionError: no storage"):
        killed.run(rows_of(1))
    monkeypatch.delenv(START)
    check_answers(killed)


def test_one_that_hangs_while_it_starts_is_ended(monkeypatch):
    monkeypatch.setenv(START, "hangs")
    with pytest.raises(ReplicaError, match=r"had not loaded the model in 0\.5 s"):
        IsolatedModel(f"{SOURCE}:start_as_told", start_timeout=0.5)


def test_one_that_hangs_while_it_starts_does_not_keep_the_engine_from_closing(monkeypatch):
    options = {"isolated": True, "batch_timeout": 1.0, "max_batch_size": 2}
    with ServingEngine(f"{SOURCE}:start_as_told", **options) as engine:
        executor = engine.find()._executors[0]
        monkeypatch.setenv(START, "hangs")
        with pytest.raises(ReplicaError, match=r"code 7|had not loaded"):
            engine.predict(rows_of(EXITS))
        futures = [engine.submit(rows_of(1)) for _ in range(3)]
    for future in futures:
        with pytest.raises(ReplicaError, match=r"had not loaded|did not start"):
            future.result(0)
    assert executor._process is None


def test_one_that_starts_again_still_answers_while_the_engine_closes(monkeypatch):
    options = {"isolated": True, "batch_timeout": 60.0, "max_batch_size": 2}
    with ServingEngine(f"{SOURCE}:start_as_told", **options) as engine:
        with pytest.raises(ReplicaError, match="code 7"):
            engine.predict(rows_of(EXITS))
        future = engine.submit(rows_of(1))
    assert future.result(0)["y"].tolist() == [[2, 0]]


def test_a_function_that_returns_no_executor_is_named():
    with pytest.raises(InvalidInputError, match=r"^'.*:nothing' returned a NoneType. Expected an"):
        IsolatedModel(f"{SOURCE}:nothing")


@pytest.fixture
def ends():
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


DTYPES = st.sampled_from(["float32", "float16", "int64", "uint8", "bool"])
SHAPES = hypothesis_numpy.array_shapes(min_dims=0, min_side=0, max_side=4)


@given(hypothesis_numpy.arrays(DTYPES, SHAPES), hypothesis_numpy.arrays(DTYPES, SHAPES))
def test_arrays_come_as_they_went(first, second):
    sender, receiver = socket.socketpair()
    with sender, receiver:
        send_message(sender, {"number": 3}, {"a": first, "b": second.T})
        content, arrays = receive_message(receiver)
    assert content == {"number": 3}
    for sent, received in ((first, arrays["a"]), (second.T, arrays["b"])):
        assert received.dtype == sent.dtype
        np.testing.assert_array_equal(received, sent)


def test_strings_come_as_bytes(ends):
    sender, receiver = ends
    sent = np.array([["a", b"\xff"], ["", "é"]], object)
    send_message(sender, {}, {"text": sent, "none": np.zeros((0, 2), object), "x": np.ones(2)})
    _, arrays = receive_message(receiver)
    assert arrays["text"].tolist() == [[b"a", b"\xff"], [b"", "é".encode()]]
    assert (arrays["none"].shape, arrays["none"].dtype) == ((0, 2), object)
    assert arrays["x"].tolist() == [1, 1]


def test_an_end_that_is_closed_is_told(ends):
    sender, receiver = ends
    sender.sendall(b"\0\0")
    sender.close()
    with pytest.raises(EOFError):
        receive_message(receiver)


def test_silence_is_an_error_after_the_timeout(ends):
    right = ends[1]
    right.settimeout(0.01)
    with pytest.raises(TimeoutError):
        receive_message(right)
