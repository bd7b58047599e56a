"""The fields that chats and completions share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.openai.openai_errors import naming_fields
from keras_deepseek.inference.protocols.json_text import load_object
from keras_deepseek.text.sampling import SamplingOptions

REFUSED_FIELDS = (
    "audio",
    "continue_final_message",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "prompt_embeds",
    "structured_outputs",
    "suffix",
    "use_beam_search",
)
"""Fields of OpenAI and vLLM that promise another answer, so that they can't be ignored."""

_MAX_NAME = 256
_MAX_PRIORITY = 2**31


@dataclass(frozen=True)
class TextBody:
    """The fields that chats and completions share.

    Args:
        content: All fields as they came.
        model: The name of the model. `None`: the engine's own.
        sampling: The settings of the answer.
        is_streamed: True if the answer is to come while it is written.
        has_usage: True if a streamed answer ends with a chunk of the number of tokens.
        has_running_usage: True if each chunk has the number of tokens so far.
        priority: A request of higher priority runs first.
    """

    content: Mapping[str, Any]
    model: str | None
    sampling: SamplingOptions
    is_streamed: bool
    has_usage: bool
    has_running_usage: bool
    priority: int


def read_content(body: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request, without the fields that are `null`: not given."""
    content = load_object(body, "with a 'model' and 'messages' or a 'prompt'")
    return {name: value for name, value in content.items() if value is not None}


def read_text_body(content: Mapping[str, Any], sampling: SamplingOptions) -> TextBody:
    """Returns the shared fields of a request. Unknown fields are ignored.

    vLLM's `priority` counts the other way round: there a lower one runs first.
    """
    for name in REFUSED_FIELDS:
        if content.get(name):
            raise InvalidFieldError(name, f"`{name}` is not supported here. Leave it out.")
    options = read_object(content, "stream_options")
    is_streamed = read_flag(content, "stream")
    has_usage = is_streamed and read_flag(options, "include_usage", "stream_options.")
    return TextBody(
        content,
        read_model(content),
        sampling,
        is_streamed,
        has_usage,
        has_usage and read_flag(options, "continuous_usage_stats", "stream_options."),
        -_read_priority(content),
    )


def read_model(content: Mapping[str, Any]) -> str | None:
    """Returns the name of the model, or `None` if it is not given."""
    name = content.get("model")
    if name is not None and not (isinstance(name, str) and len(name) <= _MAX_NAME):
        raise InvalidFieldError("model", f"`model` must be a model's name, received {name!r:.50}.")
    return name


def read_flag(
    content: Mapping[str, Any], name: str, path: str = "", *, default: bool = False
) -> bool:
    """Returns a boolean field, or its default if it is not given. `path` is that of `content`."""
    value = content.get(name)
    with naming_fields({}, f"{path}{name}"):
        return default if value is None else check_boolean(f"{path}{name}", value)


def read_object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns an object in a request, empty if it is not given."""
    value = content.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise InvalidFieldError(name, f"`{name}` must be an object, received {value!r:.50}.")
    return value or {}


def _read_priority(content: Mapping[str, Any]) -> int:
    with naming_fields({}, "priority"):
        priority = check_integer("priority", content.get("priority", 0), minimum=-_MAX_PRIORITY)
    return min(priority, _MAX_PRIORITY)
