"""The routes that belong to no protocol: health, metrics for Prometheus, and two pages.

A page is one file that calls the other routes: `page.html` for tensors, `chat.html` for language
models. It needs no build, and loads nothing from elsewhere.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from keras_deepseek.errors import MissingExtraError
from keras_deepseek.inference.http.answers import Headers, answer_json
from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse
from keras_deepseek.inference.http.routing import OBJECT, TEXT, Operation, Route
from keras_deepseek.inference.models.served_model import find_waiting
from keras_deepseek.inference.server.server import NOT_READY
from keras_deepseek.inference.server.service import Service


async def health(service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers 200 if the server is ready, with the versions that wait, else 503.

    Where tokens are asked for, it names no model: no token is asked for here.
    """
    if not service.ready:
        raise HttpError(503, NOT_READY)
    waiting = find_waiting(service.engine.models) if service.tokens is None else {}
    return answer_json({"status": "ready", **waiting})


async def metrics(service: Service, request: HttpRequest) -> HttpResponse:
    """Answers with all metrics: as OpenMetrics if the client accepts it, else as Prometheus's text.

    Answers 501 if `prometheus_client` is not installed. Other paths don't need it.
    """
    try:
        from keras_deepseek.inference.server.metrics import write_metrics
    except ImportError as error:
        missing = MissingExtraError("prometheus-client", "serving", "to answer scrapes")
        raise HttpError(501, str(missing)) from error
    return HttpResponse(200, *write_metrics(service.engine, request.headers.get("accept", "")))


async def page(service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers with the page to try the models, or to chat if all of them are language models."""
    has_chat_alone = service.engine.text_versions() and not service.engine.tensor_versions()
    return _answer_page("chat.html" if has_chat_alone else "page.html")


async def chat_page(_service: Service, _request: HttpRequest) -> HttpResponse:
    """Answers with the page to chat."""
    return _answer_page("chat.html")


def _answer_page(name: str) -> HttpResponse:
    body, headers = _read_page(name)
    return HttpResponse(200, body, "text/html; charset=utf-8", headers)


_METRICS = Operation(
    "Metrics for Prometheus",
    TEXT,
    "text/plain",
    other_answers={"application/openmetrics-text": TEXT},
)
_HEALTH = Operation("Readiness of the server", OBJECT)
_PAGE = Operation("A page to try the models", TEXT, "text/html")
_CHAT = Operation("A page to chat with a language model", TEXT, "text/html")

ROUTES = (
    *(  # vLLM's clients ask the second one.
        Route("GET", path, health, call="health", operation=_HEALTH, is_open=True)
        for path in ("/healthz", "/health")
    ),
    *(
        Route("GET", path, metrics, call="metrics", operation=_METRICS)
        for path in ("/metrics", "/monitoring/prometheus/metrics")
    ),
    Route("GET", "/", page, call="page", operation=_PAGE, is_open=True),
    Route("GET", "/chat", chat_page, call="page", operation=_CHAT, is_open=True),
)


@cache
def _read_page(name: str) -> tuple[bytes, Headers]:
    """Returns an HTML page, and headers that let the browser run only the page's own script."""
    body = (Path(__file__).parent / name).read_bytes()
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",  # The empty icon in the page. Browsers would ask for one.
        f"script-src {_source_of(body, b'script')}",
        f"style-src {_source_of(body, b'style')}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return body, (
        ("content-security-policy", "; ".join(policy)),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    )


def _source_of(body: bytes, tag: bytes) -> str:
    """Returns the hash of the page's one `<tag>` element, for the content security policy."""
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
