import logging

import numpy as np
import pytest

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.tensor_proto import from_tensor_proto, to_tensor_proto

pytest.importorskip("grpc", reason="grpcio is not installed")

SERVICE = "tensorflow.serving.PredictionService/"
OTHER_SIGNATURE = (
    "Serving signature name: \"other\" not found in signature def. Expected 'serving_default'."
)


@pytest.fixture
def client(doubler, serve_grpc):
    with ServingEngine(doubler, name="double", max_queue_rows=2) as engine:
        yield serve_grpc(engine)


def spec(name="double", version=None, label="", signature=""):
    message = new_message(
        "tensorflow.serving.ModelSpec", name=name, version_label=label, signature_name=signature
    )
    if version is not None:
        message.version.value = version
    return message


def predict(client, array, model_spec=None, **fields):
    tensor = to_tensor_proto(np.asarray(array, "float32"))
    return client.ask(
        SERVICE + "Predict",
        model_spec=model_spec or spec(),
        inputs={"x": tensor},
        **fields,
    )


def examples(*features):
    message = new_message("tensorflow.serving.Input")
    for values in features:
        example = message.example_list.examples.add()
        example.features.feature["x"].float_list.value.extend(values)
    return message


def test_predictions_name_the_version_and_the_signature_that_have_answered(client):
    answer = predict(client, [[1, 2], [3, 4]])
    assert list(answer.outputs) == ["y"]
    array = from_tensor_proto(answer.outputs["y"], "y")
    assert array.tolist() == [[2, 4], [6, 8]]
    assert answer.model_spec == spec(version=1, signature="serving_default")


def test_a_version_a_label_and_a_signature_may_be_named(client):
    client.engine.models["double"].set_labels({"stable": 1})
    named_by = (
        spec(version=1),
        spec(version=0),  # As OpenVINO's client names the newest.
        spec(label="stable"),
        spec(signature="serving_default"),
    )
    for named in named_by:
        answer = predict(client, [[1, 2]], named, output_filter=["y"])
        assert answer.model_spec.version.value == 1


@pytest.mark.parametrize(
    ("model_spec", "status", "text"),
    [
        (
            spec("other"),
            "NOT_FOUND",
            "Servable not found for request: Latest(other). There is no model 'other'; those",
        ),
        (
            spec(version=7),
            "NOT_FOUND",
            "Servable not found for request: Specific(double, 7). The model 'double' has no",
        ),
        (
            spec(label="new"),
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: new. The model 'double' has no label 'new'",
        ),
        (spec(""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            spec(signature="other"),
            "INVALID_ARGUMENT",
            OTHER_SIGNATURE,
        ),
    ],
)
def test_what_is_not_served_is_told_in_tf_serving_s_words(
    client, status_of, model_spec, status, text
):
    code, message = status_of(predict, client, [[1, 2]], model_spec)
    assert (code, message.startswith(text)) == (status, True)
    metadata = {"model_spec": model_spec, "metadata_field": ["signature_def"]}
    if not model_spec.signature_name:
        code_and_text = status_of(client.ask, SERVICE + "GetModelMetadata", **metadata)
        assert code_and_text == (status, message)


def test_a_request_that_does_not_fit_the_model_is_refused(client, status_of):
    status, text = status_of(predict, client, [[1, 2, 3]])
    assert (status, "received shape (1, 3)" in text) == ("INVALID_ARGUMENT", True)
    status, text = status_of(predict, client, [[1, 2]], output_filter=["z"])
    assert (status, text) == ("INVALID_ARGUMENT", "Unknown output 'z'. Known: y.")
    assert client.engine.statistics().rows == 0


def test_a_failing_model_is_internal_logged_and_not_shown(client, status_of, caplog):
    with caplog.at_level(logging.ERROR):
        code_and_text = status_of(predict, client, [[-1, 0]])
    text = "The model failed with ArithmeticError; see the server's log."
    assert code_and_text == ("INTERNAL", text)
    assert "a row starts with -1" in caplog.text
    assert len(predict(client, [[1, 2]]).outputs) == 1


def test_a_full_queue_says_when_to_try_again(client, doubler, status_of):
    import grpc

    engine = client.engine
    doubler.hold()
    running = engine.submit([[1, 1]])
    assert doubler.entered.wait(60)
    waiting = engine.submit([[1, 1], [1, 1]])
    with pytest.raises(grpc.RpcError, match="The queue is full") as caught:
        predict(client, [[1, 2]])
    doubler.release()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "1000") in list(caught.value.trailing_metadata())
    assert len(running.result()["y"]) + len(waiting.result()["y"]) == 3


def test_metadata_has_the_signature(client):
    answer = client.ask(
        SERVICE + "GetModelMetadata",
        model_spec=spec(),
        metadata_field=["signature_def"],
    )
    assert answer.model_spec == spec(version=1)
    definitions = parse_message(
        "tensorflow.serving.SignatureDefMap", answer.metadata["signature_def"].value
    )
    assert list(definitions.signature_def["serving_default"].inputs) == ["x"]


def test_examples_are_classified(client):
    answer = client.ask(SERVICE + "Classify", model_spec=spec(), input=examples([1, 2], [3, 4]))
    rows = [[label.score for label in row.classes] for row in answer.result.classifications]
    assert rows == [[2, 4], [6, 8]]
    assert answer.model_spec.version.value == 1


class Summer:
    """Has one number for each row, so it can regress."""

    signature = Signature(
        (TensorSpec("x", (None, 2), "float32"),), (TensorSpec("y", (None, 1), "float32"),)
    )
    batches = 0

    def run(self, inputs):
        self.batches += 1
        return {"y": inputs["x"].sum(1, keepdims=True)}


def test_examples_are_regressed_and_several_tasks_run_the_model_once(serve_grpc, status_of):
    summer = Summer()
    with ServingEngine(summer, name="double", warm_up=False) as engine:
        client = serve_grpc(engine)
        answer = client.ask(SERVICE + "Regress", model_spec=spec(), input=examples([1, 2], [3, 4]))
        assert [regression.value for regression in answer.result.regressions] == [3, 7]
        assert summer.batches == 1
        tasks = [
            {"model_spec": spec(signature=name), "method_name": f"tensorflow/serving/{method}"}
            for name, method in (("", "regress"), ("serving_default", "classify"))
        ]
        both = client.ask(SERVICE + "MultiInference", tasks=tasks, input=examples([1, 2])).results
        assert both[0].regression_result.regressions[0].value == 3
        assert both[1].classification_result.classifications[0].classes[0].score == 3
        assert summer.batches == 2
        tasks[1]["model_spec"] = spec(signature="other")
        call = (client.ask, SERVICE + "MultiInference")
        assert status_of(*call, tasks=tasks, input=examples([1, 2]))[0] == "INVALID_ARGUMENT"


def test_a_model_that_can_t_regress_says_so(client, status_of):
    status, text = status_of(
        client.ask, SERVICE + "Regress", model_spec=spec(), input=examples([1, 2])
    )
    assert (status, "The model can't regress" in text) == ("INVALID_ARGUMENT", True)


def test_a_stopping_engine_is_unavailable(client, status_of):
    client.engine.repository.state = "closed"
    code_and_text = status_of(predict, client, [[1, 2]])
    client.engine.repository.state = "ready"
    assert code_and_text == (
        "UNAVAILABLE",
        "The model 'double' is not ready: it is starting or stopping.",
    )
