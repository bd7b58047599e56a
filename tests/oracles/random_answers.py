"""Random answers of a model, damaged ones, and an account of each of their characters."""

import json
import random
import re
from typing import NamedTuple

from keras_deepseek.chat import (
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStart,
    encode_chat,
)
from tests.oracles.random_chats import WORDS, random_call

CALLS_TAGS = {"v3.2": "function_calls", "v4": "tool_calls", "v4.1": "calls"}
PLAIN_WORDS = [word for word in WORDS if "think" not in word]
"""Words of reasoning and content: there a tag such as `</think>` is structure."""


def random_message(rng, thinking):
    """Returns a message of the role `assistant`."""
    message = {"role": "assistant", "content": " ".join(rng.choices(PLAIN_WORDS, k=5))}
    if thinking:
        message["reasoning"] = " ".join(rng.choices(PLAIN_WORDS, k=5)) + "."
    calls = [random_call(rng, number) for number in range(rng.choice([0, 1, 1, 2, 3]))]
    return {**message, **({"tool_calls": calls} if calls else {})}


def write_answer(message, style, thinking):
    """Returns an answer as the model would have written it."""
    user = {"role": "user", "content": "U"}
    prompt = encode_chat([user], style=style, thinking=thinking)
    whole = encode_chat([user, message], style=style, thinking=thinking)
    assert whole.startswith(prompt)
    return whole.removeprefix(prompt).removesuffix("<｜end▁of▁sentence｜>")


def list_tags(style):
    """Returns the tags of a message format, and some that are damaged."""
    marker = "｜DSML｜ " if style == "v4.1" else "｜DSML｜"
    names = [CALLS_TAGS[style], "toolcalls", "tool", "invoke", "parameter"]
    tags = [f"<{end}{marker}{name}>" for name in names for end in ("", "/")]
    tags += [f'<{marker}invoke name="tool_{number}">' for number in range(3)]
    tags += [f'<{marker}parameter name="p0"{more}>' for more in ("", ' string="true"', ' x=""')]
    return [*tags, "<think>", "</think>", f"<{marker}", f"</{marker}invoke", "<", ">", "\n\n", " "]


def damage(rng, text, style):
    """Returns an answer with deletions, insertions, repetitions, or without its end."""
    for _ in range(rng.randint(1, 6)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([1, 1, 3, 30]))
        match rng.randrange(4):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:start] + rng.choice(list_tags(style)) + text[start:]
            case 2:
                text = text[:end] + text[start:end] + text[end:]
            case 3:
                text = text[:start] if rng.random() < 0.3 else text
    return text


def cut(rng, text):
    """Returns a text in pieces."""
    size = rng.choice([1, 2, 5, 30, 1000])
    pieces = []
    while text:
        length = rng.randint(1, size)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


class Reading(NamedTuple):
    """A way to read the first tokens of an answer, which its events allow."""

    text_at: int = 0  # The characters of reasoning and content up to here.
    call: int = -1  # The call that began last.
    arguments_at: int = 0  # The characters of its arguments up to here.
    is_in_call: bool = False
    num_values: int = 0
    value: str | None = None  # The text of the value so far, within one.
    is_in_block: bool = False
    is_after: bool = False


