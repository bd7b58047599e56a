"""The sizing: a capacity from a real HTTP server, and what is printed."""

import http.server
import threading
import time

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.simulation import SimulatedDeployment, simulate
from keras_deepseek.operator.sizing import describe_sizes, draw, measure_capacity


@pytest.fixture
def url():
    """Serves one request at a time, 5 ms each; `/refuse` answers 400."""
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/refuse":
                self._answer(400, b"no such input")
                return
            with lock:
                time.sleep(0.005)
            self._answer(200, b"{}")

        def _answer(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/predict"
    server.shutdown()
    thread.join()
    server.server_close()


def test_measures_below_what_the_server_can_do(url):
    assert 10 < measure_capacity(url, b"{}", seconds=0.5) < 210  # 5 ms each: at most 200.


def test_refusal_is_told(url):
    with pytest.raises(InvalidInputError, match="answered 400: no such input"):
        measure_capacity(url.replace("predict", "refuse"), b"{}", seconds=0.2)


@pytest.mark.parametrize("url", ["localhost:8501", "ftp://x"])
def test_bad_url(url):
    with pytest.raises(InvalidInputError, match="is not a URL of a server"):
        measure_capacity(url, b"{}")


def test_server_that_is_not_there():
    with pytest.raises(InvalidInputError, match="Can't reach"):
        measure_capacity("http://127.0.0.1:9", b"{}", seconds=0.2)


def test_describes_a_day(tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("\n".join(["1000"] * 300 + ["2000"] * 300))
    text = describe_sizes(SimulatedDeployment(100, 30), 0, [str(file)], 0.999)
    assert "of the capacity" in text
    assert "replicas at most" in text


def test_says_when_no_target_is_enough(tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("\n".join(["1000"] * 300 + ["9000"] * 300))
    text = describe_sizes(SimulatedDeployment(100, 300, max_replicas=20), 0, [str(file)], 0.9999)
    assert "no target keeps 99.990%" in text


def test_draws_one_line_each():
    lines = draw(simulate(SimulatedDeployment(100), [10.0, 20.0, 0.0], 50)).splitlines()
    assert [line.split()[0] for line in lines] == ["requests/s", "replicas", "lost/s"]
    assert lines[0].endswith("max 20")
