"""Texts over Open Inference's stream, as clients of Triton's backend for vLLM ask for them."""

import contextlib
import json
import queue
import threading

import pytest

from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.text.sampling import SamplingOptions
from tests.inference.grpc.open_inference_stream_test import note_each, open_stream
from tests.oracles.served_text import ChatTokenizer, FakeEngine, TextModel

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")

FIVE = "Fünf."


class StreamEngine(FakeEngine):
    def find(self, name=None, version=None, label=""):
        return self.text if name == self.text.name else super().find(name, version, label)

    async def dispatch_text_async(self, encode, sampling, *, version=None, **options):
        assert version in (None, 1)
        return self.dispatch_text(encode, sampling, **options)


def request(number, *, name="tiny", parameters=(), **inputs):
    message = new_message("inference.ModelInferRequest", model_name=name, id=str(number))
    for key, value in {"text_input": "Zähle", "stream": True, **inputs}.items():
        is_flag = isinstance(value, bool)
        tensor = message.inputs.add(name=key, datatype="BOOL" if is_flag else "BYTES", shape=[1])
        if is_flag:
            tensor.contents.bool_contents.append(value)
        else:
            tensor.contents.bytes_contents.append(value.encode())
    for key, value in dict(parameters).items():
        setattr(message.parameters[key], "bool_param" if value is True else "int64_param", value)
    return message.SerializeToString()


def settings(**values):
    return json.dumps(values)


@pytest.fixture
def serve(doubler, serve_grpc):
    """Returns a function that serves a text beside a model of tensors."""
    with contextlib.ExitStack() as stack:

        def serve(answer=FIVE, **options):
            text = TextModel(answer, ChatTokenizer(), has_chat=False, max_length=4096, **options)
            text.is_text = True
            stack.callback(text.engine.close, 60)
            stack.callback(text.model.release)
            engine = stack.enter_context(FakeEngine(doubler, name="double", warm_up=False))
            engine.__class__ = StreamEngine
            engine.text = text
            return serve_grpc(engine), text

        yield serve


def read(answer):
    """Returns the id, the texts or the error, and whether it is the last."""
    message = parse_message("inference.ModelStreamInferResponse", answer)
    response = message.infer_response
    texts = [
        [text.decode() for text in output.contents.bytes_contents] for output in response.outputs
    ]
    is_last = response.parameters["triton_final_response"].bool_param
    return response.id, message.error_message or (texts[0] if texts else None), is_last


def test_a_text_comes_piece_by_piece_and_the_last_one_says_so(serve):
    client, text = serve()
    answers = list(map(read, open_stream(client, [request(1)])))
    assert [texts for _, texts, _ in answers] == [["F"], ["ü"], ["n"], ["f"], ["."], [""]]
    assert {number for number, *_ in answers} == {"1"}
    assert [is_last for *_, is_last in answers] == [False] * 5 + [True]
    assert text.prompts == ["Zähle"]


def test_a_whole_text_is_one_response_after_its_prompt(serve):
    client, _ = serve()
    without = request(2, stream=False, exclude_input_in_output=True)
    stream = open_stream(client, [request(1, stream=False), without])
    answers = sorted(map(read, stream))
    assert answers == [("1", ["ZähleFünf."], True), ("2", ["Fünf."], True)]


def test_an_empty_response_ends_the_answer_where_the_client_asks_for_it(serve):
    client, _ = serve()
    parameters = {"triton_enable_empty_final_response": True}
    answers = map(read, open_stream(client, [request(1, stream=False, parameters=parameters)]))
    assert list(answers) == [("1", ["ZähleFünf."], False), ("1", None, True)]


def test_each_response_has_a_text_of_each_choice(serve):
    client, _ = serve()
    stream = open_stream(client, [request(1, sampling_parameters=settings(n=3, max_tokens=4))])
    answers = list(map(read, stream))
    assert {len(texts) for _, texts, _ in answers} == {3}
    assert ["".join(texts) for texts in zip(*(texts for _, texts, _ in answers), strict=True)] == [
        "Fün"
    ] * 3
    assert [is_last for *_, is_last in answers].count(True) == 1


def test_texts_of_one_stream_are_written_side_by_side(serve):
    client, _ = serve("x" * 200)
    long = settings(max_tokens=150)
    stream = open_stream(client, [request(n, sampling_parameters=long) for n in range(3)])
    numbers = [number for number, *_ in map(read, stream)]
    assert sorted(numbers) == ["0"] * 150 + ["1"] * 150 + ["2"] * 150
    assert numbers != sorted(numbers)


def test_settings_may_be_the_parameters_of_the_request(serve):
    client, _ = serve()
    stream = open_stream(client, [request(1, stream=False, parameters={"max_tokens": 1})])
    assert [texts for _, texts, _ in map(read, stream)] == [["ZähleF"]]


def test_an_error_is_a_response_and_the_stream_goes_on(serve, caplog):
    client, text = serve()
    text.model.is_bad = lambda prompt: bytes(prompt) == b"bad"
    requests = [
        request(1, sampling_parameters=settings(n=0)),
        request(2, text_input="x" * 4096),
        request(3, image="x"),
        request(4, text_input="bad"),
        request(5, name="double"),
        request(6, stream=False),
    ]
    answers = {number: answer for number, answer, _ in map(read, open_stream(client, requests))}
    assert "`n` must be" in answers["1"]
    assert "The prompt has" in answers["2"]
    assert "nknown input 'image'" in answers["3"]
    assert "log" in answers["4"]
    assert "text_input" in answers["5"]
    assert answers["6"] == ["ZähleFünf."]


def test_whoever_hangs_up_cancels_the_texts(serve, monkeypatch):
    client, text = serve("x" * 5000)
    arrived = note_each(monkeypatch, client.engine.monitor, "arrive")
    ended = note_each(monkeypatch, client.engine.monitor, "end")
    text.model.hold("decode", 5)
    requests = queue.Queue()
    for number in range(3):
        requests.put(request(number, sampling_parameters=settings(max_tokens=4000)))
    stream = open_stream(client, requests)
    assert read(next(stream))[1] == ["x"]
    assert text.model.is_held.wait(60)
    for _ in range(3):
        assert arrived.acquire(timeout=60)
    stream.cancel()
    requests.put(None)
    for _ in range(3):
        assert ended.acquire(timeout=60)
    text.model.release()
    assert text.engine.submit([65], SamplingOptions(max_tokens=1)).result(60).num_tokens == 1
    statistics = text.engine.statistics()
    assert statistics.outcomes["cancelled"] == 3
    assert statistics.num_tokens < 100


def test_a_stopping_server_writes_its_texts_to_the_end(serve):
    client, text = serve()
    text.model.hold("decode", 2)
    requests = queue.Queue()
    requests.put(request(1))
    stream = open_stream(client, requests)
    assert read(next(stream))[1] == ["F"]
    assert text.model.is_held.wait(60)
    stopping = threading.Thread(target=client.server.stop)
    stopping.start()
    text.model.release()
    answers = [read(next(stream)) for _ in range(5)]
    assert [texts[0] for _, texts, _ in answers] == ["ü", "n", "f", ".", ""]
    with pytest.raises(grpc.RpcError, match="The server is stopping"):
        next(stream)
    requests.put(None)
    stopping.join(60)
    assert not stopping.is_alive()


def test_requests_count_once_in_the_metrics(serve):
    client, _ = serve()
    list(open_stream(client, [request(1), request(2, sampling_parameters=settings(n=0))]))
    arrivals = client.engine.monitor.arrivals()
    assert arrivals["tiny"].in_flight == 0
