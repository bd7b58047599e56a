import json
import random
from dataclasses import replace

import pytest

from keras_deepseek.chat import (
    ChatParser,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStart,
    join_events,
)
from keras_deepseek.errors import InvalidInputError
from tests.oracles.random_answers import Account, cut, random_damaged, random_message, write_answer

STYLES = ["v3.2", "v4", "v4.1"]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"properties": {"city": {}, "days": {}}}},
    }
]


def parse(*pieces, style="v4", thinking=False, tools=None):
    parser = ChatParser(style, thinking, tools)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def plain(events):
    """Returns joined events without the random names of calls, and with the arguments read."""
    message = join_events(events)
    for call in message.get("tool_calls", ()):
        del call["id"]
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return message


def merged(events):
    """Returns events with the neighbours of one kind joined, without the names of calls."""
    result = []
    for event in events:
        key = (type(event), getattr(event, "index", None), getattr(event, "name", None))
        text = getattr(event, "text", "")
        if result and result[-1][0] == key and text:
            result[-1][1] += text
        else:
            result.append([key, text])
    return result


def block(*calls):
    return f"<｜DSML｜tool_calls>\n{''.join(calls)}</｜DSML｜tool_calls>"


def invoke(*parameters, name="weather", end="</｜DSML｜invoke>\n"):
    return f'<｜DSML｜invoke name="{name}">\n{"".join(parameters)}{end}'


def parameter(name, value, more=' string="false"', end="</｜DSML｜parameter>\n"):
    return f'<｜DSML｜parameter name="{name}"{more}>{value}{end}'


def arguments_of(*pieces, **options):
    (call,) = join_events(parse(*pieces, **options))["tool_calls"]
    return call["function"]["arguments"]


def test_events_come_with_the_text_that_decides_them():
    parser = ChatParser("v4", thinking=True)
    assert parser.feed("Look") == [ReasoningText("Look")]
    assert parser.feed("</thi") == []
    assert parser.feed("nk>So") == [ContentText("So")]
    assert parser.feed("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name") == []
    (start,) = parser.feed('="weather">\n')
    assert (start.index, start.name, start.id[:5]) == (0, "weather", "call_")
    assert parser.feed(parameter("city", 'Pa"r', ' string="true"', end="")) == [
        ToolCallArguments(0, '{"city": "Pa\\"r')
    ]
    assert parser.feed("is</｜DSML｜parameter>") == [ToolCallArguments(0, 'is"')]
    assert parser.feed(parameter("days", "2", end="")) == []
    assert parser.feed("</｜DSML｜parameter>") == [ToolCallArguments(0, ', "days": 2')]
    assert parser.feed("</｜DSML｜invoke></｜DSML｜tool_calls>") == [ToolCallArguments(0, "}")]
    assert parser.finish() == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(
    "seeds", [range(8), pytest.param(range(8, 50), marks=pytest.mark.nightly)], ids=str
)
def test_an_answer_is_read_as_it_was_written_at_every_cut(style, thinking, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        message = random_message(rng, thinking)
        answer = write_answer(message, style, thinking)
        whole = parse(answer, style=style, thinking=thinking)
        for call in message.get("tool_calls", ()):
            del call["id"]
            arguments = call["function"]["arguments"]
            if isinstance(arguments, str):
                call["function"]["arguments"] = json.loads(arguments)
        if "tool_calls" in message:
            message["content"] = message["content"] or None
        assert plain(whole) == message
        for index in range(len(answer)):
            pieces = (answer[:index], answer[index:])
            assert merged(parse(*pieces, style=style, thinking=thinking)) == merged(whole)
        assert merged(parse(*answer, style=style, thinking=thinking)) == merged(whole)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "seeds", [range(500), pytest.param(range(500, 35_000), marks=pytest.mark.nightly)], ids=str
)
def test_no_character_of_a_damaged_answer_is_lost(style, seeds):
    account = Account(style)
    for seed in seeds:
        text, thinking, rng = random_damaged(seed, style)
        whole = parse(text, style=style, thinking=thinking)
        account.check(text, whole)
        pieces = cut(rng, text)
        assert merged(parse(*pieces, style=style, thinking=thinking)) == merged(whole), seed


@pytest.mark.parametrize("lost", range(40))
def test_the_account_notices_a_lost_character(lost):
    """It checks the check above."""
    text = "Hm" + block(invoke(parameter("city", "Ulm", ' string="true"'), parameter("days", "2")))
    events = parse(text, "a")
    pieces = [n for n, event in enumerate(events) if not isinstance(event, ToolCallStart)]
    number = pieces[lost % len(pieces)]
    event = events[number]
    at = lost % len(event.text)
    events[number] = replace(event, text=event.text[:at] + event.text[at + 1 :])
    Account("v4").check(text, parse(text))
    with pytest.raises(AssertionError, match=r"Lost|more than the answer"):
        Account("v4").check(text, events)


DAYS = parameter("days", "2")


