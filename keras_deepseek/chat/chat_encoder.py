"""Encoding of a conversation as the text that a DeepSeek model reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from keras_deepseek.chat.chat_messages import (
    ChatInputError,
    Turn,
    read_response_schema,
    read_tools,
    read_turns,
    show,
)
from keras_deepseek.chat.chat_style import (
    ASSISTANT_TOKEN,
    END_TOKEN,
    RESPONSE_TEXT,
    START_TOKEN,
    THINK_CLOSE,
    THINK_OPEN,
    USER_TOKEN,
    ChatStyle,
    get_style,
)
from keras_deepseek.checks import check_boolean


def encode_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    style: str,
    thinking: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    response_format: Mapping[str, Any] | None = None,
    reasoning_effort: str | int | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Encodes a conversation in a message format of DeepSeek.

    Choose it for a DeepSeek model whose checkpoint has no chat template. The text contains its
    special tokens, so tokenize it with `add_special_tokens=False`. Keys of messages that are not
    named here are ignored.

    Reasoning before the last user message is dropped, in `"v4"` and `"v4.1"` unless there are
    tools. Where these two drop it, they also drop earlier `developer` messages: send lasting
    instructions as `system`.

    Args:
        messages: list of OpenAI's chat messages. The `content` is a string, or a list of text
            parts. An answer may have `tool_calls`, and `reasoning` or `reasoning_content`. Results
            follow the answer that called, as messages of the role `tool` with a `tool_call_id`.
        style: string. `"v3.2"`, `"v4"` or `"v4.1"`.
        thinking: boolean. Whether the model is to reason before its answer. Defaults to `False`.
        tools: list of OpenAI's tools, or `None`. They are described in the first system message.
            Defaults to `None`.
        response_format: dict or `None`. OpenAI's response format: its JSON schema is described in
            the first system message. Defaults to `None`.
        reasoning_effort: string, integer or `None`. For a model that thinks: `"low"`, `"high"` or
            `"max"` in `"v4"`; also `"xhigh"` and 1 to 100 in `"v4.1"`. `None` takes the format's
            own. Defaults to `None`.
        add_generation_prompt: boolean. Whether to end with the start of an answer. Defaults to
            `True`.

    Raises:
        ChatInputError: A field is wrong. Its path is the error's `field`.
        InvalidInputError: The style is unknown, or an argument is not a boolean.

    Returns:
        A string.

    Example:

    >>> encode_chat([{"role": "user", "content": "Hello"}], style="v3.2")
    '<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜></think>'
    """
    table = get_style(style)
    thinking = check_boolean("thinking", thinking)
    effort = _read_effort(reasoning_effort, style, table)
    turns = read_turns(messages, table)
    functions, schema = read_tools(tools), read_response_schema(response_format)
    notes = _describe_tools(functions, table) if functions else ""
    if schema is not None:
        notes += "\n\n" + RESPONSE_TEXT.format(schema=_to_json(schema, "response_format"))
    if notes:
        turns = _add_notes(turns, notes)
    if table.has_results_in_user_turn:
        texts, header = _encode_v4(turns, table, thinking, bool(functions), effort)
    else:
        texts, header = _encode_v32(turns, table, thinking)
    if check_boolean("add_generation_prompt", add_generation_prompt):
        texts.append(header)
    return START_TOKEN + "".join(texts)


def _read_effort(effort: Any, name: str, style: ChatStyle) -> str:
    """Returns the text before a conversation for a reasoning effort."""
    effort = style.default_effort if effort is None else effort
    if effort is None:
        return ""
    if not isinstance(effort, str | int) or isinstance(effort, bool) or effort not in style.efforts:
        names = [key for key in style.efforts if isinstance(key, str)]
        numbers = " or an integer from 1 to 100" if len(style.efforts) > len(names) else ""
        expected = f"must be one of {names}{numbers}" if names else "must be None"
        raise ChatInputError(
            "reasoning_effort", f"{expected} in style {name!r}, received {show(effort)}."
        )
    return style.efforts[effort]


def _describe_tools(functions: Sequence[Mapping[str, Any]], style: ChatStyle) -> str:
    return "\n\n" + style.tools_text.format(
        calls=style.tag(style.calls_tag),
        invoke=style.tag("invoke"),
        parameter=style.tag("parameter"),
        schemas="\n".join(_to_json(function, "tools") for function in functions),
    )


def _add_notes(turns: Sequence[Turn], notes: str) -> list[Turn]:
    """Adds a text to the first system message, or makes one at the start."""
    number = next((number for number, turn in enumerate(turns) if turn.role == "system"), None)
    if number is None:
        return [Turn("system", (notes,), "messages"), *turns]
    system = replace(turns[number], parts=(turns[number].text + notes,))
    return [*turns[:number], system, *turns[number + 1 :]]


