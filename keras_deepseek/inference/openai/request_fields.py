"""Fields of requests: the checks of their types, with errors that name the field."""

from collections.abc import Mapping
from typing import Any

from keras_deepseek.checks import check_boolean
from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.openai.openai_errors import naming_field
from keras_deepseek.inference.protocols.json_text import load_object

_MAX_NAME = 256


def read_content(body: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request, without the fields that are `null`: not given."""
    content = load_object(body, "with a 'model' and 'messages' or a 'prompt'")
    return {name: value for name, value in content.items() if value is not None}


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
    with naming_field(f"{path}{name}"):
        return default if value is None else check_boolean(f"{path}{name}", value)


def read_object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns an object in a request, empty if it is not given."""
    value = content.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise InvalidFieldError(name, f"`{name}` must be an object, received {value!r:.50}.")
    return value or {}
