"""The names and attributes of HTTP requests in traces."""

from keras_deepseek.inference.http.message import CLIENT_DISCONNECTED, HttpRequest
from keras_deepseek.inference.monitoring.request_traces import Attributes, SpanNames

_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)

_SERVER_ERROR = 500
"""The first status that is an error of the server."""

_MAX_TEXT = 1024
"""The characters that are kept of a text from a client, to bound the size of spans."""


def name_http(request: HttpRequest | None, status: int) -> SpanNames:
    """Returns the name and the attributes of a request's span.

    The query is left out: it may hold a secret. Status 499: the client hung up.
    """
    attributes: Attributes = {}
    route = "" if request is None else request.route
    method = "HTTP"
    if request is not None:
        method = request.method if request.method in _METHODS else "HTTP"
        attributes["http.request.method"] = "_OTHER" if method == "HTTP" else method
        if method == "HTTP":
            attributes["http.request.method_original"] = request.method[:_MAX_TEXT]
        attributes["url.path"] = request.path[:_MAX_TEXT]
        attributes["client.address"] = request.client
        attributes["network.protocol.version"] = request.version
        attributes["url.scheme"] = request.scheme
        if request.server is not None:
            attributes["server.address"] = request.server[0]
            attributes["server.port"] = request.server[1] or 0
        agent = request.headers.get("user-agent")
        if agent:
            attributes["user_agent.original"] = agent[:_MAX_TEXT]
    if route:
        attributes["http.route"] = route
    has_failed = status >= _SERVER_ERROR or status == CLIENT_DISCONNECTED
    if status != CLIENT_DISCONNECTED:
        attributes["http.response.status_code"] = status
    if has_failed:
        attributes["error.type"] = (
            "client_hung_up" if status == CLIENT_DISCONNECTED else str(status)
        )
    return SpanNames(f"{method} {route}" if route else method, attributes, has_failed)
