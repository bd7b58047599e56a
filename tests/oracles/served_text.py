"""A served language model that answers each prompt by a text of the test's choice."""

import contextlib
import json
import threading

from keras_deepseek.chat import encode_chat
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.errors import ModelNotFoundError
from tests.inference.conftest import service_of
from tests.oracles.fake_row_model import END_TOKEN, ByteTokenizer, FakeRowModel, start_engine
from tests.oracles.rest_client import RestClient

USER = [{"role": "user", "content": "Hi"}]
USER_PROMPT = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"
"""The prompt of that conversation in the format of V3.2."""


class ChatTokenizer(ByteTokenizer):
    """A tokenizer of bytes with a message format, or with a template: `<role>text` each.

    `reasons` says whether its template is of a model that reasons.
    """

    def __init__(self, chat_style=None, *, reasons=False):
        super().__init__()
        self.chat_style = chat_style
        self.reasons = reasons
        self.variables = {}
        self.threads = set()

    def tokenize(self, texts, *, add_special_tokens=True):
        self.threads.add(threading.current_thread().name)
        return super().tokenize(texts, add_special_tokens=add_special_tokens)

    def detokenize(self, token_ids, *, skip_special_tokens=True):
        if not all(0 <= token_id < 256 for token_id in token_ids):
            raise InvalidInputError("A token id is no byte.")
        return super().detokenize(token_ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token):
        return 1 if token == "</think>" and self.reasons else None

    def id_to_token(self, token_id):
        return chr(token_id) if token_id < 256 else None

    def apply_chat_template(self, messages, *, add_generation_prompt=True, **variables):
        self.threads.add(threading.current_thread().name)
        if self.chat_style is not None:
            return encode_chat(
                messages,
                style=self.chat_style,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        self.variables = variables
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        think = "<think>\n" if variables.get("thinking") else ""
        return text + (f"<assistant>{think}" if add_generation_prompt else "")


class TextModel:
    """The version, its model, and the texts of the prompts that it was asked."""

    name, number, created = "tiny", 1, 7
    state = "AVAILABLE"

    def __init__(self, answer, tokenizer, *, has_chat, max_length, **options):
        tokens = [*answer.encode(), END_TOKEN]
        self.model = FakeRowModel(self._choose)
        self._tokens = tokens
        self.prompts = []
        self.tokenizer, self.has_chat, self.max_length = tokenizer, has_chat, max_length
        self.chat_style = tokenizer.chat_style
        shapes = [(8, max_length)]
        self.engine = start_engine(self.model, tokenizer, shapes=shapes, chunk_size=256, **options)

    def _choose(self, prompt, answer, uniform):
        if not answer:
            self.prompts.append(bytes(prompt).decode())
        return self._tokens[min(len(answer), len(self._tokens) - 1)]


class TextClient(RestClient):
    """A client that asks for texts."""

    def post(self, path, **fields):
        return self.ask("POST", path, fields)

    def chat(self, content="Hi", **fields):
        messages = [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", **{"messages": messages, **fields})

    def complete(self, prompt="Hi", **fields):
        return self.post("/v1/completions", prompt=prompt, **fields)


def read_events(answer):
    """Returns the events of a streamed answer, parsed, without the last one, `[DONE]`."""
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    *events, end = answer.body.decode().split("\n\n")
    assert end == ""
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    texts = [event.removeprefix("data: ") for event in events]
    if texts[-1] == "[DONE]":
        texts.pop()
    return [json.loads(text) for text in texts]


class FakeEngine(ServingEngine):
    """An engine that serves one language model beside a model of tensors."""

    text = None

    def text_versions(self):
        return [self.text]

    def find_text(self, name=None):
        if name not in (None, self.text.name):
            raise ModelNotFoundError(f"There is no model {name!r}.")
        return self.text

    def dispatch_text(self, bind, sampling, *, model, trace, body, **options):
        version = self.find_text(model)
        trace.model, trace.version = version.name, str(version.number)
        self.monitor.arrive(trace)
        return version.engine.submit(bind(version), sampling, **options), version


@contextlib.contextmanager
def serve_text(
    answer="How do you do?",
    tokenizer=None,
    *,
    has_chat=True,
    max_length=4096,
    server_options=None,
    tensor_model=None,
    **options,
):
    """Serves a model, and yields a client and the `TextModel`."""
    tokenizer = tokenizer or ChatTokenizer("v3.2")
    text = TextModel(answer, tokenizer, has_chat=has_chat, max_length=max_length, **options)
    with FakeEngine(tensor_model, name="double", warm_up=False) as engine:
        engine.text = text
        server = HttpServer(service_of(engine, **(server_options or {})))
        server.start()
        client = TextClient(server)
        client.server = server
        try:
            yield client, text
        finally:
            client.close()
            text.model.release()
            server.stop()
            assert text.engine.close(60)