def _encode_v32(turns: list[Turn], style: ChatStyle, thinking: bool) -> tuple[list[str], str]:
    """Returns the texts of the turns, and the header of the answer that follows them."""
    last_user = _find_last_user(turns)
    texts, header = [], ""
    for number, turn in enumerate(turns):
        texts.append(header)
        header = ""
        thinks = thinking and number >= last_user
        think_tag = THINK_OPEN if thinks else THINK_CLOSE
        if turn.role == "system":
            texts.append(turn.text)
        elif turn.role == "tool":
            results = "".join(f"\n<result>{part}</result>" for part in turn.parts)
            texts.append(f"\n\n<function_results>{results}\n</function_results>")
            header = f"\n\n{think_tag}"
        elif turn.role == "assistant":
            if thinks and not (turn.reasoning or turn.calls):
                raise ChatInputError(
                    f"{turn.field}.reasoning",
                    "is missing: with `thinking`, an answer after the last user message has "
                    "reasoning or tool calls.",
                )
            texts.append(_encode_answer(turn, style, thinks))
        else:
            intro = "\n\n# The user's message is: " if turn.role == "developer" else ""
            texts.append(f"{USER_TOKEN}{intro}{turn.text}")
            header = f"{ASSISTANT_TOKEN}{think_tag}"
    return texts, header


def _encode_v4(
    turns: list[Turn], style: ChatStyle, thinking: bool, has_tools: bool, effort: str
) -> tuple[list[str], str]:
    """Returns the texts of the turns, and the header of the answer that follows them."""
    turns = _merge_user_turns(turns)
    is_reasoning_dropped = thinking and not has_tools
    if is_reasoning_dropped:
        last_user = _find_last_user(turns, style.system_token)
        turns = [turn for n, turn in enumerate(turns) if turn.role != "developer" or n >= last_user]
    last_user = _find_last_user(turns, style.system_token)
    texts = []
    if thinking and effort:
        texts.append(style.system_token + effort)
    elif turns[0].role == "system":
        texts.append(style.system_token)
    header = ""
    for number, turn in enumerate(turns):
        following = turns[number + 1].role if number + 1 < len(turns) else None
        if turn.role in ("assistant", "latest_reminder"):
            texts.append(header)
        header = ""
        begins_answer = turn.role in ("user", "developer")
        if turn.role == "system":
            texts.append((style.system_token if number else "") + turn.text)
            # V4.1 answers each system message but the first one.
            begins_answer = number > 0 if style.system_token else following in ("assistant", None)
        elif turn.role == "assistant":
            thinks = thinking and (not is_reasoning_dropped or number > last_user)
            texts.append(_encode_answer(turn, style, thinks))
        elif turn.role == "latest_reminder":
            texts.append(style.reminder_token + turn.text)
        else:
            texts.append(USER_TOKEN + "\n\n".join(turn.parts))
        if begins_answer:
            thinks = thinking and (not is_reasoning_dropped or number >= last_user)
            header = ASSISTANT_TOKEN + (THINK_OPEN if thinks else THINK_CLOSE)
    return texts, header


def _merge_user_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Joins tool results and user messages that follow each other to one turn of the user."""
    merged: list[Turn] = []
    for is_user, group in groupby(turns, key=lambda turn: turn.role in ("user", "tool")):
        joined = list(group)
        if not is_user:
            merged += joined
            continue
        parts = (
            f"<tool_result>{part}</tool_result>" if turn.role == "tool" else part
            for turn in joined
            for part in turn.parts
        )
        has_text = joined[-1].role == "user"
        merged.append(Turn("user", tuple(parts), joined[0].field, has_text=has_text))
    return merged


def _find_last_user(turns: Sequence[Turn], system_token: str = "") -> int:
    """Returns the number of the last turn of the user, or -1.

    With a token for system messages, those after the first turn count too, and results alone don't.
    """
    for number in range(len(turns) - 1, -1, -1):
        turn = turns[number]
        if turn.role in ("user", "developer") and (turn.has_text or not system_token):
            return number
        if turn.role == "system" and number and system_token:
            return number
    return -1


def _encode_answer(turn: Turn, style: ChatStyle, thinks: bool) -> str:
    reasoning = turn.reasoning + THINK_CLOSE if thinks else ""
    calls = ""
    if turn.calls:
        invoke, parameter = style.tag("invoke"), style.tag("parameter")
        invocations = "".join(
            f'<{invoke} name="{call_name}">\n'
            + "\n".join(
                _encode_argument(parameter, name, value, turn.field)
                for name, value in arguments.items()
            )
            + f"\n</{invoke}>\n"
            for _, call_name, arguments in turn.calls
        )
        tag = style.tag(style.calls_tag)
        calls = f"\n\n<{tag}>\n{invocations}</{tag}>"
    return f"{reasoning}{turn.text}{calls}{END_TOKEN}"


def _encode_argument(tag: str, name: str, value: Any, field: str) -> str:
    is_text = isinstance(value, str)
    text = value if is_text else _to_json(value, f"{field}.tool_calls")
    return f'<{tag} name="{name}" string="{"true" if is_text else "false"}">{text}</{tag}>'


def _to_json(value: Any, field: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError) as error:
        raise ChatInputError(field, f"can't be written as JSON: {error}.") from error
