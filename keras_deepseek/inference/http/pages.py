"""What a browser, or whoever writes a client, is told: a page at `/`, and `/openapi.json`.

The page is one file, `page.html`, and asks the other routes; it has no build and loads nothing from
elsewhere.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from keras_deepseek.inference.http.answers import Headers, Route, answer_json
from keras_deepseek.inference.http.message import HttpRequest, HttpResponse
from keras_deepseek.inference.http.openapi import describe_server

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


def page(_server: "HttpServer", _request: HttpRequest, _match: re.Match[str]) -> HttpResponse:
    """Answers with the page."""
    body, headers = _read_page()
    return HttpResponse(200, body, "text/html; charset=utf-8", headers)


def description(server: "HttpServer", _request: HttpRequest, _match: re.Match[str]) -> HttpResponse:
    """Answers with an OpenAPI document of the server and of its models as they are now."""
    return answer_json(describe_server(server.engine, asks_for_tokens=server.tokens is not None))


ROUTES = (
    Route("GET", re.compile("/"), page, call="page", is_open=True),
    Route("GET", re.compile(r"/openapi\.json"), description, call="openapi"),
)


@cache
def _read_page() -> tuple[bytes, Headers]:
    """Returns the page, and headers that let the browser run what stands in it and nothing else."""
    body = (Path(__file__).parent / "page.html").read_bytes()
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",  # The icon, which is empty: browsers would ask for one.
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
    """Returns the hash by which the policy knows the page's one element of a kind."""
    (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
