"""DeepSeek's message formats: conversations as text for a model, and its answers as they come.

`encode_chat` writes OpenAI's messages as the text that a model reads. `ChatParser` splits the text
of an answer into reasoning, content and tool calls while it is generated. The models' tokenizers
and servers use both; importing this package loads neither a framework nor NumPy.
"""

from keras_deepseek.chat.chat_encoder import encode_chat
from keras_deepseek.chat.chat_messages import ChatInputError
from keras_deepseek.chat.chat_parser import (
    ChatEvent,
    ChatParser,
    ContentText,
    ReasoningText,
    ToolCallArguments,
    ToolCallStart,
    join_events,
)
from keras_deepseek.chat.chat_style import find_chat_style

__all__ = [
    "ChatEvent",
    "ChatInputError",
    "ChatParser",
    "ContentText",
    "ReasoningText",
    "ToolCallArguments",
    "ToolCallStart",
    "encode_chat",
    "find_chat_style",
    "join_events",
]


def __dir__() -> list[str]:
    return sorted(__all__)
