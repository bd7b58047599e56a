"""The server over real HTTP, and the page's own files."""

import gzip
import hashlib
import http.client
import json
import re
import socket
import threading

import pytest

from keras_deepseek.studio.dashboard import Dashboard
from keras_deepseek.studio.server import HEADER, MAX_BODY, StudioServer
from keras_deepseek.studio.store import Store

SECRET = "the-secret"


@pytest.fixture
def server(runs):
    """Returns a server of the runs, with a proxy's name allowed."""
    with StudioServer(
        Store(runs), SECRET, 0, Dashboard(), ["studio.example", ".proxy.example"]
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    """Returns the status, the headers and the body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    header_fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, header_fields)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def call(server, name, body=None, **headers):
    status, _, content = ask(
        *(server, "POST", f"/api/{name}", json.dumps(body or {})),
        **{HEADER: SECRET, **headers},
    )
    return status, json.loads(content)


def test_the_page_and_its_scripts_are_served_with_a_policy(server):
    for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"), ("/icon.svg", "image")):
        status, headers, content = ask(server, "GET", path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert content


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/%2e%2e/server.py", "//etc/passwd", "/vendor/", "/vendor/LICENSE-htm"],
)
def test_no_other_file_is_served(server, path):
    assert ask(server, "GET", path)[0] == 404


def test_the_runs_need_the_secret_in_our_header(server):
    assert call(server, "poll")[0] == 200
    for headers in ({}, {HEADER: "wrong"}, {"Authorization": f"Bearer {SECRET}"}):
        status, _, content = ask(server, "POST", "/api/poll", "{}", **headers)
        assert status == 403
        assert b"its end, after #" in content
    assert ask(server, "POST", f"/api/poll?{HEADER}={SECRET}", "{}")[0] == 403
    assert SECRET not in ask(server, "GET", "/")[2].decode()


def test_the_name_of_another_host_is_refused(server):
    port = server.server_port
    ours = (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:1", "studio.example")
    for host in (*ours, "a.proxy.example"):
        assert call(server, "poll", Host=host)[0] == 200
    theirs = ("evil.example", f"evil.example:{port}", "localhost.evil.example", "")
    for host in (*theirs, "a.studio.example", "evilproxy.example"):
        assert ask(server, "GET", "/", Host=host)[0] == 421
        assert call(server, "poll", Host=host)[0] == 421
    proxied = {"Host": "hub.example", "X_ProxyContextPath": "/user/me/proxy/6006"}
    assert call(server, "poll", **proxied)[0] == 200


def test_bodies_are_bounded_and_nonsense_is_refused(server):
    length = str(MAX_BODY + 1)  # The server reads none of it.
    big = ask(server, "POST", "/api/poll", None, **{HEADER: SECRET, "Content_Length": length})
    assert big[0] == 413
    for body in ("[1]", "{", '{"series": 3}', '{"series": [["healthy"]]}', "\xff", '{"seen": 1}'):
        status, _, content = ask(server, "POST", "/api/poll", body, **{HEADER: SECRET})
        assert status == 400, body
        assert "error" in json.loads(content)
    assert ask(server, "POST", "/api/nothing", "{}", **{HEADER: SECRET})[0] == 404
    assert call(server, "document", {"run": "../x", "name": "profile"})[0] == 400
    deep = "[" * 100_000
    assert ask(server, "POST", "/api/poll", deep, **{HEADER: SECRET})[0] == 400


def test_widths_are_bounded(server):
    for pixels in (10**9, -5):
        status, answer = call(server, "poll", {"series": [["healthy", "step_loss", -1, pixels, 0]]})
        assert status == 200
        assert len(answer["series"]["healthy\nstep_loss"]["x"]) <= 600


def test_documents_and_settings_are_read(server):
    assert call(server, "document", {"run": "healthy", "name": "profile"})[1]["steps"] == 5
    assert call(server, "document", {"run": "healthy", "name": "nothing"}) == (200, None)
    assert call(server, "settings")[1]["dashboard"]["title"] == "Studio"


def test_an_ended_run_takes_no_command(server):
    status, answer = call(server, "command", {"run": "healthy", "name": "stop"})
    assert status == 400
    assert "does not run" in answer["error"]


def test_large_answers_are_compressed(server):
    _, headers, content = ask(
        *(server, "POST", "/api/poll", "{}"), **{HEADER: SECRET, "Accept_Encoding": "gzip"}
    )
    assert headers["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(content))["order"] == ["healthy", "group/killed"]


def test_a_port_in_use_gives_the_next(runs, caplog):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with StudioServer(Store(runs), SECRET, port, Dashboard()) as server:
            assert server.server_port > port
    assert f"Port {port} is in use" in caplog.text


def test_only_loopback_is_bound(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url.endswith(f"/#{SECRET}")


@pytest.fixture
def static(root):
    """Returns the folder of the page."""
    return root / "keras_deepseek/studio/static"


def test_vendored_scripts_are_those_that_the_table_names(static):
    table = (static / "vendor/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
    scripts = {path.name: path for path in (static / "vendor").glob("*.*s")}
    assert rows.keys() == scripts.keys()
    for name, path in scripts.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == rows[name], name


def test_the_page_stays_small_and_names_no_other_host(static):
    files = [path for path in static.glob("*.*") if path.suffix in (".js", ".css", ".html")]
    text = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert (
        sum(len(content.splitlines()) for name, content in text.items() if name.endswith(".js"))
        <= 1200
    )
    for name, content in text.items():
        assert not re.search(r"https?://(?!www\.w3\.org)", content), name
        assert "innerHTML" not in content, name
