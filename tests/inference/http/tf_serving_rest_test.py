import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
from tests.inference.conftest import Doubler
from tests.oracles.rest_client import RestClient

pytest.importorskip("uvicorn")

SCORES = Signature(
    inputs=(TensorSpec("x", (None, 2), "float32"),),
    outputs=(TensorSpec("y", (None, 2), "float32"),),
)
SUM = Signature(
    inputs=(TensorSpec("a", (None,), "float32"), TensorSpec("b", (None,), "float32")),
    outputs=(TensorSpec("y", (None,), "float32"),),
)


class Adder:
    signature = SUM

    def run(self, inputs):
        return {"y": inputs["a"] + inputs["b"]}


class Triple(Doubler):
    def run(self, inputs):
        return {"y": np.float32(1.5) * super().run(inputs)["y"]}


@pytest.fixture(scope="module")
def client():
    with ServingEngine(Doubler(SCORES), name="scores", warm_up=False) as engine:
        engine.load(Triple(SCORES), version=4, keep=2)
        engine.models["scores"].set_labels({"stable": 1})
        engine.load(Adder(), name="sum")
        client = RestClient(engine.serve(0))
        yield client
        client.close()


def states(answer):
    return {
        version_status["version"]: version_status["state"]
        for version_status in answer.content["model_version_status"]
    }


def test_the_newest_version_answers_and_others_by_number_and_label(client):
    body = {"instances": [[1, 2]]}
    for path, expected in (("", 3.0), ("/versions/4", 3.0), ("/versions/1", 2.0)):
        answer = client.ask("POST", f"/v1/models/scores{path}:predict", body)
        assert answer.content == {"predictions": [[expected, 2 * expected]]}
    answer = client.ask("POST", "/v1/models/scores/labels/stable:predict", body)
    assert answer.content == {"predictions": [[2.0, 4.0]]}


def test_status_is_that_of_all_versions_or_of_one(client):
    assert states(client.ask("GET", "/v1/models/scores")) == {"4": "AVAILABLE", "1": "AVAILABLE"}
    assert states(client.ask("GET", "/v1/models/scores/versions/1")) == {"1": "AVAILABLE"}
    assert states(client.ask("GET", "/v1/models/scores/labels/stable")) == {"1": "AVAILABLE"}


def test_metadata_are_those_of_the_version(client):
    content = client.ask("GET", "/v1/models/scores/versions/1/metadata").content
    assert content["model_spec"]["version"] == "1"
    inputs = content["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    assert inputs["x"]["dtype"] == "DT_FLOAT"


def test_classify_gives_the_scores_of_each_example(client):
    body = {"context": {"x": [1, 2]}, "examples": [{}, {"x": [3, 4]}]}
    answer = client.ask("POST", "/v1/models/scores/versions/1:classify", body)
    assert answer.content == {"results": [[["", 2.0], ["", 4.0]], [["", 6.0], ["", 8.0]]]}


def test_regress_gives_a_number_for_each_example(client):
    body = {"examples": [{"a": 1, "b": 2}, {"a": [3], "b": [4]}]}
    answer = client.ask("POST", "/v1/models/sum:regress", body)
    assert answer.content == {"results": [3.0, 7.0]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("sum:regress", {"examples": []}, 400, "at least one"),
        ("sum:regress", {"examples": [{"a": 1}]}, 400, "b"),
        ("scores:regress", {"examples": [{"x": [1, 2]}]}, 400, "can't regress"),
        ("sum:classify", {"examples": [{"a": 1, "b": 2}]}, 400, "can't classify"),
        ("scores/labels/new:predict", {"instances": [[1, 2]]}, 400, "label: new"),
        ("scores/versions/9:predict", {"instances": [[1, 2]]}, 404, "Specific(scores, 9)"),
        ("other:classify", {"examples": [{"x": [1, 2]}]}, 404, "Latest(other)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(client, path, body, status, message):
    answer = client.ask("POST", f"/v1/models/{path}", body)
    assert answer.status == status
    assert message in answer.content["error"]


def test_a_version_that_failed_says_so_in_its_status():
    class Broken(Doubler):
        def run(self, inputs):
            raise ArithmeticError("a secret")

    with ServingEngine(Doubler(), name="m") as engine:
        with pytest.raises(ArithmeticError):
            engine.load(Broken())
        with pytest.raises(InvalidInputError):
            engine.load("/nowhere", version=3)
        client = RestClient(engine.serve(0))
        answer = client.ask("GET", "/v1/models/m/versions/3")
        assert states(answer) == {"3": "END"}
        assert b"It failed with InvalidInputError" in answer.body
        answer = client.ask("POST", "/v1/models/m/versions/3:predict", {"instances": [[1, 2]]})
        assert (answer.status, "Servable not found" in answer.content["error"]) == (404, True)
        answer = client.ask("GET", "/v1/models/m/versions/2")
        client.close()
    assert states(answer) == {"2": "END"}
    failed = answer.content["model_version_status"][0]["status"]
    assert failed["error_code"] == "UNKNOWN"
    assert "ArithmeticError" in failed["error_message"]
    assert b"secret" not in answer.body
