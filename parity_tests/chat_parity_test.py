"""Parity of the message formats with the encoders and parsers that vLLM ships.

`VLLM_WHEEL` names the folder of an unzipped wheel of vLLM (0.33): its encoders need only Python's
standard library, and vLLM itself need not be installed.
"""

import copy
import importlib.util
import os
import random
from pathlib import Path

import pytest

from keras_deepseek.chat import encode_chat
from tests.oracles.random_chats import random_chat

WHEEL = os.environ.get("VLLM_WHEEL")
NUM_CHATS = 10_000
FILES = {"v3.2": "v32", "v4": "v4", "v4.1": "v41"}
SCHEMAS = {"json_object": {"type": "object"}}

pytestmark = pytest.mark.skipif(WHEEL is None, reason="VLLM_WHEEL names no unzipped wheel of vLLM")


def load_encoder(style):
    path = Path(WHEEL, f"vllm/tokenizers/deepseek_{FILES[style]}_encoding.py")
    spec = importlib.util.spec_from_file_location(f"vllm_encoding_{FILES[style]}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.encode_messages


def to_vllm(chat):
    """Returns a conversation as vLLM's encoders take it."""
    style, messages = chat["style"], copy.deepcopy(chat["messages"])
    separator = "\n" if style == "v3.2" else "\n\n"
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = separator.join(part["text"] for part in message["content"])
        for name in ("reasoning", "reasoning_content"):
            if name in message:
                message["reasoning"] = message["reasoning_content"] = message[name]
    response_format = chat["response_format"] or {"type": "text"}
    schema = SCHEMAS.get(response_format["type"])
    if response_format["type"] == "json_schema":
        schema = response_format["json_schema"]["schema"]
    notes = {"tools": chat["tools"] or None, "response_format": schema}
    if any(notes.values()):
        if not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system", "content": ""})
        next(message for message in messages if message["role"] == "system").update(notes)
    if style == "v3.2":
        sort_results(messages)
    return messages


def sort_results(messages):
    """Puts tool results in the order of their calls, which V3.2's encoder expects."""
    for number, message in enumerate(messages):
        calls = [call["id"] for call in message.get("tool_calls", ())]
        last = number + 1
        while last < len(messages) and messages[last]["role"] == "tool":
            last += 1
        if calls:
            results = messages[number + 1 : last]
            messages[number + 1 : last] = sorted(
                results, key=lambda result: calls.index(result["tool_call_id"])
            )


@pytest.mark.parametrize("style", FILES)
def test_random_conversations_have_the_bytes_of_vllm(style):
    encode = load_encoder(style)
    for seed in range(NUM_CHATS):
        chat = random_chat(random.Random(seed), style)
        messages = to_vllm(chat)
        mode = "thinking" if chat["thinking"] else "chat"
        if style == "v3.2":
            # It fails where it drops a message of a developer, so it may not drop any.
            options = {"drop_thinking": all(m["role"] != "developer" for m in messages)}
        else:
            options = {"reasoning_effort": chat["reasoning_effort"]}
        expected = encode(messages, thinking_mode=mode, **options)
        assert encode_chat(**chat).encode() == expected.encode(), f"seed {seed}"
