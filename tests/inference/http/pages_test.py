import base64
import hashlib
import json
import re
import urllib.request

import pytest

from keras_deepseek.inference import ServingEngine

pytest.importorskip("uvicorn")


@pytest.fixture
def server(doubler):
    with ServingEngine(doubler, name="double") as engine:
        yield engine.serve(0, tokens=["secret"])


def fetch(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.headers, answer.read()


@pytest.mark.parametrize("path", ["/", "/chat"])
def test_a_page_is_open_and_its_policy_lets_its_own_script_run_alone(server, path):
    headers, body = fetch(f"{server.url}{path}")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'; ")
    assert "unsafe" not in policy
    for tag in (b"script", b"style"):
        (text,) = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), body, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{tag.decode()}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("path", ["/", "/chat"])
def test_a_page_names_no_other_server_and_has_no_script_in_attributes(server, path):
    page = fetch(f"{server.url}{path}")[1].decode()
    assert re.findall(r"https?:|//\w|src=|\son\w+=|style=|innerHTML", page) == []


def test_the_description_is_told_to_those_with_a_token(server):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch(f"{server.url}/openapi.json")
    document = json.loads(fetch(f"{server.url}/openapi.json", Authorization="Bearer secret")[1])
    assert document["openapi"] == "3.1.0"
    assert document["security"] == [{"token": []}]
    assert "/v1/models/double:predict" in document["paths"]
