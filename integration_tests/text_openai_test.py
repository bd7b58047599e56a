"""The openai package, and raw streams, against `keras-deepseek serve` with a language model.

The model was taught its answers (`text_model`), so that a client can be held to what it got.
"""

import contextlib
import json
import socket
import subprocess
import sys
import urllib.request

import pytest

from integration_tests.text_model import (
    CALL,
    CONTINUATION,
    GREETING,
    HELLO,
    NAME,
    PROMPT,
    RESPONSE_FORMAT,
    SECONDS,
    SUM,
    THINKING,
    THOUGHT,
    TOOL,
    WEATHER,
)

pytestmark = [
    pytest.mark.filterwarnings("default"),  # The warnings of the client are its own.
    pytest.mark.timeout(1800),  # To teach the model takes minutes on a busy machine.
]


@pytest.fixture
def url(text_server):
    return f"{text_server[0]}/v1"


def post(url, content):
    """Returns the response to a JSON request, by the standard library alone."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    return urllib.request.urlopen(request, timeout=SECONDS)


# The stream itself.


def events_of(url, **content):
    """Returns the events of a stream, each checked for its form."""
    with post(f"{url}/chat/completions", {"model": NAME, "stream": True, **content}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        blocks = response.read().decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_each_chunk_of_a_stream_is_whole(url):
    *chunks, last = events_of(
        url, messages=HELLO, temperature=0, stream_options={"include_usage": True}
    )
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 1
    usage = last["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == NAME
        assert isinstance(chunk["created"], int)
        assert chunk["id"] == chunks[0]["id"]
        assert chunk["usage"] is None
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == GREETING
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]


def test_what_clients_send_beside_it_is_ignored(url):
    extras = {"seed": None, "parallel_tool_calls": True, "ignored": [1], "stop": None, "n": None}
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    *chunks, _ = events_of(url, messages=HELLO, temperature=0, **extras, **options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] > 1


# openai


@pytest.fixture
def package(import_text_client):
    return import_text_client("openai")


@pytest.fixture
def openai(package, url):
    with package.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


def test_openai_lists_the_model_and_gets_a_clean_error_for_another_route(openai, package):
    assert [model.id for model in openai.models.list()] == [NAME]
    with pytest.raises(package.NotFoundError):
        openai.responses.create(model=NAME, input="Hi")


def test_a_client_that_waits_for_the_list_alone_is_answered(package, text_preset):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "keras_deepseek", "serve", text_preset, "--name", NAME]
    command += ["--no-grpc", "--http-port", str(port)]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}/v1"
        client = package.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=SECONDS)
        try:
            while True:
                assert server.poll() is None
                with contextlib.suppress(package.APIConnectionError):
                    if [model.id for model in client.models.list()] == [NAME]:
                        break
            answer = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0)
            assert answer.choices[0].message.content == GREETING
        finally:
            client.close()
            server.kill()


def test_openai_chats(openai):
    answer = openai.chat.completions.create(model=NAME, messages=HELLO, temperature=0)
    assert answer.choices[0].message.content == GREETING
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 1


def test_openai_streams_a_chat_and_its_helper_puts_it_together(openai):
    chunks = list(
        openai.chat.completions.create(model=NAME, messages=HELLO, temperature=0, stream=True)
    )
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == GREETING
    assert sum(map(bool, texts)) > 5
    with openai.chat.completions.stream(model=NAME, messages=HELLO, temperature=0) as events:
        kinds = [event.type for event in events]
        message = events.get_final_completion().choices[0].message
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert message.content == GREETING


@pytest.mark.parametrize("is_streamed", [False, True])
def test_openai_gets_the_reasoning_by_both_names(openai, is_streamed):
    answer = openai.chat.completions.create(
        model=NAME, messages=SUM, temperature=0, stream=is_streamed, extra_body=THINKING
    )
    if is_streamed:
        parts = [choice.delta for chunk in answer for choice in chunk.choices]
    else:
        parts = [answer.choices[0].message]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(getattr(part, name, None) or "" for part in parts) == THOUGHT
    assert "".join(part.content or "" for part in parts) == "5"


def test_openai_gets_tool_calls_whole_and_in_pieces(openai):
    options = {"model": NAME, "messages": WEATHER, "tools": [TOOL], "temperature": 0}
    choice = openai.chat.completions.create(**options).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == "I look."
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", CALL["name"])
    assert json.loads(call.function.arguments) == CALL["arguments"]
    chunks = list(openai.chat.completions.create(**options, stream=True))
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    pieces = [piece for choice in deltas for piece in choice.delta.tool_calls or []]
    assert (pieces[0].index, pieces[0].type) == (0, "function")
    assert pieces[0].id
    assert pieces[0].function.name == CALL["name"]
    arguments = "".join(piece.function.arguments or "" for piece in pieces)
    assert json.loads(arguments) == CALL["arguments"]
    assert deltas[-1].finish_reason == "tool_calls"
    with openai.chat.completions.stream(**options) as events:
        message = events.get_final_completion().choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments) == CALL["arguments"]


def test_openai_reads_an_answer_in_a_response_format(openai):
    answer = openai.chat.completions.create(
        model=NAME, messages=SUM, temperature=0, response_format=RESPONSE_FORMAT
    )
    assert json.loads(answer.choices[0].message.content) == {"total": 5}


def test_openai_completes_prompts_whole_and_in_pieces(openai):
    options = {"model": NAME, "temperature": 0, "max_tokens": 64}
    answer = openai.completions.create(prompt=PROMPT, **options)
    assert answer.choices[0].text == CONTINUATION
    stream = openai.completions.create(prompt=PROMPT, stream=True, **options)
    assert "".join(c.text for chunk in stream for c in chunk.choices) == CONTINUATION
    two = openai.completions.create(prompt=[PROMPT, PROMPT], n=2, **options)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in two.choices} == {CONTINUATION}
    cut = openai.completions.create(prompt=PROMPT, stop=", four", **options)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (" three", "stop")
    short = openai.completions.create(model=NAME, prompt=PROMPT, temperature=0, max_tokens=1)
    assert short.choices[0].finish_reason == "length"


def test_openai_gets_choices_that_differ_and_repeat_by_their_seed(openai):
    def sample(seed):
        answer = openai.chat.completions.create(
            model=NAME, messages=HELLO, n=3, temperature=20.0, seed=seed, max_tokens=8
        )
        return [choice.message.content for choice in answer.choices]

    first = sample(1)
    assert len(set(first)) == 3
    assert sample(1) == first
    assert sample(2) != first


def test_openai_gets_log_probabilities(openai):
    answer = openai.chat.completions.create(
        model=NAME, messages=HELLO, temperature=0, logprobs=True, top_logprobs=3
    )
    details = answer.choices[0].logprobs.content
    assert b"".join(bytes(detail.bytes or []) for detail in details).decode() != ""
    for detail in details:
        assert len(detail.top_logprobs) == 3
        assert detail.top_logprobs[0].logprob == detail.logprob <= 0
        assert detail.top_logprobs[0].token == detail.token
    stream = openai.chat.completions.create(
        model=NAME, messages=HELLO, temperature=0, logprobs=True, top_logprobs=3, stream=True
    )
    streamed = [
        detail
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for detail in choice.logprobs.content
    ]
    assert [detail.token for detail in streamed] == [detail.token for detail in details]


@pytest.mark.parametrize(
    ("name", "parameter", "options"),
    [
        ("NotFoundError", "model", {"model": "gpt-4"}),
        ("BadRequestError", "temperature", {"temperature": -1}),
        ("BadRequestError", "n", {"n": 10**9}),
        ("BadRequestError", "max_tokens", {"max_tokens": 10**9}),
        ("BadRequestError", "messages", {"messages": [{"role": "king", "content": "Hi"}]}),
        ("BadRequestError", "messages", {"messages": []}),
        (
            "BadRequestError",
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
        ),
        ("BadRequestError", "tools", {"tools": [{"type": "function", "function": {}}]}),
        ("BadRequestError", "messages", {"messages": [{"role": "user", "content": "a " * 5000}]}),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_openai_raises_its_error_with_the_name_of_the_field(
    openai, package, name, parameter, options, is_streamed
):
    request = {"model": NAME, "messages": HELLO, **options}
    with pytest.raises(getattr(package, name)) as caught:
        openai.chat.completions.create(**request, stream=is_streamed)
    assert (caught.value.param or "").startswith(parameter), caught.value
    assert caught.value.body["message"]


def test_openai_that_hangs_up_leaves_the_server_free(openai):
    for _ in range(3):
        stream = openai.chat.completions.create(
            model=NAME, messages=HELLO, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    test_openai_chats(openai)
