"""OpenAI's API as raw HTTP, by what its clients send and need."""

import json
import socket
import threading
import time

import pytest

from tests.oracles.fake_row_model import ByteTokenizer
from tests.oracles.served_text import ChatTokenizer, read_events, serve_text

pytest.importorskip("uvicorn")

USER = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = (
    'Let me look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)


@pytest.fixture
def serve(doubler):
    """Returns `serve_text` beside a model of tensors."""

    def serve(*arguments, **options):
        return serve_text(*arguments, tensor_model=doubler, **options)

    return serve


def test_a_conversation_is_answered(serve):
    with serve("Fine.") as (client, text):
        answered = client.chat("Hi", model="tiny")
        content = answered.content
        assert content.pop("id").startswith("chatcmpl-")
        assert time.time() - 60 < content.pop("created") <= time.time()
        assert (answered.status, content) == (
            200,
            {
                "object": "chat.completion",
                "model": "tiny",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "Fine."},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": len(text.prompts[0].encode()),
                    "completion_tokens": 6,
                    "total_tokens": len(text.prompts[0].encode()) + 6,
                },
            },
        )
        assert text.prompts == ["<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"]


def test_a_streamed_conversation_begins_with_the_role_and_ends_with_a_reason(serve):
    with serve("Fine.") as (client, _):
        answered = client.chat(stream=True)
        events = read_events(answered)
        assert answered.body.endswith(b"data: [DONE]\n\n")
    heads = [{key: event[key] for key in ("id", "object", "created", "model")} for event in events]
    assert heads == [heads[0]] * len(events)
    assert heads[0]["object"] == "chat.completion.chunk"
    assert not any("usage" in event for event in events)
    choices = [event["choices"][0] for event in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"].get("content") for choice in choices[1:-1]] == list("Fine.")
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["stop"]


def test_usage_comes_last_or_in_each_chunk_if_asked_for(serve):
    with serve("Fine.") as (client, text):
        *events, last = read_events(
            client.chat(stream=True, stream_options={"include_usage": True})
        )
        length = len(text.prompts[0].encode())
        assert [event["usage"] for event in events] == [None] * len(events)
        assert last["choices"] == []
        usage = {"prompt_tokens": length, "completion_tokens": 6, "total_tokens": length + 6}
        assert last["usage"] == usage
        options = {"include_usage": True, "continuous_usage_stats": True}
        *events, last = read_events(client.complete(stream=True, stream_options=options))
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert (counts[-1], last["usage"]["completion_tokens"]) == (6, 6)


@pytest.mark.parametrize(
    ("style", "fields", "reasons"),
    [
        ("v3.2", {}, False),
        ("v3.2", {"chat_template_kwargs": {"thinking": True}}, True),
        ("v3.2", {"chat_template_kwargs": {"enable_thinking": True}}, True),
        ("v3.2", {"thinking": {"type": "enabled"}}, True),
        ("v3.2", {"reasoning_effort": "high"}, True),
        ("v3.2", {"reasoning_effort": "none"}, False),
        ("v4", {}, True),
        ("v4", {"reasoning_effort": "none"}, False),
        ("v4", {"reasoning_effort": "medium"}, True),
        ("v4", {"thinking": {"type": "disabled"}}, False),
        ("v4.1", {"chat_template_kwargs": {"reasoning_effort": 10}}, True),
    ],
)
def test_reasoning_is_asked_for_as_vllm_and_deepseek_name_it(serve, style, fields, reasons):
    with serve("Hm.</think>Yes.", ChatTokenizer(style)) as (client, text):
        message = client.chat(**fields).content["choices"][0]["message"]
        assert text.prompts[0].endswith("<think>" if reasons else "</think>")
    assert ("reasoning" in message) == reasons


def test_reasoning_comes_under_both_names(serve):
    thinking = {"chat_template_kwargs": {"thinking": True}}
    with serve("Hm.</think>Yes.") as (client, _):
        message = client.chat(**thinking).content["choices"][0]["message"]
        assert message == {
            "role": "assistant",
            "content": "Yes.",
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
        }
        deltas = [
            event["choices"][0]["delta"]
            for event in read_events(client.chat(**thinking, stream=True))
        ]
    for name, text in (("reasoning", "Hm."), ("reasoning_content", "Hm."), ("content", "Yes.")):
        assert "".join(delta.get(name, "") for delta in deltas) == text


def test_earlier_reasoning_is_read_under_both_names(serve):
    with serve() as (client, text):
        for name in ("reasoning", "reasoning_content"):
            messages = [
                *USER,
                {"role": "assistant", "content": None, name: "Hm.", "tool_calls": [call("a")]},
                {"role": "tool", "tool_call_id": "a", "content": "Sun"},
            ]
            fields = {"messages": messages, "chat_template_kwargs": {"thinking": True}}
            assert client.chat(**fields).status == 200
    assert all("<think>Hm.</think>" in prompt for prompt in text.prompts)


def call(call_id):
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    return {"id": call_id, "type": "function", "function": function}


def test_calls_of_tools_come_whole_and_in_pieces(serve):
    with serve(CALL) as (client, text):
        choice = client.chat(tools=[WEATHER], tool_choice="auto").content["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me look."
        (tool_call,) = choice["message"]["tool_calls"]
        assert tool_call["function"]["name"] == "weather"
        assert json.loads(tool_call["function"]["arguments"]) == {"city": "Paris"}
        assert '"weather"' in text.prompts[0]
        events = read_events(client.chat(tools=[WEATHER], stream=True))
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    pieces = [
        piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    first, *rest = pieces
    assert (first["index"], first["type"]) == (0, "function")
    assert first["id"].startswith("call_")
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert all(piece.keys() == {"index", "function"} for piece in rest)
    arguments = "".join(piece["function"]["arguments"] for piece in rest)
    assert json.loads(arguments) == {"city": "Paris"}


def test_tools_that_must_not_be_called_are_not_shown(serve):
    with serve() as (client, text):
        client.chat(tools=[WEATHER], tool_choice="none")
    assert "weather" not in text.prompts[0]


def test_a_leading_developer_is_the_system(serve):
    with serve() as (client, text):
        client.chat(messages=[{"role": "developer", "content": "Be kind."}, *USER])
    assert text.prompts[0].startswith("<｜begin▁of▁sentence｜>Be kind.<｜User｜>Hi")


def test_a_response_format_is_a_part_of_the_prompt(serve):
    schema = {"type": "object", "title": "Place"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    with serve() as (client, text):
        assert client.chat(response_format=form).status == 200
        assert client.chat(response_format={"type": "json_object"}).status == 200
        assert client.chat(response_format={"type": "text"}).status == 200
    assert ["Place" in prompt for prompt in text.prompts] == [True, False, False]
    assert ["Response Format" in prompt for prompt in text.prompts] == [True, True, False]


def test_log_probabilities_of_a_conversation_have_as_many_alternatives_as_asked(serve):
    with serve("Ab") as (client, _):
        content = client.chat(logprobs=True, top_logprobs=2).content["choices"][0]["logprobs"]
        first, second, end = content["content"]
        assert first == {
            "token": "A",
            "logprob": pytest.approx(-0.65),
            "bytes": [65],
            "top_logprobs": [
                {"token": "A", "logprob": pytest.approx(-0.65), "bytes": [65]},
                {"token": "B", "logprob": pytest.approx(-1.65), "bytes": [66]},
            ],
        }
        assert (second["token"], end["token"]) == ("b", "<end>")
        events = read_events(client.chat(logprobs=True, stream=True))
        streamed = [
            entry["token"]
            for event in events
            for entry in (event["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert streamed == ["A", "b", "<end>"]


def test_several_choices_and_prompts_are_numbered(serve):
    with serve("ab") as (client, _):
        choices = client.chat(n=3).content["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        content = client.complete(["x", "yz"], n=2, echo=True).content
        texts = [(choice["index"], choice["text"]) for choice in content["choices"]]
        assert texts == [(0, "xab"), (1, "xab"), (2, "yzab"), (3, "yzab")]
        assert content["usage"]["prompt_tokens"] == 3
        assert content["usage"]["completion_tokens"] == 12
        texts, reasons = dict.fromkeys(range(4), ""), {}
        for event in read_events(client.complete([[120], [121]], n=2, stream=True)):
            choice = event["choices"][0]
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
        assert texts == dict.fromkeys(range(4), "ab")
        assert reasons == dict.fromkeys(range(4), "stop")


@pytest.mark.parametrize(
    "fields",
    [{"stop": "do"}, {"stop": ["x", "do"]}, {"max_tokens": 4}, {"max_completion_tokens": 4}],
)
def test_an_answer_ends_where_it_is_told(serve, fields):
    with serve("How do you do?") as (client, _):
        choice = client.chat(**fields).content["choices"][0]
        assert choice["message"]["content"] == "How "
        assert choice["finish_reason"] == ("stop" if "stop" in fields else "length")


def test_the_end_token_can_be_ignored(serve):
    with serve("ab") as (client, _):
        content = client.complete(ignore_eos=True, max_tokens=30).content
    assert content["usage"]["completion_tokens"] == 30
    assert content["choices"][0]["finish_reason"] == "length"


def test_null_is_not_given_and_unknown_fields_are_ignored(serve):
    names = (
        "seed logprobs top_logprobs frequency_penalty n stop stream stream_options tools user "
        "tool_choice response_format max_tokens logit_bias chat_template_kwargs model "
        "reasoning_effort"
    )
    unknown = {"parallel_tool_calls": True, "store": False, "metadata": {}, "made_up": [1]}
    with serve("Fine.") as (client, _):
        content = client.chat(**dict.fromkeys(names.split()), **unknown).content
        assert content["choices"][0]["message"]["content"] == "Fine."
        content = client.complete(**dict.fromkeys(names.split()), suffix=None, echo=None).content
        assert content["choices"][0]["text"] == "Fine."


def test_a_json_answer_is_given_whatever_is_accepted(serve):
    with serve() as (client, _):
        body = json.dumps({"messages": USER, "stream": True})
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        answered = client.ask("POST", "/v1/chat/completions", body, headers)
        assert answered.headers["Content-Type"] == "text/event-stream"


CHAT_FAULTS = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (
        {"messages": [*USER, {"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[1].content[0].type",
    ),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [WEATHER], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"reasoning_effort": "a bit"}, "reasoning_effort"),
    ({"thinking": {"type": "maybe"}}, "thinking.type"),
    ({"chat_template_kwargs": {"thinking": "yes"}}, "chat_template_kwargs.thinking"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"n": 10**9}, "n"),
    ({"n": 1e9}, "n"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_completion_tokens": 10**9}, "max_completion_tokens"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stop": [str(number) for number in range(10_000)]}, "stop"),
    ({"stop": [3]}, "stop"),
    ({"logit_bias": {str(number): 1 for number in range(129_280)}}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"model": 3}, "model"),
    ({"model": "x" * 1000}, "model"),
    ({"priority": 1.5}, "priority"),
    ({"seed": "a"}, "seed"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    ({"messages": [{"role": "user", "content": ""}] * 5000}, "messages"),
]


@pytest.mark.parametrize(("fields", "field"), CHAT_FAULTS)
def test_an_error_names_the_field_of_a_chat(serve, fields, field):
    with serve() as (client, text):
        answered = client.chat(**fields)
        assert answered.status == 400, answered.content
        error = answered.content["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", field)
        assert len(error["message"]) < 1000
        assert text.prompts == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": [[1], [1.5]]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40], "echo": True}, "prompt"),
        ({"prompt": [1] * 1_000_000}, "prompt"),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": ["x"] * 2000}, "prompt"),
        ({"prompt": ["x"] * 1000, "n": 128}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_an_error_names_the_field_of_a_completion(serve, fields, field):
    with serve() as (client, text):
        answered = client.complete(**{"prompt": "Hi", **fields})
        assert answered.status == 400, answered.content
        error = answered.content["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", field)
        assert len(error["message"]) < 1000
        assert text.prompts == []


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
        answered = client.complete(["a"] * 20)
        assert answered.status == 429
        assert int(answered.headers["Retry-After"]) >= 1
        error = answered.content["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        text.model.release()
        assert client.complete("a").status == 200  # Those of the refused request are gone.


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


def test_a_template_gets_its_variables_and_its_model_s_reasoning_is_split_off(serve):
    tokenizer = ChatTokenizer(reasons=True)
    with serve("Hm.</think>Yes.", tokenizer) as (client, text):
        messages = [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ]
        fields = {"template": "other", "messages": 3, "thinking": True, "depth": 2}
        answered = client.chat(messages=messages, chat_template_kwargs=fields)
        message = answered.content["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
        assert text.prompts == ["<system>Be kind.<user>a\nb<assistant><think>\n"]
        assert tokenizer.variables == {"thinking": True, "enable_thinking": True, "depth": 2}
        assert client.chat().content["choices"][0]["message"]["content"] == "Hm.Yes."


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [WEATHER]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_a_template_refuses_what_it_can_t_carry(serve, fields, field):
    with serve("<b>", ChatTokenizer()) as (client, _):
        answered = client.chat(**fields)
        assert (answered.status, answered.content["error"]["param"]) == (400, field)
        assert client.chat(tools=[], tool_choice="none").content["choices"][0]["message"] == {
            "role": "assistant",
            "content": "<b>",
        }


def test_a_model_without_a_chat_format_completes_only(serve):
    with serve("Fine.", has_chat=False) as (client, _):
        answered = client.chat()
        assert (answered.status, answered.content["error"]["param"]) == (400, "messages")
        assert "/v1/completions" in answered.content["error"]["message"]
        content = client.complete().content
        assert content["object"] == "text_completion"
        assert content["id"].startswith("cmpl-")
        assert content["choices"] == [
            {"index": 0, "text": "Fine.", "logprobs": None, "finish_reason": "stop"}
        ]


def test_a_completion_has_sixteen_tokens_unless_told(serve):
    with serve("x" * 100) as (client, _):
        assert client.complete().content["choices"][0]["text"] == "x" * 16


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
def test_a_prompt_is_scored_as_lm_eval_reads_it(serve, prompt):
    """It takes `[context:-1]` of each list, and is greedy if no alternative is above the token."""
    settings = {"echo": True, "logprobs": 1, "max_tokens": 1, "seed": 1234, "temperature": 0}
    with serve("d") as (client, _):
        choice = client.complete(prompt, **settings).content["choices"][0]
        details = choice["logprobs"]
        assert choice["text"] == "abcd"
        assert details["tokens"] == list("abcd")
        assert details["text_offset"] == [0, 1, 2, 3]
        assert details["token_logprobs"] == [None, *map(pytest.approx, [-0.98, -0.99, -1.0])]
        assert details["top_logprobs"][0] is None
        for value, best in zip(
            details["token_logprobs"][1:], details["top_logprobs"][1:], strict=True
        ):
            assert max(best.values()) == value
        events = read_events(client.complete(prompt, **settings, stream=True))
        choices = [event["choices"][0] for event in events]
        assert "".join(choice["text"] for choice in choices) == "abcd"
        streamed = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
        assert (streamed, offsets) == (list("abcd"), [0, 1, 2, 3])
        answered = client.complete(prompt, **{**settings, "max_tokens": 0}).content
        assert answered["choices"][0]["logprobs"]["tokens"] == list("abc")
        assert answered["usage"]["completion_tokens"] == 0


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
        assert text == "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"
        assert client.post("/detokenize", tokens=[]).content == {"prompt": ""}
        for path, fields, field in (
            ("/tokenize", {}, "prompt"),
            ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
            ("/detokenize", {"tokens": "a"}, "tokens"),
            ("/detokenize", {}, "tokens"),
        ):
            answered = client.post(path, **fields)
            assert (answered.status, answered.content["error"]["param"]) == (400, field)


def test_long_texts_are_tokenized_on_a_thread(serve):
    tokenizer = ChatTokenizer("v3.2")
    with serve("a", tokenizer, max_length=2**16) as (client, _):
        client.chat("x" * 2**15)
        assert all(name.startswith("parse-bodies") for name in tokenizer.threads)


def test_a_half_character_is_no_broken_answer(serve):
    with serve("né") as (client, _):
        events = read_events(client.complete(stream=True, logprobs=0))
        texts = [event["choices"][0]["text"] for event in events]
        assert "".join(texts) == "né"
        assert ByteTokenizer().detokenize([0xC3]) == "�"
        tokens = [token for e in events for token in e["choices"][0]["logprobs"]["tokens"]]
        assert tokens == ["n", "�", "�", "<end>"]
