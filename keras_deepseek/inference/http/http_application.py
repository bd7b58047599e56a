"""The ASGI application behind an HTTP server: routes of all protocols, and records of requests.

All of it runs on an event loop, and nothing there waits for the model in a blocking way.
"""

import asyncio
from collections import Counter
from typing import Any

from keras_deepseek.errors import KerasDeepSeekError
from keras_deepseek.inference.errors import ClosedError, OverloadedError
from keras_deepseek.inference.http import (
    open_inference_rest,
    openai_rest,
    pages,
    tf_serving_rest,
)
from keras_deepseek.inference.http.answers import answer_error, answer_json, read_version
from keras_deepseek.inference.http.cross_origin import (
    answer_preflight,
    cors_headers,
    refuse_other_sites,
)
from keras_deepseek.inference.http.message import (
    CLIENT_DISCONNECTED,
    EXTENSION,
    ClientDisconnectError,
    Exchange,
    HttpError,
    HttpRequest,
    HttpResponse,
    Receive,
    Send,
)
from keras_deepseek.inference.http.openapi import describe_server
from keras_deepseek.inference.http.routing import (
    DESCRIPTION_PATH,
    OBJECT,
    Operation,
    Route,
    Router,
)
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.open_version import as_tensor_version
from keras_deepseek.inference.monitoring.access_log import choose_request_id
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.monitoring.request_traces import Attributes, SpanNames
from keras_deepseek.inference.server.service import Service

ROUTES = (
    *tf_serving_rest.ROUTES,
    *open_inference_rest.ROUTES,
    *openai_rest.ROUTES,
    *pages.ROUTES,
)
"""The routes of a server. A new protocol adds its own here."""


_CHALLENGE = 'Bearer realm="keras_deepseek"'
_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)

_SERVER_ERROR = 500
"""The first status that is an error of the server."""

_MAX_TEXT = 1024
"""The characters that are kept of a text from a client, to bound the size of spans."""


