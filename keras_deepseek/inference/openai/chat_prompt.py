"""The conversation of a request as a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_deepseek.chat import ChatParser
from keras_deepseek.chat.chat_messages import (
    read_response_schema,
    read_tools,
    read_turns,
    unknown_name,
)
from keras_deepseek.chat.chat_style import THINK_CLOSE, THINK_OPEN, get_style
from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.openai.openai_errors import naming_field
from keras_deepseek.inference.openai.request_fields import read_flag, read_object
from keras_deepseek.inference.text.text_request import check_prompt_length

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_STYLE_EFFORTS: Mapping[str, Mapping[str | int | None, str]] = {
    "v4": {"minimal": "low", "medium": "low", "xhigh": "high", None: "high"},
    "v4.1": {"minimal": "low", "medium": "low"},
}
"""The effort that a format has for one that it lacks, as vLLM chooses it. `None`: not given."""

_THINKS_BY_DEFAULT = ("v4", "v4.1")
"""The formats whose models reason unless they are told not to, as in DeepSeek's API and vLLM."""

_NOT_FOR_TEMPLATES = ("add_generation_prompt", "messages", "self", "template")

_READER_STYLE = "v3.2"
"""The format by whose rules messages for a template are checked, and by whose parser the reasoning
of their answers is split off: `<think>` is the same in all of them."""


@dataclass(frozen=True)
class ChatPrompt:
    """The text of a conversation, and the way in which the answer to it is read.

    Args:
        text: The text, with special tokens.
        style: The message format of the answer. `None`: all of it is content.
        thinks: True if the answer begins with reasoning.
        keeps_special_tokens: True if the answer's text needs its special tokens for that.
        tools: The tools that the model may call.
    """

    text: str
    style: str | None
    thinks: bool
    keeps_special_tokens: bool
    tools: Sequence[Mapping[str, Any]]

    def make_parser(self) -> ChatParser | None:
        """Returns a parser for one answer, or `None` if all of it is content."""
        if self.style is None:
            return None
        return ChatParser(self.style, thinking=self.thinks, tools=self.tools)


def encode_conversation(content: Mapping[str, Any], model: TextVersion) -> ChatPrompt:
    """Returns the text of the conversation in a request, of a chat or to tokenize it.

    Raises:
        InvalidFieldError: A field is wrong, or the model has no chat format, or its format lacks
            what a field asks for.
    """
    schema = read_response_schema(content.get("response_format"))
    tools, messages = _read_tools(content), content.get("messages")
    if not model.has_chat:
        raise InvalidFieldError(
            "messages",
            "The model has no chat template, so it can't read `messages`. Send a `prompt` to "
            "/v1/completions.",
        )
    if isinstance(messages, list):  # Each has a token.
        check_prompt_length(len(messages), model.max_length, field="messages", is_least=True)
    style = model.chat_style
    read_turns(messages, get_style(style or _READER_STYLE))
    assert isinstance(messages, list)
    begins = read_flag(content, "add_generation_prompt", default=True)
    if style is None:
        if schema is not None:
            raise InvalidFieldError(
                "response_format",
                "The model's chat template has no place for a `response_format`. Describe the "
                "format in a message.",
            )
        if tools:
            raise InvalidFieldError(
                "tools",
                "The calls of this model can't be read: its answers have the form of its own chat "
                "template. Leave `tools` out, or send `tool_choice: none`.",
            )
        return _encode_by_template(content, messages, model, begins)
    thinks, effort = _read_thinking(content, style)
    if messages[0]["role"] == "developer":
        messages = [{**messages[0], "role": "system"}, *messages[1:]]
    with naming_field("messages"):
        text = model.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=begins,
            thinking=thinks,
            tools=tools or None,
            response_format=content.get("response_format"),
            reasoning_effort=effort,
        )
    return ChatPrompt(text, style, thinks, keeps_special_tokens=True, tools=tools)


def _encode_by_template(
    content: Mapping[str, Any], messages: list[Any], model: TextVersion, begins: bool
) -> ChatPrompt:
    """Returns the text by the checkpoint's Jinja template.

    Of such a model's answers, the reasoning is read if it has a token for its end.
    """
    variables = {
        name: value
        for name, value in read_object(content, "chat_template_kwargs").items()
        if name not in _NOT_FOR_TEMPLATES
    }
    asked_thinking = _read_asked_thinking(content)
    if asked_thinking is not None:  # Templates have either name.
        variables |= {"thinking": asked_thinking, "enable_thinking": asked_thinking}
    if "reasoning_effort" in content:
        variables.setdefault("reasoning_effort", content["reasoning_effort"])
    with naming_field("messages"):
        text = model.tokenizer.apply_chat_template(
            [_flatten(message) for message in messages],
            add_generation_prompt=begins,
            **variables,
        )
    end = model.tokenizer.token_to_id(THINK_CLOSE)
    is_special = end is not None and not model.tokenizer.detokenize([end])
    thinks = end is not None and text.rstrip().endswith(THINK_OPEN)
    style = None if end is None else _READER_STYLE
    return ChatPrompt(text, style, thinks, keeps_special_tokens=is_special, tools=())


def _flatten(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message whose content is a string and whose role is one that templates know."""
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _read_tools(content: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Returns the tools that the model may call."""
    read_tools(content.get("tools"))
    choice = content.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise InvalidFieldError(
            "tool_choice",
            "`tool_choice` must be 'auto' or 'none', as a model can't be forced to call a tool "
            f"here; received {choice!r:.100}.",
        )
    tools: Sequence[Mapping[str, Any]] = content.get("tools", ())
    return () if choice == "none" else tools


def _read_thinking(content: Mapping[str, Any], style: str) -> tuple[bool, str | int | None]:
    """Returns whether a model is to reason, and its effort."""
    effort = content.get("reasoning_effort")
    variables = read_object(content, "chat_template_kwargs")
    effort = variables.get("reasoning_effort") if effort is None else effort
    is_number = isinstance(effort, int) and not isinstance(effort, bool)
    if effort is not None and not is_number and effort not in _EFFORTS:
        raise unknown_name("reasoning_effort", effort, _EFFORTS)
    thinks = _read_asked_thinking(content)
    if effort == "none":
        return False, None
    if thinks is None:
        thinks = effort is not None or style in _THINKS_BY_DEFAULT
    if style not in _STYLE_EFFORTS or not thinks:
        return thinks, None  # V3.2 reasons, or does not.
    return thinks, _STYLE_EFFORTS[style].get(effort, effort)


def _read_asked_thinking(content: Mapping[str, Any]) -> bool | None:
    """Returns whether the request says that the model is to reason: as vLLM's, or as DeepSeek's."""
    variables = read_object(content, "chat_template_kwargs")
    for name in ("thinking", "enable_thinking"):
        if variables.get(name) is not None:
            return read_flag(variables, name, "chat_template_kwargs.")
    kind = read_object(content, "thinking").get("type")
    if kind is None:
        return None
    kinds = ("enabled", "disabled")
    if kind not in kinds:
        raise unknown_name("thinking.type", kind, kinds)
    return bool(kind == "enabled")