@pytest.mark.parametrize(
    "text",
    [
        block(invoke(DAYS)),
        block(invoke(parameter("days", "2", more=""))),
        block(invoke(DAYS, end="")),
        block(invoke(parameter("days", "2", end="</｜DSML｜invoke>"), end="")),
        invoke(DAYS),
        block(invoke(DAYS)).replace("tool_calls", "toolcalls"),
        block(invoke(DAYS)).replace("tool_calls", "tool"),
        f"<｜DSML｜tool_calls>{block(invoke(DAYS, DAYS[:0]))}",
        f"{block(invoke(DAYS))} and more </think> text",
        block(invoke(parameter("arguments", '{"days": 2}'))),
        block(invoke(parameter("input", '{"days": 2}', more=' string="true"'))),
    ],
)
@pytest.mark.parametrize("before", ["", "<think>Hm.", "<think><think>Hm.</think>"])
def test_a_call_is_read_from_what_models_write_in_its_place(before, text):
    if before == "<think>Hm." and text.startswith("<｜DSML｜invoke"):
        before += "</think>"  # Within reasoning a call needs its block.
    message = plain(parse(before + text, tools=TOOLS))
    assert message.pop("tool_calls") == [
        {"type": "function", "function": {"name": "weather", "arguments": {"days": 2}}}
    ]
    assert message.pop("content") is None
    assert message == {"role": "assistant", **({"reasoning": "Hm."} if before else {})}


def test_a_missing_end_of_a_parameter_is_where_the_next_one_begins():
    text = block(invoke(parameter("city", "Ulm", end=""), DAYS))
    assert json.loads(arguments_of(text)) == {"city": "Ulm", "days": 2}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e400", "1e400"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('{"a": [1, null]}', '{"a": [1, null]}'),
        ("NaN", '"NaN"'),
        ("", '""'),
        ("Ulm", '"Ulm"'),
        ("[" * 100_000, json.dumps("[" * 100_000)),
        ("9" * 5000, json.dumps("9" * 5000)),
    ],
    ids=range(8),
)
def test_a_value_stays_as_it_is_if_it_is_json_and_is_a_string_if_not(value, expected):
    assert arguments_of(block(invoke(parameter("x", value)))) == f'{{"x": {expected}}}'


@pytest.mark.parametrize(
    "values",
    [
        [("arguments", '{"days": 2}'), ("days", "3")],
        [("arguments", '{"other": 2}')],
        [("arguments", "[2]")],
        [("days", '{"arguments": 2}')],
    ],
)
def test_a_parameter_that_is_not_all_arguments_is_not_unwrapped(values):
    text = block(invoke(*(parameter(*value) for value in values)))
    expected = {name: json.loads(value) for name, value in values}
    assert json.loads(arguments_of(text, tools=TOOLS)) == expected
    assert json.loads(arguments_of(text)) == expected


@pytest.mark.parametrize("value", ["Ulm", '{"a"', "2"])
@pytest.mark.parametrize("more", [' string="true"', ' string="false"'])
def test_a_call_that_is_cut_off_is_no_json(value, more):
    text = block(invoke(parameter("arguments", value, more)))
    end = text.index("</｜DSML｜invoke>") + len("</｜DSML｜invoke>")
    for length in range(text.index("\n<｜DSML｜parameter"), end):
        arguments = arguments_of(text[:length], tools=TOOLS)
        assert ('"arguments": ' in arguments) is (text.index(">", 60) < length)
        with pytest.raises(ValueError, match="line 1"):
            json.loads(arguments)


def test_a_text_that_might_become_a_tag_is_held_back_to_a_limit():
    parser = ChatParser("v4")
    text = '<｜DSML｜invoke name="' + "x" * 5000
    released = sum(len(event.text) for piece in text for event in parser.feed(piece))
    assert len(text) - released < 1024
    assert parser.feed('">') + parser.finish() == [ContentText(text[released:] + '">')]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "text", ["<", "\n", "</think", '<｜DSML｜invoke name="', "<｜DSML｜invoke    ", "</｜DSML｜"]
)
def test_a_megabyte_of_what_might_become_a_tag_passes(text):
    """In a time that is not linear it would not end."""
    text = text * (10**6 // len(text))
    for style in STYLES:
        pieces = (text[start : start + 3] for start in range(0, len(text), 3))
        message = join_events(parse(*pieces, style=style))
        assert message["content"] == text.replace("</think>", "")


def test_each_call_has_a_name_of_its_own():
    starts = [e for e in parse(block(invoke(), invoke())) if isinstance(e, ToolCallStart)]
    assert [start.index for start in starts] == [0, 1]
    assert starts[0].id != starts[1].id


def test_an_unknown_style_is_named():
    with pytest.raises(InvalidInputError, match=r"did you mean 'v3\.2'"):
        ChatParser("v3.3")
    with pytest.raises(InvalidInputError, match="`thinking` must be True or False"):
        ChatParser("v4", thinking="yes")
