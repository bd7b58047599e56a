import contextlib
import json
import queue
import threading

import numpy as np
import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.grpc import open_inference_stream
from keras_deepseek.inference.monitoring.access_log import LOGGER
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.tensor_bytes import to_bytes

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")


def request(value, name="double"):
    message = new_message("inference.ModelInferRequest", model_name=name, id=str(value))
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    message.raw_input_contents.append(to_bytes(np.full((1, 2), value, "float32")))
    return message.SerializeToString()


def open_stream(client, requests, timeout=60):
    """Returns an iterator of a stream's answers; `None` ends the requests of a queue."""
    if isinstance(requests, queue.Queue):
        requests = iter(requests.get, None)
    stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    return stream(iter(requests), timeout=timeout)


def read(answer):
    message = parse_message("inference.ModelStreamInferResponse", answer)
    if message.error_message:
        return message.infer_response.id, message.error_message
    raw = message.infer_response.raw_output_contents[0]
    return message.infer_response.id, float(np.frombuffer(raw, "float32")[0])


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler, name="double", warm_up=False) as engine:
        yield serve_grpc(engine)


def test_the_requests_of_a_stream_share_batches_and_are_answered_in_their_order(client, doubler):
    stream = open_stream(client, map(request, range(500)))
    assert [read(answer) for answer in stream] == [
        (str(number), 2.0 * number) for number in range(500)
    ]
    assert len(doubler.sizes) < 500


def test_one_that_fails_is_told_so_and_the_stream_goes_on(client, caplog):
    requests = [request(1), b"\xff", request(2, "other"), request(-1), request(3)]
    answers = list(map(read, open_stream(client, requests)))
    assert answers[0] == ("1", 2.0)
    assert answers[1][0] == ""
    assert "not a valid inference.ModelInferRequest message" in answers[1][1]
    assert answers[2] == ("2", "There is no model 'other'; those served are ['double'].")
    failed = "The model failed with ArithmeticError; see the server's log."
    assert answers[3:] == [("-1", failed), ("3", 6.0)]
    assert "a row starts with -1" in caplog.text


def note_each(monkeypatch, target, name):
    """Returns a semaphore that is released after each call of a method."""
    called, method = threading.Semaphore(0), getattr(target, name)

    def call(*arguments, **options):
        result = method(*arguments, **options)
        called.release()
        return result

    monkeypatch.setattr(target, name, call)
    return called


def test_no_more_are_read_than_may_wait(client, doubler, monkeypatch):
    monkeypatch.setattr(open_inference_stream, "MAX_WAITING", 3)
    accepted = note_each(monkeypatch, client.engine, "dispatch_async")
    doubler.hold()
    stream = open_stream(client, map(request, range(20)))
    for _ in range(5):  # One is being answered, three wait, and one more was read.
        assert accepted.acquire(timeout=60)
    assert doubler.entered.wait(60)
    assert not accepted.acquire(timeout=0.05)
    doubler.release()
    assert len(list(stream)) == 20


def test_a_stream_that_is_cancelled_takes_its_requests_out_of_the_queue(
    client, doubler, monkeypatch
):
    batcher = client.engine.find()._batcher
    accepted = note_each(monkeypatch, batcher, "submit")
    cancelled = note_each(monkeypatch, batcher, "cancel")
    doubler.hold()
    requests = queue.Queue()
    requests.put(request(1))
    stream = open_stream(client, requests)
    assert doubler.entered.wait(60)
    for value in (7, 8, 9):
        requests.put(request(value))
    for _ in range(4):
        assert accepted.acquire(timeout=60)
    stream.cancel()
    for _ in range(4):
        assert cancelled.acquire(timeout=60)
    requests.put(None)
    doubler.release()
    assert client.engine.predict([[2, 2]]).tolist() == [[4, 4]]
    assert not {7, 8, 9} & set(doubler.rows_seen)


