import json
import re
import sys
import urllib.request

import pytest

from keras_deepseek.inference import ServingEngine

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

SAMPLE = re.compile(r'[a-z_]+(\{([a-z_]+="[^"]*",?)*\})? [0-9.e+-]+')


def fetch(url, body=None, **headers):
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers["Content-Type"], response.read().decode()


@pytest.fixture
def server(doubler):
    with ServingEngine(doubler, name="double") as engine:
        yield engine.serve(0)


@pytest.mark.parametrize("path", ["/metrics", "/monitoring/prometheus/metrics"])
def test_numbers_are_told_in_prometheus_s_text(server, path):
    for _ in range(2):
        fetch(f"{server.url}/v1/models/double:predict", b'{"instances": [[1, 2]]}')
    kind, text = fetch(server.url + path)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    lines = text.splitlines()
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)
    called = 'method="predict",model="double",protocol="tf_serving"'
    assert f'keras_deepseek_requests_total{{{called},status="200",version="1"}} 2.0' in lines
    assert f'keras_deepseek_request_duration_seconds_count{{{called},version="1"}} 2.0' in lines
    assert 'keras_deepseek_rows_total{model="double",version="1"} 2.0' in lines


def test_open_metrics_comes_where_it_is_asked_for(server):
    kind, text = fetch(f"{server.url}/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


def test_names_that_clients_make_up_become_no_labels(server):
    for path in ("/v1/models/made-up", "/v2/models/made-up", "/made-up"):
        with pytest.raises(urllib.error.HTTPError):
            fetch(server.url + path)
    text = fetch(f"{server.url}/metrics")[1]
    assert "made-up" not in text
    called = 'method="model_metadata",model="",protocol="open_inference"'
    assert f'keras_deepseek_requests_total{{{called},status="404",version=""}} 1.0' in text


def test_without_prometheus_client_a_scrape_alone_fails_and_names_the_extra(server, monkeypatch):
    monkeypatch.delitem(sys.modules, "keras_deepseek.inference.server.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(f"{server.url}/metrics")
    assert caught.value.code == 501
    assert "pip install 'keras_deepseek[serving]'" in json.load(caught.value)["error"]
    assert fetch(f"{server.url}/healthz")
