"""The calls of pages in a browser that belong to another site: CORS, and what is refused."""

import re
from collections.abc import Collection, Mapping

from keras_deepseek.inference.http.message import HttpError, HttpRequest, HttpResponse
from keras_deepseek.inference.http.routing import Route

Headers = tuple[tuple[str, str], ...]

_ADDRESS = re.compile(r"(localhost|[\d.]+|\[[0-9a-fA-F:.]+\])(:\d+)?")

_READABLE = "inference-header-content-length, retry-after, www-authenticate, x-request-id"
"""The headers of answers that pages may read, beside those that all may."""

_PREFLIGHT_SECONDS = "600"
"""How long a browser may remember the answer to a preflight request."""


def cors_headers(origins: Collection[str], origin: str, routes: Mapping[str, Route]) -> Headers:
    """Returns the headers that let a page of `origin` read an answer of one path.

    `routes` are those of the path, by method. There are none for a path that pages of other sites
    may not call.
    """
    if not origins or not routes or not all(route.is_cross_origin for route in routes.values()):
        return ()
    if origin not in origins:
        return (("vary", "origin"),)
    return (
        ("vary", "origin"),
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", _READABLE),
    )


def answer_preflight(
    origins: Collection[str], request: HttpRequest, routes: Mapping[str, Route]
) -> HttpResponse | None:
    """Answers the request by which a browser asks whether a page may call a path.

    It has no token. Returns `None` for another request, a path that pages of other sites may not
    call, or an origin that is not among `origins`.
    """
    headers = request.headers
    if request.method != "OPTIONS" or "access-control-request-method" not in headers:
        return None
    # Without `access-control-allow-origin` the browser would refuse the page's call in any case.
    if len(cors_headers(origins, headers.get("origin", ""), routes)) <= 1:
        return None
    allowed = [("access-control-allow-methods", ", ".join(routes))]
    if "access-control-request-headers" in headers:
        names = headers["access-control-request-headers"]
        allowed.append(("access-control-allow-headers", names))
    allowed.append(("access-control-max-age", _PREFLIGHT_SECONDS))
    return HttpResponse(200, b"", "text/plain", tuple(allowed))


def refuse_other_sites(request: HttpRequest) -> None:
    """Refuses a call that the page of another site makes a browser send.

    `Host` must be an IP address or `localhost`: the other site may own a name, and let it point to
    this server.
    """
    headers = request.headers
    origin, host = headers.get("origin"), headers.get("host", "")
    is_of_site = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    if is_of_site and origin is None:
        return
    is_same = origin is None or origin.partition("://")[2].lower() == host.lower()
    if not (is_of_site and is_same and _ADDRESS.fullmatch(host)):
        names = ("host", "origin", "sec-fetch-site")
        sent = ", ".join(f"{name}: {headers[name]}" for name in names if name in headers)
        raise HttpError(403, f"Pages of other sites may not do this; received {sent}.")
