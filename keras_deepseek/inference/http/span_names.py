"""The names and attributes of HTTP requests in traces."""

from typing import TYPE_CHECKING

from keras_deepseek.inference.http.message import HUNG_UP, HttpRequest
from keras_deepseek.inference.monitoring.request_traces import Attributes, SpanNames

if TYPE_CHECKING:
    from keras_deepseek.inference.http.http_server import HttpServer

_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)

_SERVER_ERROR = 500
"""The first status that is an error of the server."""

_MAX_TEXT = 1024
"""The characters that are kept of a text from a client, to bound the size of spans."""


def name_http(
    server: "HttpServer", request: HttpRequest | None, status: int, route: str
) -> SpanNames:
    """Returns the name and the attributes of a request's span.

    The query is left out: it may hold a secret. Status 499: the client hung up.
    """
    attributes: Attributes = {
        "url.scheme": server.url.partition(":")[0],
        "server.address": server.host,
        "server.port": server.port,
    }
    method = "HTTP"
    if request is not None:
        method = request.method if request.method in _METHODS else "HTTP"
        attributes["http.request.method"] = "_OTHER" if method == "HTTP" else method
        if method == "HTTP":
            attributes["http.request.method_original"] = request.method[:_MAX_TEXT]
        attributes["url.path"] = request.path[:_MAX_TEXT]
        attributes["client.address"] = request.client
        attributes["network.protocol.version"] = "1.0" if request.is_old else "1.1"
        agent = request.headers.get("user-agent")
        if agent:
            attributes["user_agent.original"] = agent[:_MAX_TEXT]
    if route:
        attributes["http.route"] = route
    has_failed = status >= _SERVER_ERROR or status == HUNG_UP
    if status != HUNG_UP:
        attributes["http.response.status_code"] = status
    if has_failed:
        attributes["error.type"] = "client_hung_up" if status == HUNG_UP else str(status)
    return SpanNames(f"{method} {route}" if route else method, attributes, has_failed)
