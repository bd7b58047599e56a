import hashlib
import random

import pytest

from keras_deepseek.chat import ChatInputError, encode_chat, find_chat_style
from keras_deepseek.errors import InvalidInputError
from tests.oracles.random_chats import random_chat

USER = {"role": "user", "content": "U"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": "y", "n": 2}'}}
OTHER = {"id": "b", "type": "function", "function": {"name": "g", "arguments": {}}}
CALLS = {"role": "assistant", "content": None, "reasoning": "R", "tool_calls": [CALL, OTHER]}
RESULTS = [
    {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "of g"}]},
    {"role": "tool", "tool_call_id": "a", "content": "of f"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"title": "é"}}}
V32_CALLS = """

<｜DSML｜function_calls>
<｜DSML｜invoke name="f">
<｜DSML｜parameter name="x" string="true">y</｜DSML｜parameter>
<｜DSML｜parameter name="n" string="false">2</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="g">

</｜DSML｜invoke>
</｜DSML｜function_calls><｜end▁of▁sentence｜>"""
V32_RESULTS = """

<function_results>
<result>of f</result>
<result>of g</result>
</function_results>

"""
V4_CALLS = V32_CALLS.replace("function_calls", "tool_calls")
V41_CALLS = V4_CALLS.replace("tool_calls", "calls").replace("DSML｜", "DSML｜ ")
V4_RESULTS = """\
<｜User｜><tool_result>of f</tool_result>

<tool_result>of g</tool_result>"""

DIGESTS = {
    "v3.2": "5abaf5decbf9561a8df312d6927a5e10e9bf38c301db2a59e2032b02e9e06253",
    "v4": "5e61759dada39cc0c1868c594c8a3850a38bea6ea0cf3fc7abcef10bb9396bc6",
    "v4.1": "0f42ea647824617d9e88780d66d43cf1d9ead17e7bb4fdfd08b1230fb42464cc",
}
"""The SHA-256 of 300 random conversations as vLLM 0.33 encodes them."""


def encode(*messages, **options):
    text = encode_chat(messages, **{"style": "v3.2", **options})
    assert text.startswith("<｜begin▁of▁sentence｜>")
    return text.removeprefix("<｜begin▁of▁sentence｜>")


@pytest.mark.parametrize("style", DIGESTS)
def test_random_conversations_are_those_that_vllm_wrote(style):
    chats = (random_chat(random.Random(seed), style) for seed in range(300))
    text = "".join(encode_chat(**chat) for chat in chats)
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[style]


@pytest.mark.parametrize(("thinking", "tag"), [(False, "</think>"), (True, "<think>")])
def test_an_answer_begins_with_its_reasoning_or_without(thinking, tag):
    messages = [{"role": "system", "content": "S"}, USER]
    header = f"<｜Assistant｜>{tag}"
    assert encode(*messages, thinking=thinking) == f"S<｜User｜>U{header}"
    assert encode(*messages, thinking=thinking, style="v4") == f"S<｜User｜>U{header}"
    begun = encode(*messages, thinking=thinking, add_generation_prompt=False)
    assert begun == "S<｜User｜>U"


@pytest.mark.parametrize(
    ("style", "calls", "results"),
    [
        (
            "v3.2",
            V32_CALLS,
            V32_RESULTS + "<think>",
        ),
        (
            "v4",
            V4_CALLS,
            V4_RESULTS + "<｜Assistant｜><think>",
        ),
        (
            "v4.1",
            V41_CALLS,
            V4_RESULTS + "<｜Assistant｜><think>",
        ),
    ],
)
def test_calls_and_their_results_in_the_order_of_the_calls(style, calls, results):
    text = encode(USER, CALLS, *RESULTS, style=style, thinking=True, tools=[TOOL])
    assert '{"name": "f", "parameters": {"type": "object"}}' in text
    turn = text.partition("<｜User｜>U")[2]
    assert turn == f"<｜Assistant｜><think>R</think>{calls}{results}"


def test_tools_and_a_format_are_at_the_end_of_the_first_system_message():
    system = {"role": "system", "content": "S"}
    text = encode(USER, system, USER, tools=[TOOL], response_format=FORMAT)
    assert text.startswith("<｜User｜>U<｜Assistant｜></think>S\n\n## Tools\n")
    schema = "You MUST strictly adhere to the following schema to reply:\n{"
    assert text.endswith(schema + '"title": "é"}<｜User｜>U<｜Assistant｜></think>')
    assert encode(USER, response_format={"type": "text"}) == encode(USER)
    assert '{"type": "object"}<｜User｜>' in encode(USER, response_format={"type": "json_object"})


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("style", ["v3.2", "v4"])
def test_thoughts_of_earlier_turns_are_dropped(name, style):
    answer = {"role": "assistant", "content": "A", name: "R"}
    options = {"thinking": True, "style": style}
    turn = "<｜User｜>U<｜Assistant｜></think>A<｜end▁of▁sentence｜>"
    assert encode(USER, answer, USER, **options) == f"{turn}<｜User｜>U<｜Assistant｜><think>"
    dropped = encode(USER, answer, USER, tools=[TOOL], **options)
    assert ("R</think>A" in dropped) is (style == "v4")
    assert encode(USER, answer, **options).endswith("<think>R</think>A<｜end▁of▁sentence｜>")


