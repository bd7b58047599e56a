"""`/v1/chat/completions` as raw HTTP, by what OpenAI's clients send and need."""

import json
import time

import pytest

from keras_deepseek.inference.openai.chat_prompt import encode_conversation
from tests.oracles.served_text import USER, USER_PROMPT, ChatTokenizer, read_events

pytest.importorskip("uvicorn")

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
        assert text.prompts == [USER_PROMPT]


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


def test_a_part_of_a_character_has_no_bytes_of_its_own(serve):
    with serve("é") as (client, _):
        first, second, end = client.chat(logprobs=True).content["choices"][0]["logprobs"]["content"]
        assert first["bytes"] is second["bytes"] is None
        assert end["bytes"] == list(b"<end>")


@pytest.mark.parametrize("is_special", [True, False])
def test_a_special_token_at_the_end_of_reasoning_is_not_skipped(serve, monkeypatch, is_special):
    tokenizer = ChatTokenizer(reasons=True)
    with serve("", tokenizer) as (_, text):
        detokenize = tokenizer.detokenize
        monkeypatch.setattr(
            tokenizer,
            "detokenize",
            lambda ids: "" if is_special and ids == [1] else detokenize(ids),
        )
        prompt = encode_conversation({"messages": USER}, text)
        assert prompt.keeps_special_tokens == is_special


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
    ({"guided_json": {"type": "object"}}, "guided_json"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"skip_special_tokens": False}, "skip_special_tokens"),
    ({"n": 2, "best_of": 3}, "best_of"),
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
