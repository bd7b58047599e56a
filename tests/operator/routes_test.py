"""The routes: a model's own paths, and none that manages models."""

import json

from keras_deepseek.operator.api import Region, Route
from keras_deepseek.operator.routes import make_grpc_route, make_http_route, route_annotations

ROUTE = Route.model_validate(
    {
        "gateway": {"name": "public", "namespace": "infra", "sectionName": "https"},
        "hostnames": ["models.example.com"],
        "grpcHostnames": ["grpc.example.com"],
        "annotations": {"external-dns.alpha.kubernetes.io/aws-weight": "7"},
    }
)


def test_http_paths():
    spec = make_http_route(ROUTE, "digits", {"digits": 90, "digits-canary": 10})
    (rule,) = spec["rules"]
    paths = {match["path"]["value"] for match in rule["matches"]}
    assert {"/v1/models/digits", "/v1/models/digits:predict", "/v2/models/digits"} <= paths
    assert not any("repository" in path or "metrics" in path for path in paths)
    assert [backend["weight"] for backend in rule["backendRefs"]] == [90, 10]
    assert {backend["port"] for backend in rule["backendRefs"]} == {8501}
    assert spec["parentRefs"][0]["sectionName"] == "https"


def test_grpc_methods():
    spec = make_grpc_route(ROUTE, {"digits": 100})
    assert spec["hostnames"] == ["grpc.example.com"]
    text = json.dumps(spec)
    assert "ModelInfer" in text
    assert "Repository" not in text
    assert "Reload" not in text


def test_own_annotations_win():
    region = Region(name="eu", weight=50)
    annotations = route_annotations(ROUTE, region)
    assert annotations["external-dns.alpha.kubernetes.io/aws-weight"] == "7"
    assert annotations["external-dns.alpha.kubernetes.io/set-identifier"] == "eu"
    assert route_annotations(ROUTE, None) == ROUTE.annotations
