"""The tables of DeepSeek's message formats: tokens, tags, and texts that the models know.

An answer calls tools in an outer block of tags. In it stands an invocation for each call, and in
each invocation a parameter for each argument. The names of these tags carry a marker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from keras_deepseek.errors import InvalidInputError, unknown_name_message

START_TOKEN = "<｜begin▁of▁sentence｜>"
END_TOKEN = "<｜end▁of▁sentence｜>"
USER_TOKEN = "<｜User｜>"
ASSISTANT_TOKEN = "<｜Assistant｜>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
MARKER = "｜DSML｜"


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatStyle:
    """The differences between the message formats of DeepSeek's families.

    Args:
        model_type: The `model_type` in the `config.json` of models with this format, or `None`.
        calls_tag: The name of the tag around all calls of an answer.
        tools_text: The text that introduces the tools, with the fields `calls`, `invoke`,
            `parameter` and `schemas`.
        part_separator: The text between the parts of a content that is a list.
        tag_space: The text between the marker of a tag and its name.
        has_results_in_user_turn: True if tool results are a part of the user's turn.
        system_token: The token before a system message.
        reminder_token: The token before a `latest_reminder` message; `""` without this role.
        efforts: The text before a conversation for each reasoning effort.
        default_effort: The effort if none is given.
    """

    model_type: str | None
    calls_tag: str
    tools_text: str
    part_separator: str
    tag_space: str = ""
    has_results_in_user_turn: bool = True
    system_token: str = ""
    reminder_token: str = ""
    efforts: Mapping[str | int, str] = field(default_factory=dict)
    default_effort: str | None = None

    def tag(self, name: str) -> str:
        """Returns the marked name of a tag, which stands in `<...>` and `</...>`."""
        return f"{MARKER}{self.tag_space}{name}"


# The texts below are data of the models: one changed character, and a model reads another prompt.
# DeepSeek publishes them beside its checkpoints, in the folders named `encoding`.

_CALL_EXAMPLE = """\
<{calls}>
<{invoke} name="$%(name)s">
<{parameter} name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{parameter}>
...
</{invoke}>
<{invoke} name="$%(name)s2">
...
</{invoke}>
</{calls}>
"""

_TOOLS_V32 = (
    "## Tools\n"
    "You have access to a set of tools you can use to answer the user's question.\n"
    'You can invoke functions by writing a "<{calls}>" block like the following as part of your '
    "reply to the user:\n" + _CALL_EXAMPLE % {"name": "FUNCTION_NAME"} + "String and scalar "
    "parameters should be specified as is without any escaping or quotes, while lists and objects "
    'should use JSON format. The "string" attribute should be set to "true" for string type '
    'parameters and "false" for other types (numbers, booleans, arrays, objects).\n'
    "If the thinking_mode is enabled, then after function results you should strongly consider "
    "outputting a thinking block. Here is an example:\n"
    "<{calls}>\n...\n</{calls}>\n<function_results>\n...\n</function_results>\n"
    f"{THINK_OPEN}...thinking about results{THINK_CLOSE}\n"
    "Here are the functions available in JSONSchema format:\n"
    "<functions>\n{schemas}\n</functions>\n"
)

_TOOLS_V4 = (
    "## Tools\n\n"
    "You have access to a set of tools to help answer the user's question. You can invoke tools "
    'by writing a "<{calls}>" block like the following:\n\n'
    + _CALL_EXAMPLE
    % {"name": "TOOL_NAME"}
    + '\nString parameters should be specified as is and set `string="true"`. For all other types '
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
    '`string="false"`.\n\n'
    f"If thinking_mode is enabled (triggered by {THINK_OPEN}), you MUST output your complete "
    f"reasoning inside {THINK_OPEN}...{THINK_CLOSE} BEFORE any tool calls or final response.\n\n"
    f"Otherwise, output directly after {THINK_CLOSE} with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n{schemas}\n\n"
    "You MUST strictly follow the above defined tool name and parameter schemas to invoke tool "
    "calls.\n"
)

RESPONSE_TEXT = (
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{schema}"
)

_EFFORTS_V4: Mapping[str | int, str] = {
    "low": "",
    "high": (
        "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
        "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
        "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
        "edge cases, and adversarial scenarios.\n"
        "Explicitly write out your entire deliberation process, documenting every intermediate "
        "step, considered alternative, and rejected hypothesis to ensure absolutely no assumption "
        "is left unchecked.\n\n"
    ),
    "max": (
        "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
        "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
        "exhaustively decompose the problem into its most fundamental components, trace every "
        "causal chain to its root, and resolve the underlying cause rather than any surface "
        "symptom.\n"
        "Do not stop reasoning until you have independently verified the solution from multiple "
        "angles and are certain that no assumption remains unchecked and no error remains "
        "undiscovered.\n\n"
    ),
}

_BUDGETS_V41 = {"low": 50, "high": 75, "xhigh": 75, "max": 100}
_BUDGET_TEXT = (
    "Reasoning Effort: {} (range 1-100, the higher the value, the more thorough the reasoning)\n\n"
)

STYLES: Mapping[str, ChatStyle] = {
    "v3.2": ChatStyle(
        model_type="deepseek_v32",
        calls_tag="function_calls",
        tools_text=_TOOLS_V32,
        part_separator="\n",
        has_results_in_user_turn=False,
    ),
    "v4": ChatStyle(
        model_type="deepseek_v4",
        calls_tag="tool_calls",
        tools_text=_TOOLS_V4,
        part_separator="\n\n",
        reminder_token="<｜latest_reminder｜>",
        efforts=_EFFORTS_V4,
        default_effort="low",
    ),
    "v4.1": ChatStyle(
        model_type=None,
        calls_tag="calls",
        tools_text=_TOOLS_V4,
        part_separator="\n\n",
        tag_space=" ",
        system_token="<｜System｜>",
        reminder_token="<｜latest_reminder｜>",
        efforts={
            **{number: _BUDGET_TEXT.format(number) for number in range(1, 101)},
            **{name: _BUDGET_TEXT.format(number) for name, number in _BUDGETS_V41.items()},
        },
        default_effort="high",
    ),
}


def get_style(name: str) -> ChatStyle:
    """Returns the table of a message format; raises an `InvalidInputError` for an unknown one."""
    if not isinstance(name, str) or name not in STYLES:
        raise InvalidInputError(unknown_name_message("`style`", name, STYLES))
    return STYLES[name]


def find_chat_style(model_type: object) -> str | None:
    """Returns the name of the message format for a `model_type`, or `None` if there is none.

    Args:
        model_type: The `model_type` in a `config.json`.

    Example:

    >>> find_chat_style("deepseek_v32")
    'v3.2'
    """
    names = (name for name, style in STYLES.items() if style.model_type is not None)
    return next((name for name in names if STYLES[name].model_type == model_type), None)