@pytest.mark.parametrize(
    ("style", "effort", "start"),
    [
        ("v4", None, "<｜User｜>"),
        ("v4", "max", "Reasoning Effort: Beyond maximum"),
        ("v4.1", None, "<｜System｜>Reasoning Effort: 75 (range 1-100"),
        ("v4.1", 7, "<｜System｜>Reasoning Effort: 7 (range 1-100"),
    ],
)
def test_an_effort_stands_in_front_for_a_model_that_thinks(style, effort, start):
    options = {"style": style, "reasoning_effort": effort}
    assert encode(USER, thinking=True, **options).startswith(start)
    assert encode(USER, **options) == "<｜User｜>U<｜Assistant｜></think>"


def part(**entries):
    return {"role": "user", "content": [{"type": "text", "text": "a"}, entries]}


def call(**entries):
    return {"role": "assistant", "tool_calls": [{**CALL, **entries}]}


def function(**entries):
    return call(function={"name": "f", "arguments": "{}", **entries})


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        ([USER, "Hello"], "messages[1]"),
        ([USER, {"content": "Hello"}], "messages[1].role"),
        ([{"role": "usr", "content": "Hello"}], "messages[0].role"),
        ([{"role": ["user"], "content": "Hello"}], "messages[0].role"),
        ([{"role": "latest_reminder", "content": "Hello"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "assistant"}], "messages[0].content"),
        ([{"role": "assistant", "content": "", "reasoning": 3}], "messages[0].reasoning"),
        ([part(type="image_url", image_url={"url": "u"})], "messages[0].content[1].type"),
        ([part(type="text")], "messages[0].content[1].text"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [3]}], "messages[0].tool_calls[0]"),
        ([call(id="")], "messages[0].tool_calls[0].id"),
        ([call(function=None)], "messages[0].tool_calls[0].function"),
        ([function(name=None)], "messages[0].tool_calls[0].function.name"),
        ([function(arguments="{")], "messages[0].tool_calls[0].function.arguments"),
        ([function(arguments="[]")], "messages[0].tool_calls[0].function.arguments"),
        ([function(arguments="[" * 10**5)], "messages[0].tool_calls[0].function.arguments"),
        (
            [{"role": "assistant", "tool_calls": [CALL, OTHER, CALL]}],
            "messages[0].tool_calls[2].id",
        ),
        ([USER, RESULTS[0]], "messages[1].tool_call_id"),
        ([CALLS, *RESULTS, {"role": "tool", "content": ""}], "messages[3].tool_call_id"),
        ([CALLS, RESULTS[0], RESULTS[0]], "messages[2].tool_call_id"),
        ([CALLS, USER, RESULTS[0]], "messages[2].tool_call_id"),
        ([USER, CALLS, RESULTS[0], USER], "messages[1].tool_calls"),
    ],
)
def test_a_wrong_message_is_told_by_its_field(messages, field):
    with pytest.raises(ChatInputError, match="`messages") as refused:
        encode_chat(messages, style="v3.2")
    assert refused.value.field == field
    assert str(refused.value).startswith(f"`{field}` ")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": "f"}, "tools"),
        ({"tools": [TOOL, {"type": "function", "function": {}}]}, "tools[1].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{**TOOL, "type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"function": {"name": "f", "x": {1, 2}}}]}, "tools"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning_effort": "medium", "style": "v4"}, "reasoning_effort"),
        ({"reasoning_effort": 0, "style": "v4.1"}, "reasoning_effort"),
        ({"reasoning_effort": True, "style": "v4.1"}, "reasoning_effort"),
    ],
)
def test_a_wrong_option_is_told_by_its_field(options, field):
    with pytest.raises(ChatInputError) as refused:
        encode(USER, **options)
    assert refused.value.field == field


def test_an_answer_of_v32_that_had_to_think_has_reasoning_or_calls():
    answer = {"role": "assistant", "content": "A"}
    with pytest.raises(ChatInputError, match=r"`messages\[1\]\.reasoning` is missing"):
        encode(USER, answer, thinking=True)
    assert encode(USER, answer, USER, thinking=True)


def test_an_unknown_style_is_named_and_a_known_one_is_told_by_the_type_of_the_model():
    with pytest.raises(InvalidInputError, match=r"Known: v3\.2, v4, v4\.1"):
        encode(USER, style="v2")
    assert find_chat_style("deepseek_v32") == "v3.2"
    assert find_chat_style("deepseek_v3") is None
    assert find_chat_style(None) is None