class HttpApplication:
    """Answers the requests for a service. It adds the route `/openapi.json` to the others."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._admitted: Counter[ModelVersion] = Counter()
        operation = Operation("This description", OBJECT)
        describe = Route(
            "GET", DESCRIPTION_PATH, self._describe, call="openapi", operation=operation
        )
        self.router = Router([*ROUTES, describe])

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers a request, or starts and stops the engine, as ASGI 3 says."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"Expected an HTTP request, received ASGI's {scope['type']!r}.")
        exchange: Exchange | None = scope.get("extensions", {}).get(EXTENSION)
        request = _read_request(scope, receive, exchange)
        if exchange is not None:
            request.trace.connection = exchange.descriptor
        is_request = exchange is None or exchange.is_request
        recorded = request if is_request else HttpRequest("", "")
        try:
            response = await self._respond(request, request.path if is_request else "")
            if self.service.access_log is not None:
                self._name(request, response)
            if response.stream is not None:
                await self._stream(request, response, send)
                return
            self.end(recorded, response, len(response.body))
            await _send(request, response, send)
        except ClientDisconnectError:
            self.end(recorded, None, 0)
        finally:
            if request.watcher is not None:
                request.watcher.cancel()

    async def _respond(self, request: HttpRequest, path: str) -> HttpResponse:
        """Returns the answer to a request. An error has the JSON form of the protocol of `path`."""
        origins = self.service.options.cors_origins
        routes = self.router.match(path)[0] if origins else {}
        try:
            response = answer_preflight(origins, request, routes) if routes else None
            if response is None:
                self.admit(request)
                response = await self.handle(request)
        except ClientDisconnectError:
            raise
        except Exception as error:  # noqa: BLE001 - The client and the log are told.
            response = answer_error(error, self.router.error_form(path))
        if routes:
            headers = cors_headers(origins, request.headers.get("origin", ""), routes)
            response.headers = (*response.headers, *headers)
        return response

    def refuse_early(
        self, method: bytes, path: bytes, headers: list[tuple[bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], bytes] | None:
        """Refuses a request before its body is read, if its model has no room for it.

        Returns:
            The headers and the body of a 429. `None` if the request must be handled as usual: the
            model has room, another error has precedence, or the request must be logged or traced.
        """
        service, engine = self.service, self.service.engine
        if service.access_log is not None or service.traces is not None or not engine.ready:
            return None
        routes, parameters = self.router.match(path.decode("latin-1"))
        route = routes.get(method.decode("latin-1"))
        if route is None or not route.is_refused_early or not self._is_allowed(headers):
            return None
        try:
            number, label = read_version(parameters), parameters.get("label", "")
            version = as_tensor_version(engine.find(parameters["name"], number, label))
        except (HttpError, KerasDeepSeekError):
            return None
        try:
            # The queue lacks the requests that were admitted in this turn of the event loop.
            version.check_room(self._admitted[version] + 1)
        except OverloadedError as error:
            response = answer_error(error, route.error_form)
            origin = b",".join(value for name, value in headers if name == b"origin")
            origins = service.options.cors_origins
            cors = cors_headers(origins, origin.decode("latin-1"), routes)
            response.headers = (*response.headers, *cors)
        else:
            if not self._admitted:  # The next turn of the event loop counts from 0.
                asyncio.get_running_loop().call_soon(self._admitted.clear)
            self._admitted[version] += 1
            return None
        trace = RequestTrace(route.protocol, route.call)
        trace.model, trace.version = version.name, str(version.number)
        engine.monitor.arrive(trace)
        engine.monitor.end(trace, response.status)
        return _headers_of(response), response.body

    def _is_allowed(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Returns True if the server has no tokens, or the headers have a valid one, once."""
        tokens = self.service.tokens
        if tokens is None:
            return True
        sent = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
        return len(sent) == 1 and tokens.allows(sent[0])

    def admit(self, request: HttpRequest) -> None:
        """Raises the error of a malformed request, or a 401 if it lacks a valid token."""
        if request.exchange is not None and request.exchange.refusal is not None:
            raise request.exchange.refusal
        tokens = self.service.tokens
        if tokens is None or tokens.allows(request.headers.get("authorization")):
            return
        if self.router.is_open(request.path):
            return
        if "authorization" not in request.headers:
            message = "A token is required. Send the header Authorization: Bearer TOKEN."
            raise HttpError(401, message, (("www-authenticate", _CHALLENGE),))
        challenge = f'{_CHALLENGE}, error="invalid_token"'
        message = "The token is not valid. Send a valid one as Authorization: Bearer TOKEN."
        raise HttpError(401, message, (("www-authenticate", challenge),))

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Returns the response of the route that matches a request.

        Raises `HttpError` 404 for an unknown path, and 405 for a wrong method.
        """
        if self.service.access_log is not None:  # From here on, log lines name the request.
            request.trace.request_id = choose_request_id(request.headers.get("x-request-id"))
        route, request.parameters = self.router.find(request)
        request.route = route.path
        request.trace.protocol, request.trace.call = route.protocol, route.call
        name = request.parameters.get("name", "")
        if not route.is_local and name in self.service.engine.models:
            request.trace.model = name  # Also if its version or label does not exist.
        if route.is_management:
            refuse_other_sites(request)
            self.service.model_control.check(request.headers.get("authorization"))
        return await route.handler(self.service, request)

    async def _stream(self, request: HttpRequest, response: HttpResponse, send: Send) -> None:
        """Sends a streamed answer, and records it at its end.

        A client that has the head of an answer would take a closed connection for its end, so an
        error is the last piece. The record has the status of the error.
        """
        sender = StreamSender(request, response, send)
        answer: HttpResponse | None = None
        try:
            with request.ends_on_disconnect():
                await sender.start()
                try:
                    await self._send_pieces(request, response, sender)
                except ClientDisconnectError:
                    raise
                except Exception as error:  # noqa: BLE001 - The client and the log are told.
                    refusal = answer_error(error, self.router.error_form(request.path))
                    response.status = refusal.status
                    await sender.write(refusal.body)
                await sender.finish()
            answer = response
        except ClientDisconnectError:
            pass
        finally:
            if response.stream is not None:
                await response.stream.aclose()
            self.end(request, answer, sender.size)

    async def _send_pieces(
        self, request: HttpRequest, response: HttpResponse, sender: "StreamSender"
    ) -> None:
        """Sends the pieces of a stream. Raises a `ClosedError` if the server stops meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        if response.stream is None or request.method == "HEAD":
            return
        with self.service.ends_when_stopping(task):
            async for piece in response.stream:
                await sender.write(piece)
            return
        raise ClosedError("The server stops, so that the answer is not whole.")

    def _name(self, request: HttpRequest, response: HttpResponse) -> None:
        """Adds the id by which the log names the request to the headers of its answer."""
        if not request.trace.request_id:  # It was refused before it was handled.
            request.trace.request_id = choose_request_id(request.headers.get("x-request-id"))
        response.headers = (*response.headers, ("x-request-id", request.trace.request_id))

    def end(self, request: HttpRequest, response: HttpResponse | None, size: int) -> None:
        """Adds an answered request to the metrics, the traces and the access log.

        The `request` is empty if the bytes were no HTTP request. `response` is `None` if the client
        hung up before. `size` is the bytes of the body that were sent.
        """
        service, trace = self.service, request.trace
        status = CLIENT_DISCONNECTED if response is None else response.status
        seconds = service.engine.monitor.end(trace, status)
        if service.traces is not None:
            service.traces.add(trace, seconds, name_spans(request, status), request.headers)
        if service.access_log is not None:
            if response is not None:
                trace.request_id = dict(response.headers)["x-request-id"]
            service.access_log.write(
                trace,
                method=request.method,
                path=request.path,
                status=status,
                size=size,
                seconds=seconds,
                client=request.client,
            )

    async def _live(self, receive: Receive, send: Send) -> None:
        """Follows ASGI's lifespan: starts the engine, and closes one that it has started."""
        engine = self.service.engine
        was_ready = engine.ready
        await receive()
        try:
            await asyncio.to_thread(engine.start)
        except Exception as error:  # noqa: BLE001 - The server that runs this logs and ends.
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if not was_ready:
            await asyncio.to_thread(engine.close)
        await asyncio.to_thread(self.service.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _describe(self, service: Service, request: HttpRequest) -> HttpResponse:
        """Answers with the OpenAPI document of the routes, and of the models as they are now."""
        routes = self.router.routes
        if not service.model_control.is_on:
            routes = tuple(route for route in routes if not route.is_management)
        if not service.options.shared_memory:
            routes = tuple(route for route in routes if not route.is_local)
        asks_for_tokens = service.tokens is not None
        return answer_json(
            describe_server(service.engine, routes, request.root, asks_for_tokens=asks_for_tokens)
        )


def _read_request(scope: Any, receive: Receive, exchange: Exchange | None) -> HttpRequest:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    client, root = scope.get("client"), scope.get("root_path", "")
    return HttpRequest(
        scope["method"],
        scope["path"].removeprefix(root) or "/",
        headers,
        client[0] if client else "",
        scope["http_version"],
        scope.get("scheme", "http"),
        scope.get("server"),
        root,
        receive,
        exchange,
    )


def _headers_of(response: HttpResponse) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", response.content_type.encode("latin-1"))]
    if response.stream is None:
        headers.append((b"content-length", b"%d" % len(response.body)))
    for name, value in response.headers:
        headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    return headers


class StreamSender:
    """Sends a body in pieces. Each call returns once the client has read most of what was sent."""

    def __init__(self, request: HttpRequest, response: HttpResponse, send: Send) -> None:
        self.size = 0
        """The bytes of the body so far."""
        self._response = response
        self._send = send
        self._exchange = request.exchange if request.version == "1.0" else None

    async def start(self) -> None:
        """Sends the head."""
        status, headers = self._response.status, _headers_of(self._response)
        if self._exchange is not None:
            self._exchange.send_unframed(0)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, piece: bytes) -> None:
        """Sends a piece."""
        await self._write(self._response.frame(piece), more_body=True)

    async def finish(self) -> None:
        """Ends the body."""
        await self._write(b"", more_body=False)

    async def _write(self, data: bytes, *, more_body: bool) -> None:
        if self._exchange is not None:
            self._exchange.send_unframed(len(data))
        await self._send({"type": "http.response.body", "body": data, "more_body": more_body})
        self.size += len(data)


async def _send(request: HttpRequest, response: HttpResponse, send: Send) -> None:
    headers = _headers_of(response)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = b"" if request.method == "HEAD" else response.body
    await send({"type": "http.response.body", "body": body, "more_body": False})


def name_spans(request: HttpRequest, status: int) -> SpanNames:
    """Returns the name and the attributes of a request's span.

    The query is left out: it may hold a secret. Status 499: the client hung up.
    """
    attributes: Attributes = {}
    route = request.route
    is_known = request.method in _METHODS
    if request.method:  # It is empty if the bytes were no HTTP request.
        attributes["http.request.method"] = request.method if is_known else "_OTHER"
        if not is_known:
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
    method = request.method if is_known else "HTTP"
    return SpanNames(f"{method} {route}" if route else method, attributes, has_failed)
