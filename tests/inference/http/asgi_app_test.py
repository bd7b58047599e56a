"""The application without the package's own server: in FastAPI, by httpx, under plain ASGI."""

import asyncio
import gzip

import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.http import http_application
from keras_deepseek.inference.http.message import HttpResponse, stream_events
from keras_deepseek.inference.http.routing import Route

PREDICT = "/v1/models/model:predict"


@pytest.fixture
def engine(doubler):
    with ServingEngine(doubler, warm_up=False) as engine:
        yield engine


def test_httpx_asks_it_without_a_port(engine):
    httpx = pytest.importorskip("httpx")

    async def ask():
        transport = httpx.ASGITransport(engine.asgi_app(tokens=["secret"]))
        headers = {"Authorization": "Bearer secret"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            refused = await client.get("/v1/models/model")
            one = await client.post(PREDICT, json={"instances": [[1, 2]]}, headers=headers)
            body = gzip.compress(b'{"instances": [[3, 4]]}')
            headers["Content-Encoding"] = "gzip"
            two = await client.post(PREDICT, content=body, headers=headers)
            head = await client.head("/v2/health/ready")
            options = await client.options("/v2/health/ready")
        return refused, one, two, head, options

    refused, one, two, head, options = asyncio.run(ask())
    assert refused.status_code == 401
    assert one.json() == {"predictions": [[2.0, 4.0]]}
    assert two.json() == {"predictions": [[6.0, 8.0]]}
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "14")
    assert (options.status_code, options.headers["allow"]) == (405, "GET, HEAD")


def test_fastapi_mounts_it(engine):
    fastapi = pytest.importorskip("fastapi")
    httpx = pytest.importorskip("httpx")
    app = fastapi.FastAPI()
    app.mount("/served", engine.asgi_app())

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post(f"/served{PREDICT}", json={"instances": [[1, 2]]})
            page = await client.get("/served/")
            missing = await client.get("/served/nowhere")
        return answer, page, missing

    answer, page, missing = asyncio.run(ask())
    assert answer.json() == {"predictions": [[2.0, 4.0]]}
    assert page.headers["content-type"].startswith("text/html")
    assert "There is no path '/nowhere'" in missing.json()["error"]


def scope_of(path=PREDICT, **fields):
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "http_version": "1.1"}
    return {**scope, **fields}


def call(app, scope, *messages, then=None):
    """Returns what the application sends. `then` is waited for before the client hangs up."""

    async def run():
        waiting, sent = list(messages), []

        async def receive():
            if waiting:
                return waiting.pop(0)
            if then is None:
                await asyncio.get_running_loop().create_future()
            await asyncio.to_thread(then)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent

    return asyncio.run(run())


def test_a_body_may_come_in_pieces(engine):
    pieces = [b'{"instances"', b": [[1", b"", b", 2]]}"]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    sent = call(engine.asgi_app(), scope_of(), *messages, {"type": "http.request"})
    assert (sent[0]["status"], sent[1]["body"]) == (200, b'{"predictions":[[2.0,4.0]]}')


def test_a_body_is_counted_as_it_comes(engine):
    app = engine.asgi_app(max_body_bytes=10)
    piece = {"type": "http.request", "body": b"x" * 6, "more_body": True}
    assert call(app, scope_of(), piece, piece)[0]["status"] == 413
    assert call(app, scope_of(headers=[(b"content-length", b"11")]))[0]["status"] == 413


def test_a_client_that_hangs_up_leaves_the_queue(engine, doubler):
    doubler.hold()
    first = engine.submit([[1, 1]])
    assert doubler.entered.wait(60)
    body = {"type": "http.request", "body": b'{"instances": [[7, 7]]}'}
    app = engine.asgi_app()
    assert call(app, scope_of(), body, then=lambda: None) == []
    assert engine.statistics().waiting_rows == 0
    assert call(app, scope_of(), {"type": "http.disconnect"}) == []
    doubler.release()
    first.result()
    assert 7 not in doubler.rows_seen
    assert engine.monitor.answers()[("model", "1", "tf_serving", "predict"), "499"] == 1


def live(app, *messages):
    return call(app, {"type": "lifespan"}, *({"type": f"lifespan.{name}"} for name in messages))


def test_a_server_s_lifespan_starts_the_engine_and_closes_it(doubler):
    engine = ServingEngine(doubler, warm_up=False)
    sent = live(engine.asgi_app(), "startup", "shutdown")
    assert [one["type"] for one in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert engine.repository.state == "closed"
    (failed,) = live(engine.asgi_app(), "startup")
    assert failed["type"] == "lifespan.startup.failed"
    assert "closed" in failed["message"]


def test_an_engine_that_ran_before_goes_on(engine):
    live(engine.asgi_app(), "startup", "shutdown")
    assert engine.ready


def test_another_kind_of_connection_is_refused(engine):
    with pytest.raises(ValueError, match="Expected an HTTP request, received ASGI's 'websocket'"):
        call(engine.asgi_app(), {"type": "websocket"})


@pytest.fixture
def stream(monkeypatch, engine):
    """Adds the route `/stream`, and returns what became of its events."""
    noted = []

    async def events():
        try:
            for number in range(3):
                yield {"token": number}
            noted.append("waits")
            await asyncio.get_running_loop().create_future()
        finally:
            noted.append("closed")

    async def answer(_server, request, _parameters):
        if request.path == "/ends":
            return HttpResponse(content_type="text/plain", stream=short())
        return stream_events(events())

    async def short():
        yield b"one, "
        yield b"two"

    routes = (Route("GET", "/stream", answer), Route("GET", "/ends", answer))
    monkeypatch.setattr(http_application, "ROUTES", (*http_application.ROUTES, *routes))
    return noted


def test_a_route_may_stream_events_until_the_client_hangs_up(engine, stream):
    app = engine.asgi_app()
    sent = call(app, scope_of("/stream", method="GET"), then=lambda: wait_for(stream))
    assert sent[0]["headers"][0] == (b"content-type", b"text/event-stream")
    assert [one["body"] for one in sent[2:]] == [b'data: {"token":%d}\n\n' % i for i in range(3)]
    assert stream == ["waits", "closed"]


def wait_for(noted):
    while not noted:
        pass


def test_the_server_streams_in_chunks_and_notices_that_the_client_hangs_up(engine, stream):
    pytest.importorskip("uvicorn")
    import http.client

    server = engine.serve(0, access_log=True)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    connection.request("GET", "/ends")
    response = connection.getresponse()
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.headers["x-request-id"]
    assert response.read() == b"one, two"
    connection.request("GET", "/stream")
    assert connection.getresponse().readline() == b'data: {"token":0}\n'
    connection.close()
    server.stop()  # It would wait for the answer.
    assert stream == ["waits", "closed"]
