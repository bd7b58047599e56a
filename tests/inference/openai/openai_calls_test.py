"""OpenAI's further calls, and errors, hang-ups and failures of all of them."""

import json
import socket
import threading
import time

import pytest

from tests.oracles.served_text import USER, USER_PROMPT, ChatTokenizer, read_events

pytest.importorskip("uvicorn")


def test_a_json_answer_is_given_whatever_is_accepted(serve):
    with serve() as (client, _):
        body = json.dumps({"messages": USER, "stream": True})
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        answered = client.ask("POST", "/v1/chat/completions", body, headers)
        assert read_events(answered)


def test_other_errors_have_openai_s_form_too(serve):
    with serve(server_options={"tokens": ["secret"], "max_body_bytes": 1000}) as (client, _):
        assert client.chat().status == 401
        client._headers = {"Authorization": "Bearer secret"}
        for ask, status, code, param in (
            (lambda: client.ask("POST", "/v1/completions", "no JSON"), 400, None, None),
            (lambda: client.ask("GET", "/v1/chat/completions"), 405, None, None),
            (lambda: client.chat(model="other"), 404, "model_not_found", "model"),
            (lambda: client.chat("x" * 1000), 413, "request_too_large", None),
        ):
            answered = ask()
            error = answered.content["error"]
            assert answered.status == status
            assert (error["type"], error["code"], error["param"]) == (
                "invalid_request_error",
                code,
                param,
            )
        client._headers = {"Authorization": "Bearer wrong"}
        error = client.complete().content["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert client.ask("GET", "/health").status == 200  # It needs no token.


def test_too_many_requests_are_refused_and_told_when_to_come_back(serve):
    with serve(max_waiting=1) as (client, text):
        text.model.hold()
        answers = []
        while text.engine.statistics().num_waiting < 1:
            answers.append(text.engine.submit("a", client="127.0.0.1"))
        answered = client.complete(["a"] * 20)
        assert answered.status == 429
        assert int(answered.headers["Retry-After"]) >= 1
        error = answered.content["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "it may have half of what others leave of 1 places" in error["message"]
        text.model.release()
        for answer in answers:
            answer.result(60)
        assert client.complete("a").status == 200  # Those of the refused request are gone.


@pytest.mark.parametrize("stream", [False, True])
def test_a_list_of_prompts_may_be_longer_than_the_queue(serve, stream):
    prompts = [f"{number:03}" for number in range(100)]
    with serve("ok", max_waiting=6) as (client, text):
        answered = client.complete(prompts, n=2, echo=True, stream=stream)
        assert text.engine.statistics().outcomes == {"stop": 200}
        chunks = read_events(answered) if stream else [answered.content]
        texts = [""] * 200
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            texts[choice["index"]] += choice["text"]
        assert texts == [f"{prompt}ok" for prompt in prompts for _ in range(2)]
        assert client.complete(prompts, n=4).content["error"]["param"] == "n"  # Three may wait.


def test_a_list_of_prompts_ends_with_its_first_failure(serve):
    with serve("ok", max_waiting=6) as (client, text):
        text.model.is_bad = lambda prompt: prompt[-1] == ord("b")
        assert client.complete(["a", "b"] + ["a"] * 500).status == 500
        assert text.engine.statistics().outcomes["stop"] < 50
        assert client.complete("a").status == 200


def test_a_failure_before_the_first_token_has_a_status(serve):
    with serve() as (client, text):
        for stream in (False, True):
            text.model.failures["read"] = ArithmeticError("a secret of the server")
            answered = client.chat(stream=stream)
            assert answered.status == 500
            assert answered.content["error"]["type"] == "server_error"
            assert "secret" not in answered.content["error"]["message"]
        assert client.chat().status == 200


def test_a_failure_in_a_stream_is_its_last_event(serve):
    with serve("x" * 100) as (client, text):
        text.model.hold("decode", 3)
        text.model.failures["place"] = None
        texts = []

        def fail():
            assert text.model.is_held.wait(60)
            text.model.failures["decode"] = ArithmeticError("a secret of the server")
            text.model.release()

        thread = threading.Thread(target=fail)
        thread.start()
        answered = client.chat(stream=True)
        thread.join()
        *events, last = read_events(answered)
        assert answered.status == 200
        assert last["error"]["type"] == "server_error"
        assert "secret" not in last["error"]["message"]
        texts = [event["choices"][0]["delta"].get("content", "") for event in events]
        assert "".join(texts) == "x" * (len(events) - 1)
        assert client.chat(max_tokens=3).status == 200  # On the same connection.


def test_a_client_that_hangs_up_leaves_no_row_behind(serve):
    with serve("x" * 4000) as (client, text):
        server = client.server
        for stream in (False, True):
            text.model.hold("decode", 5)
            with socket.create_connection((server.host, server.port)) as connection:
                body = json.dumps({"prompt": "Hi", "max_tokens": 3000, "stream": stream}).encode()
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(body), body)
                )
                assert text.model.is_held.wait(60)
            end = time.monotonic() + 60
            text.model.release()
            while text.engine.statistics().num_running:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert text.engine.statistics().outcomes == {"cancelled": 2}
        assert text.engine.statistics().num_tokens < 3000