def test_a_stopping_server_answers_what_it_read_and_closes_the_stream(client, doubler, monkeypatch):
    accepted = note_each(monkeypatch, client.engine, "dispatch_async")
    doubler.hold()
    requests = queue.Queue()
    for value in (1, 2):
        requests.put(request(value))
    stream = open_stream(client, requests)
    for _ in range(2):
        assert accepted.acquire(timeout=60)
    stopping = threading.Thread(target=client.server.stop)
    stopping.start()
    doubler.release()
    assert [read(next(stream)), read(next(stream))] == [("1", 2.0), ("2", 4.0)]
    with pytest.raises(grpc.RpcError, match="The server is stopping") as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    requests.put(None)
    stopping.join(60)
    assert not stopping.is_alive()


def test_the_stream_s_deadline_is_that_of_its_requests(client, doubler):
    engine = client.engine
    timeouts, dispatch = [], engine.dispatch_async

    def note(bind, trace, **options):
        timeouts.append(options["timeout"])
        return dispatch(bind, trace, **options)

    engine.dispatch_async = note
    doubler.hold()
    stream, errors = open_stream(client, [request(1), request(2)], timeout=0.5), []
    with contextlib.suppress(grpc.RpcError):
        errors += [read(answer)[1] for answer in stream]
    doubler.release()
    # gRPC ends the stream, or the engine was faster, and has told it of each request.
    assert stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED or len(errors) == 2
    assert all("deadline" in text for text in errors), errors
    assert len(timeouts) == 2
    assert all(0 < timeout < 0.6 for timeout in timeouts)  # gRPC rounds it up.


def test_each_request_of_a_stream_is_counted_and_logged(doubler, serve_grpc, caplog):
    with ServingEngine(doubler, name="double", warm_up=False) as engine:
        client = serve_grpc(engine, access_log=True)
        requests = [request(1), b"\xff", request(2, "other"), request(-1), request(3)]
        stream = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = stream(iter(requests), metadata=(("x-request-id", "all"),), timeout=60)
        sizes = [len(answer) for answer in answers]
        assert ("x-request-id", "all") in answers.trailing_metadata()
        client.server.stop()
        protocol, call = "open_inference_grpc", "ModelStreamInfer"
        assert engine.monitor.answers() == {
            (("double", "1", protocol, call), "OK"): 2,
            (("", "", protocol, call), "INVALID_ARGUMENT"): 1,
            (("", "", protocol, call), "NOT_FOUND"): 1,
            (("double", "1", protocol, call), "INTERNAL"): 1,
        }
    assert "The model 'double' failed. Request: -1." in caplog.text
    lines = [json.loads(record.message) for record in caplog.records if record.name == LOGGER]
    assert [line["bytes"] for line in lines] == sizes
    assert [line["request_id"] for line in lines] == ["1", "all", "2", "-1", "3"]
    statuses = ["OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "OK"]
    assert [line["status"] for line in lines] == statuses
    assert {line["path"] for line in lines} == {open_inference_stream.PATH}


def test_what_a_cancelled_stream_has_read_is_counted_and_taken_out(client, doubler, monkeypatch):
    monkeypatch.setattr(open_inference_stream, "MAX_WAITING", 2)
    engine = client.engine
    batcher = engine.find()._batcher
    accepted = note_each(monkeypatch, batcher, "submit")
    cancelled = note_each(monkeypatch, batcher, "cancel")
    doubler.hold()
    stream = open_stream(client, map(request, range(20)))
    for _ in range(4):  # One is being answered, two wait, and one was read that has no room.
        assert accepted.acquire(timeout=60)
    assert doubler.entered.wait(60)
    stream.cancel()
    for _ in range(4):
        assert cancelled.acquire(timeout=60)
    doubler.release()
    client.close()
    client.server.stop()
    called = ("double", "1", "open_inference_grpc", "ModelStreamInfer")
    assert engine.monitor.answers() == {(called, "CANCELLED"): 4}
