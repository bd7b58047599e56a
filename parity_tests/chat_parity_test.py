"""Parity of the message formats with the encoders and parsers that vLLM ships.

`VLLM_WHEEL` names the folder of an unzipped wheel of vLLM (0.33), which need not be installed: its
encoders need only Python's standard library, its parsers three small packages.
"""

import copy
import importlib
import importlib.util
import json
import os
import random
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from keras_deepseek.chat import ChatParser, encode_chat, join_events
from tests.oracles.random_answers import cut, random_message, write_answer
from tests.oracles.random_chats import random_chat

NUM_ANSWERS = 2000
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


class VllmFinder:
    """Finds the parsers of vLLM in its wheel; any other module of vLLM does nothing."""

    OF_PARSERS = ("vllm.parser.engine", "vllm.parser.deepseek", "vllm.tool_parsers.utils")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "vllm":
            return None
        file = Path(WHEEL, name.replace(".", "/") + ".py")
        if name.startswith(self.OF_PARSERS) and file.exists():
            return importlib.util.spec_from_file_location(name, file)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


@pytest.fixture
def vllm_parsers(monkeypatch):
    """Returns a function that imports a module below `vllm.parser`."""
    for name in ("openai", "partial_json_parser", "regex"):
        pytest.importorskip(name)
    monkeypatch.setattr(sys, "meta_path", [VllmFinder(), *sys.meta_path])
    yield lambda name: importlib.import_module(f"vllm.parser.{name}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]


def read_by_vllm(vllm_parsers, pieces, style, thinking):
    """Returns reasoning, content and calls as vLLM's parser reads them."""
    name = f"deepseek_{FILES[style]}"
    make_config = getattr(vllm_parsers(name), f"{name}_config")
    config = make_config() if style == "v3.2" else make_config(thinking)
    engine = vllm_parsers("engine.streaming_parser_engine").StreamingParserEngine(config, None)
    texts = {"REASONING_CHUNK": "", "TEXT_CHUNK": ""}
    calls = []
    for event in [
        *(event for piece in pieces for event in engine.feed(piece, [])),
        *engine.finish(),
    ]:
        kind = event.type.name
        if kind == "TOOL_CALL_START":
            calls.append({"TOOL_NAME": "", "ARG_VALUE_CHUNK": ""})
        elif kind in texts:
            texts[kind] += event.value
        elif kind in ("TOOL_NAME", "ARG_VALUE_CHUNK"):
            calls[-1][kind] += event.value
    read = [
        (call["TOOL_NAME"], json.loads(config.arg_converter(call["ARG_VALUE_CHUNK"], False)))
        for call in calls
    ]
    content = texts["TEXT_CHUNK"]
    # It leaves the line breaks before a block of calls in the content.
    return texts["REASONING_CHUNK"], content.removesuffix("\n\n") if read else content, read


@pytest.mark.parametrize("style", FILES)
def test_answers_are_read_as_by_vllm(style, vllm_parsers):
    for seed in range(NUM_ANSWERS):
        rng = random.Random(seed)
        thinking = style != "v3.2" and rng.random() < 0.5  # Its parser of V3.2 knows no reasoning.
        pieces = cut(rng, write_answer(random_message(rng, thinking), style, thinking))
        parser = ChatParser(style, thinking)
        events = [event for piece in pieces for event in parser.feed(piece)]
        message = join_events(events + parser.finish())
        functions = [call["function"] for call in message.get("tool_calls", ())]
        calls = [(entry["name"], json.loads(entry["arguments"])) for entry in functions]
        ours = (message.get("reasoning", ""), message["content"] or "", calls)
        assert ours == read_by_vllm(vllm_parsers, pieces, style, thinking), f"seed {seed}"