def test_what_is_too_long_has_openai_s_code_and_the_client_s_field(serve):
    chat, long = "/v1/chat/completions", "x" * 5000
    with serve() as (client, _):
        for path, param, fields in (
            ("/v1/completions", "prompt", {"prompt": long}),
            ("/v1/completions", "prompt", {"prompt": [[7], [7] * 4096]}),
            ("/v1/completions", "max_tokens", {"prompt": "x", "max_tokens": 4096}),
            (chat, "max_completion_tokens", {"messages": USER, "max_completion_tokens": 4096}),
            (chat, "messages", {"messages": USER * 4096}),
            (chat, "messages", {"messages": [{"role": "user", "content": long}]}),
            ("/tokenize", "messages", {"messages": USER * 4095}),
            ("/tokenize", "prompt", {"prompt": long}),
        ):
            answered = client.post(path, **fields)
            error = answered.content["error"]
            assert (answered.status, error["param"]) == (400, param)
            assert error["code"] == "context_length_exceeded"
            assert "model's maximum context length is 4096 tokens. " in error["message"]


def test_models_are_listed(serve):
    with serve() as (client, _):
        content = client.ask("GET", "/v1/models").content
        model = {
            "id": "tiny",
            "object": "model",
            "created": 7,
            "owned_by": "keras_deepseek",
            "max_model_len": 4096,
        }
        assert content == {"object": "list", "data": [model]}
        assert client.ask("GET", "/v1/models/double").content.keys() == {"model_version_status"}


def test_texts_are_tokenized_and_back(serve):
    with serve() as (client, _):
        answered = client.post("/tokenize", model="tiny", prompt="ab", return_token_strs=True)
        assert answered.content == {
            "count": 2,
            "max_model_len": 4096,
            "tokens": [97, 98],
            "token_strs": ["a", "b"],
        }
        tokens = client.post("/tokenize", messages=USER).content["tokens"]
        text = client.post("/detokenize", tokens=tokens).content["prompt"]
        assert text == USER_PROMPT
        assert client.post("/detokenize", tokens=[]).content == {"prompt": ""}
        for path, fields, field in (
            ("/tokenize", {}, "prompt"),
            ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
            ("/detokenize", {"tokens": "a"}, "tokens"),
            ("/detokenize", {"tokens": [3, 10**6]}, "tokens"),
            ("/detokenize", {}, "tokens"),
        ):
            answered = client.post(path, **fields)
            assert (answered.status, answered.content["error"]["param"]) == (400, field)


def test_long_texts_are_tokenized_on_a_thread(serve):
    tokenizer = ChatTokenizer("v3.2")
    with serve("a", tokenizer, max_length=2**16) as (client, _):
        client.chat("x" * 2**15)
        assert all(name.startswith("parse-bodies") for name in tokenizer.threads)


def test_a_stopping_engine_answers_503(serve):
    with serve() as (client, _):
        repository = client.server.service.engine.repository
        repository.state = "closed"
        answered = client.chat()
        repository.state = "ready"
        assert answered.status == 503
        assert answered.content["error"]["type"] == "service_unavailable_error"


def test_the_first_token_is_awaited_as_long_as_the_client_waits(serve):
    with serve() as (client, text):
        text.model.hold("read")

        def release():
            while (now := text.engine.statistics()).num_waiting + now.num_reading < 2:
                time.sleep(0.001)
            text.model.release()  # To read the first prompt takes 0.1 s.

        releasing = threading.Thread(target=release)
        releasing.start()
        body = json.dumps({"prompt": ["a", "b"]})
        answered = client.ask("POST", "/v1/completions", body, {"X-Stainless-Read-Timeout": "0.05"})
        releasing.join()
        assert answered.status == 504
        assert answered.content["error"]["code"] == "deadline_exceeded"
        for seconds in ("600", "nan", "inf", "-1", "soon"):
            headers = {"X-Stainless-Read-Timeout": seconds}
            assert client.ask("POST", "/v1/completions", body, headers).status == 200