class Account:
    """A check that each character of an answer is in its events or may be dropped.

    It takes from the events whether a tag is structure, and does not know the parser's rules for
    that: it follows each reading that the events allow. A dropped character must be of a tag;
    white space within a block of calls; of the two line breaks before it; or after it.
    """

    def __init__(self, style):
        tag = "｜DSML｜ " if style == "v4.1" else "｜DSML｜"
        calls = f"(?:{CALLS_TAGS[style]}|toolcalls|tool)"
        self.kinds = {
            "think": "</?think>",
            "calls": f"<{tag}{calls}>",
            "end_calls": f"</{tag}{calls}>",
            "invoke": f'<{tag}invoke\\s+name="([^"]+)"\\s*>',
            "end_invoke": f"</{tag}invoke>",
            "parameter": f'<{tag}parameter\\s+name="([^"]+)"(?:\\s+string="([^"]*)")?\\s*>',
            "end_parameter": f"</{tag}parameter>",
        }

    def check(self, text, events):
        """Checks the events of a whole answer."""
        texts = [e.text for e in events if isinstance(e, ReasoningText | ContentText)]
        self.text = "".join(texts)
        self.names = [event.name for event in events if isinstance(event, ToolCallStart)]
        self.arguments = [""] * len(self.names)
        for event in events:
            if isinstance(event, ToolCallArguments):
                self.arguments[event.index] += event.text
        readings = {Reading()}
        tokens = re.split("(<[^<>]*>)", text)
        for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
            readings = {
                reading
                for before in readings
                for reading in (
                    *self.as_text(before, token, following),
                    *self.as_tag(before, token),
                )
            }
            assert readings, f"Lost: {token!r}"
        ends = {end for reading in readings for end in self.end_value(reading, is_cut_off=True)}
        assert any(
            end.text_at == len(self.text)
            and end.call == len(self.names) - 1
            and (end.call < 0 or end.arguments_at == len(self.arguments[end.call]))
            for end in ends
        ), "The events have more than the answer."

    def as_text(self, reading, token, following):
        """Yields the reading that takes a token as text."""
        if reading.value is not None:
            yield reading._replace(value=reading.value + token)
        elif reading.is_after:
            yield reading
        else:
            choices = {token}
            if reading.is_in_block:
                choices.add(token.lstrip())
            elif re.fullmatch(self.kinds["calls"], following):
                choices.add(token.removesuffix("\n\n"))
            for choice in choices:
                if self.text.startswith(choice, reading.text_at):
                    yield reading._replace(text_at=reading.text_at + len(choice))

    def as_tag(self, reading, token):
        """Yields the readings that take a token as structure."""
        kind = next((kind for kind, tag in self.kinds.items() if re.fullmatch(tag, token)), None)
        if kind is None or (kind.startswith("end_") and not reading.is_in_block):
            return
        match = re.fullmatch(self.kinds[kind], token)
        for before in self.end_value(reading):
            closed = before
            if before.is_in_call and kind not in ("parameter", "end_parameter"):
                end = "}" if before.num_values else "{}"
                closed = self.take(before, end)
                if closed and closed.arguments_at == len(self.arguments[closed.call]):
                    closed = closed._replace(is_in_call=False)
                else:
                    continue
            if kind == "invoke":
                call = closed.call + 1
                if call < len(self.names) and self.names[call] == match[1]:
                    yield Reading(closed.text_at, call, is_in_call=True, is_in_block=True)
            elif kind == "parameter":
                start = ", " if closed.num_values else "{"
                begun = closed.is_in_call and self.take(closed, f"{start}{quote(match[1])}: ")
                if begun:
                    yield begun._replace(value="", num_values=closed.num_values + 1)
            elif kind == "calls":
                yield closed._replace(is_in_block=True, is_after=False)
            elif kind == "end_calls":
                yield closed._replace(is_in_block=False, is_after=True)
            else:
                yield closed

    def end_value(self, reading, is_cut_off=False):
        """Yields the readings in which the value that is read ends, as JSON or as a string."""
        if reading.value is None:
            yield reading
            return
        quoted = quote(reading.value)
        for text in {quoted[:-1] if is_cut_off else quoted, reading.value}:
            ended = self.take(reading, text)
            if ended and (text != reading.value or is_cut_off or is_json(text)):
                yield ended._replace(value=None)

    def take(self, reading, text):
        """Returns the reading after a piece of a call's arguments, or `None`."""
        if self.arguments[reading.call].startswith(text, reading.arguments_at):
            return reading._replace(arguments_at=reading.arguments_at + len(text))
        return None


def quote(text):
    """Returns a text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def is_json(text):
    """Returns true if a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def random_damaged(seed, style):
    """Returns a damaged answer, whether it thinks, and random numbers for its pieces."""
    rng = random.Random(seed)
    thinking = rng.random() < 0.5
    answer = write_answer(random_message(rng, thinking), style, thinking)
    return damage(rng, answer, style), thinking, rng
