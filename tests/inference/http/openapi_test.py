from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.http.http_application import ROUTES
from keras_deepseek.inference.http.message import HttpRequest
from keras_deepseek.inference.http.openapi import describe_server
from keras_deepseek.inference.http.routing import Router


def make(outputs, name="double"):
    class Model:
        signature = Signature((TensorSpec("x", (None, 2), "float32"),), outputs)

        def run(self, inputs):
            raise AssertionError("Nothing is asked.")

    return ServingEngine(Model(), name=name, warm_up=False)


def references(value):
    """Returns what a document refers to, anywhere in it."""
    if isinstance(value, dict):
        references_here = [value["$ref"]] if "$ref" in value else []
        return references_here + [
            reference for part in value.values() for reference in references(part)
        ]
    return (
        [reference for part in value for reference in references(part)]
        if isinstance(value, list)
        else []
    )


def test_what_is_referred_to_is_there(doubler):
    document = describe_server(ServingEngine(doubler, name="double"), ROUTES, asks_for_tokens=True)
    all_references = references(document)
    assert all_references
    for reference in all_references:
        part = document
        for key in reference.removeprefix("#/").split("/"):
            part = part[key]


def test_each_route_of_the_server_is_described(doubler):
    engine = ServingEngine(doubler, name="double")
    with engine:
        engine.models["double"].set_labels({"stable": 1})
        engine.load(_Regression(), name="one", options=engine.options)
        engine.models["one"].set_labels({"stable": 1})
        paths = describe_server(engine, ROUTES)["paths"]
    router, described = Router(ROUTES), set()
    for path, operations in paths.items():
        filled = path.replace("{version}", "1").replace("{label}", "stable")
        for method in operations.keys() - {"parameters"}:
            route, _ = router.find(HttpRequest(method.upper(), filled.replace("{name}", "double")))
            described.add((route.method, route.path))
    # The path "/v2/" is another spelling of "/v2".
    assert described == {(route.method, route.path) for route in ROUTES} - {("GET", "/v2/")}


class _Regression:
    signature = Signature(
        (TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None, 1), "float32"),)
    )

    def run(self, inputs):
        return {"y": inputs["x"][:, :1]}


def test_only_what_a_model_can_answer_is_described():
    def calls(*outputs):
        paths = describe_server(make(outputs), ROUTES)["paths"]
        return {path.split(":")[1] for path in paths if ":" in path}

    assert calls(TensorSpec("y", (None, 10), "float32")) == {"predict", "classify"}
    assert calls(TensorSpec("y", (None, 1), "float32")) == {"predict", "classify", "regress"}
    assert calls(TensorSpec("y", (None, 4, 4), "float32")) == {"predict"}
    assert calls(TensorSpec("y", (None, 2), "int64")) == {"predict"}


def test_versions_and_labels_are_those_that_there_are(doubler):
    with ServingEngine(doubler, name="double") as engine:
        engine.load(doubler, keep=2)
        paths = describe_server(engine, ROUTES)["paths"]
        assert not any("{label}" in path for path in paths)
        (parameter,) = paths["/v1/models/double/versions/{version}:predict"]["parameters"]
        assert parameter["schema"]["enum"] == ["1", "2"]


def test_tokens_are_asked_for_but_not_for_health(doubler):
    engine = ServingEngine(doubler)
    assert "security" not in describe_server(engine, ROUTES)
    document = describe_server(engine, ROUTES, asks_for_tokens=True)
    assert document["security"] == [{"token": []}]
    is_open = {
        path
        for path, operations in document["paths"].items()
        if operations.get("get", {}).get("security") == []
    }
    assert is_open == {"/", "/chat", "/health", "/healthz", "/v2/health/live", "/v2/health/ready"}
