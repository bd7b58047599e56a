"""Rendering of chat messages to prompt text by a checkpoint's chat template."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from keras_deepseek.errors import InvalidInputError, MissingExtraError

Message = Mapping[str, Any]


def render_chat(template: str, messages: Sequence[Message], **variables: Any) -> str:
    """Renders chat messages to one prompt text by a jinja2 template.

    The template comes from the authors of the checkpoint, so it runs in a sandbox. A message is as
    in `{"role": "user", "content": "Hello"}`.
    """
    _check_messages(messages)
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "text", "to apply a chat template") from error
    try:
        return str(_compile(template).render(messages=messages, **variables))
    except jinja2.TemplateSyntaxError as error:
        raise InvalidInputError(
            f"The chat template is not valid, line {error.lineno}: {error.message}."
        ) from error
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The chat template refused these messages: {error or type(error).__name__}."
        ) from error


def _check_messages(messages: Any) -> None:
    """Raises an error for messages without role or content, which templates silently skip."""
    are_several = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
    wrong = (
        [message for message in messages if not _is_message(message)] if are_several else [messages]
    )
    if wrong:
        raise InvalidInputError(
            'Messages must have the form [{"role": "user", "content": "Hello"}], received '
            f"{wrong[0]!r}."
        )


def _is_message(message: Any) -> bool:
    is_said = isinstance(message, Mapping) and ("content" in message or "tool_calls" in message)
    return is_said and "role" in message


@lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    from jinja2 import TemplateRuntimeError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateRuntimeError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_block()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _format_now
    return environment.from_string(template)


def _generation_block() -> type[Any]:
    """Returns a jinja2 extension that renders the content of `{% generation %}` blocks.

    Templates mark with them the text to train on.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationBlock(Extension):
        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it.

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationBlock


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Converts a value to JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _format_now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)
