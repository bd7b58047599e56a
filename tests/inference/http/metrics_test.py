import json
import re
import sys
import urllib.request

import pytest

from keras_deepseek.inference import ServingEngine

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

SAMPLE = re.compile(r':?[a-z_:]+(\{([a-zA-Z_]+="[^"]*",?)*\})? [0-9.e+-]+')


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


def test_dashboards_for_tf_serving_find_its_names(server):
    predict = f"{server.url}/v1/models/double:predict"
    for _ in range(2):
        fetch(predict, b'{"instances": [[1, 2]]}')
    for path in ("/v1/models/double/labels/new:predict", "/v1/models/double:predict"):
        with pytest.raises(urllib.error.HTTPError):
            fetch(server.url + path, b'{"instances": [[1]]}')
    fetch(f"{server.url}/v1/models/double/metadata")  # TF Serving does not count it.
    lines = fetch(f"{server.url}/monitoring/prometheus/metrics")[1].splitlines()
    prefix, model = ":tensorflow:serving:", 'model_name="double"'
    for status, count in (("OK", 2), ("INVALID_ARGUMENT", 2)):
        assert f'{prefix}request_count{{{model},status="{status}"}} {count}.0' in lines
    for name, label in (("request", 'entrypoint="REST"'), ("runtime", 'runtime="keras_deepseek"')):
        values = {
            line.partition("{")[0].rpartition("_")[2]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(f"{prefix}{name}_latency_") and label in line and model in line
        }
        assert values["count"] >= 2
        assert 1 < values["sum"] < 1e6 * 60 * values["count"]  # Microseconds.


def test_a_request_for_a_label_that_is_not_there_counts_for_its_model(server):
    for path in ("/v1/models/double/labels/new:predict", "/v2/models/double/versions/7/infer"):
        with pytest.raises(urllib.error.HTTPError):
            fetch(server.url + path, b'{"instances": [[1, 2]]}')
    text = fetch(f"{server.url}/metrics")[1]
    assert 'model="double",protocol="tf_serving",status="400",version=""} 1.0' in text
    assert 'model="double",protocol="open_inference",status="404",version=""} 1.0' in text


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
