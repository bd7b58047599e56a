"""OpenAI's API: chats, completions and models under `/v1/`, and the tokenizer calls of vLLM.

`GET /v1/models/NAME` is TF Serving's, too: `tf_serving_rest.status` answers it.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any, TypeVar

from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.http.answers import answer_error, answer_json
from keras_deepseek.inference.http.body import compute, read_body
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse
from keras_deepseek.inference.http.routing import (
    LIST,
    OBJECT,
    TEXT,
    ErrorForm,
    Handler,
    Operation,
    Route,
    Schema,
    fields,
)
from keras_deepseek.inference.models.text_version import TextVersion
from keras_deepseek.inference.openai.chat_call import ChatCall
from keras_deepseek.inference.openai.chat_prompt import encode_conversation
from keras_deepseek.inference.openai.completion_call import CompletionCall, is_token_ids
from keras_deepseek.inference.openai.openai_call import OpenAICall
from keras_deepseek.inference.openai.openai_errors import (
    error_object,
    naming_field,
    renaming_fields,
)
from keras_deepseek.inference.openai.request_fields import read_content, read_flag, read_model
from keras_deepseek.inference.server.service import Service
from keras_deepseek.inference.text.text_answer import TextAnswer, TextResult

PROTOCOL = "openai"
"""The label of the metrics."""

_TOKENIZING_COST = 16
"""A character takes about so many times as long to tokenize as a byte takes to parse."""

_MAX_BODY_BYTES = 2**24
"""The lists of token ids in a body take about ten times its size."""

_EVENTS_TYPE = "text/event-stream"
_EVENT_HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""No proxy is to keep events back."""

_T = TypeVar("_T")


