"""The page at `/`: one file, `page.html`, that calls the other routes.

It needs no build, and loads nothing from elsewhere.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from keras_deepseek.inference.http.answers import Headers
from keras_deepseek.inference.http.message import HttpRequest, HttpResponse
from keras_deepseek.inference.http.operation import TEXT, Operation
from keras_deepseek.inference.http.routing import Parameters, Route

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer


async def page(
    _server: "HttpServer", _request: HttpRequest, _parameters: Parameters
) -> HttpResponse:
    """Answers with the HTML page."""
    body, headers = _read_page()
    return HttpResponse(200, body, "text/html; charset=utf-8", headers)


_OPERATION = Operation("A page to try the models", TEXT, "text/html")

ROUTES = (Route("GET", "/", page, call="page", operation=_OPERATION, is_open=True),)


@cache
def _read_page() -> tuple[bytes, Headers]:
    """Returns the HTML page, and headers that let the browser run only the page's own script."""
    body = (Path(__file__).parent / "page.html").read_bytes()
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