async def chat(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers a conversation, while the model writes or as a whole."""
    return await _answer(service, request, ChatCall)


async def complete(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers one or more prompts, while the model writes or as a whole."""
    return await _answer(service, request, CompletionCall)


async def _answer(
    service: Service, request: HttpRequest, read: Callable[[dict[str, Any]], OpenAICall]
) -> HttpResponse:
    def prepare(content: dict[str, Any]) -> OpenAICall:
        call = read(content)
        call.encode_for(_find(service, call.model))
        return call

    call = await _prepare(service, request, prepare)
    with contextlib.ExitStack() as stack:
        stack.callback(call.cancel)
        await _submit_all(service, request, call)
        if call.is_streamed:
            with request.ends_on_disconnect():
                await call.open()
            stack.pop_all()  # It is cancelled when the stream ends.
            # Without the charset, some clients take the text for Latin-1.
            kind = f"{_EVENTS_TYPE}; charset=utf-8"
            return HttpResponse(
                200, b"", kind, _EVENT_HEADERS, call, lambda piece: b"data: %b\n\n" % piece
            )
        with request.ends_on_disconnect():
            results = [await answer.wait() for answer in call.answers]
        return await compute(
            sum(_cost(call, result) for result in results),
            lambda: answer_json(call.write_whole(results)),
        )


async def list_models(service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers with the language models that are ready."""
    return answer_json({"object": "list", "data": list(describe_models(service).values())})


def describe_models(service: Service) -> dict[str, dict[str, Any]]:
    """Returns OpenAI's descriptions of the language models that answer, by name.

    They include the longest sequence, as vLLM's do.
    """
    return {
        version.name: {
            "id": version.name,
            "object": "model",
            "created": version.created,
            "owned_by": "keras_deepseek",
            "max_model_len": version.max_length,
        }
        for version in service.engine.text_versions()
        if service.engine.ready and version.state == "AVAILABLE"
    }


def answer_model(service: Service, name: str, content: dict[str, Any]) -> HttpResponse:
    """Answers with `content`, and with the description of a language model of that name.

    A language model that is not ready is answered with 503.
    """
    description = describe_models(service).get(name, {})
    if not description and any(text.name == name for text in service.engine.text_versions()):
        message = f"The language model {name!r} is not ready: it is starting or stopping."
        return answer_error(HttpError(503, message, (("retry-after", "1"),)), OPENAI_ERROR)
    return answer_json(content | description)


async def tokenize(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the tokens of a text or a conversation, as vLLM does."""

    def work(content: dict[str, Any]) -> dict[str, Any]:
        version = _find(service, read_model(content))
        text, is_chat = content.get("prompt"), "messages" in content
        if is_chat:
            text = encode_conversation(content, version).text
        elif not isinstance(text, str):
            raise InvalidFieldError("prompt", f"`prompt` must be a string, received {text!r:.50}.")
        adds = read_flag(content, "add_special_tokens", default=not is_chat)
        with renaming_fields({"prompt": "messages"} if is_chat else {}):
            token_ids = list(version.engine.tokenize(text, adds_special_tokens=adds))
        has_strings = read_flag(content, "return_token_strs")
        return {
            "count": len(token_ids),
            "max_model_len": version.max_length,
            "tokens": token_ids,
            "token_strs": list(map(version.tokenizer.id_to_token, token_ids))
            if has_strings
            else None,
        }

    return answer_json(await _prepare(service, request, work))


async def detokenize(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with the text of tokens, as vLLM does."""

    def work(content: dict[str, Any]) -> dict[str, str]:
        version = _find(service, read_model(content))
        token_ids: Any = content.get("tokens")
        if not (token_ids == [] or is_token_ids(token_ids)):
            raise InvalidFieldError(
                "tokens", f"`tokens` must be a list of token ids, received {token_ids!r:.50}."
            )
        find = version.tokenizer.id_to_token
        unknown = next((token for token in token_ids if find(token) is None), None)
        if unknown is not None:
            raise InvalidFieldError("tokens", f"The tokenizer has no token {unknown!r:.50}.")
        return {"prompt": version.tokenizer.detokenize(token_ids, skip_special_tokens=False)}

    return answer_json(await _prepare(service, request, work))


async def _prepare(
    service: Service, request: HttpRequest, work: Callable[[dict[str, Any]], _T]
) -> _T:
    """Reads the body, and returns what `work` makes of its fields, on a thread if it is large."""
    service.check_ready(service.engine.name)
    body = await read_body(request, min(service.options.max_body_bytes, _MAX_BODY_BYTES))
    return await compute(_TOKENIZING_COST * len(body), lambda: work(read_content(body)))


def _find(service: Service, name: str | None) -> TextVersion:
    with naming_field("model"):
        return service.engine.find_text(name)


def _cost(call: OpenAICall, result: TextResult) -> int:
    """Returns the bytes that take about as long to parse as a whole answer takes to write."""
    num_alternatives = call.sampling.num_alternatives
    num_tokens = result.num_tokens + len(result.prompt_details)
    return num_tokens * (4 if num_alternatives is None else 128 * (1 + num_alternatives))


def _read_timeout(request: HttpRequest) -> float | None:
    """Returns the seconds that OpenAI's clients wait, by a header that they send, or `None`.

    After that they hang up, so that a first token would come too late.
    """
    try:
        seconds = float(request.headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


async def _submit_all(service: Service, request: HttpRequest, call: OpenAICall) -> None:
    """Submits the prompts of a call.

    If there are more than a client may have waiting, the next ones follow as others are answered.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    client = _find_client(service, request)
    while len(call.answers) < len(call.prompts):
        ended.clear()
        has_room = _find(service, call.model).engine.count_room(client) >= call.sampling.n
        if has_room or all(answer.is_over for answer in call.answers):
            answer = _submit(service, request, call, client)
            answer.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            call.answers.append(answer)
            continue
        with request.ends_on_disconnect():
            await ended.wait()
        for answer in call.answers:
            answer.check()


def _find_client(service: Service, request: HttpRequest) -> str:
    """Returns who has a token, where the server asks for one, or else an address.

    Clients share the model fairly.
    """
    has_tokens = service.tokens is not None
    return request.headers.get("authorization", "") if has_tokens else request.client


def _submit(service: Service, request: HttpRequest, call: OpenAICall, client: str) -> TextAnswer:
    """Submits the next prompt of a call."""
    with renaming_fields(call.field_names):
        answer, _ = service.engine.dispatch_text(
            call.encode_for,
            call.sampling,
            model=call.model,
            trace=request.trace,
            timeout=_read_timeout(request),
            priority=call.priority,
            client=client,
            body=call.log_fields(),
            **call.options,
        )
    return answer


OPENAI_ERROR = ErrorForm(
    "OpenAIError",
    fields({"error": fields({"message": TEXT, "type": TEXT}, param={}, code={})}),
    error_object,
)

_NUMBER: Schema = {"type": "integer"}
_USAGE = fields(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _NUMBER))
_ANSWER = fields(
    {"id": TEXT, "object": TEXT, "created": _NUMBER, "model": TEXT, "choices": LIST},
    usage=_USAGE,
)
_SETTINGS = {
    "model": TEXT,
    "max_tokens": _NUMBER,
    "temperature": {"type": "number"},
    "stream": {"type": "boolean"},
}
_MESSAGES = {"type": "array", "items": fields({"role": TEXT}, content={})}
_CHAT = fields({"messages": _MESSAGES}, **_SETTINGS)
_COMPLETION = fields({"prompt": {"anyOf": [TEXT, LIST]}}, **_SETTINGS)
_MODELS = fields({"object": TEXT, "data": LIST})
_TOKENS = fields({"count": _NUMBER, "max_model_len": _NUMBER, "tokens": LIST, "token_strs": {}})
_PROMPT, _TOKEN_LIST = fields({"prompt": TEXT}), fields({"tokens": LIST}, model=TEXT)


def _route(
    path: str, handler: Handler, summary: str, answer: Schema, body: Schema | None = None
) -> Route:
    operation = Operation(summary, answer, body=body)
    if handler in (chat, complete):
        operation = operation._replace(other_answers={_EVENTS_TYPE: TEXT})
    method, call = "GET" if body is None else "POST", handler.__name__
    return Route(
        method,
        path,
        handler,
        PROTOCOL,
        call,
        operation=operation,
        is_cross_origin=True,
        error_form=OPENAI_ERROR,
    )


ROUTES = (
    _route("/v1/chat/completions", chat, "Answer a conversation", _ANSWER, _CHAT),
    _route("/v1/completions", complete, "Write after a prompt", _ANSWER, _COMPLETION),
    _route("/v1/models", list_models, "Language models", _MODELS),
    _route("/tokenize", tokenize, "Tokens of a text or a conversation", _TOKENS, OBJECT),
    _route("/detokenize", detokenize, "Text of tokens", _PROMPT, _TOKEN_LIST),
)
