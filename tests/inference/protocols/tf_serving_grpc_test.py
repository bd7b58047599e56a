import contextlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import tf_serving_examples, tf_serving_grpc
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.tensor_proto import from_tensor_proto
from keras_deepseek.inference.protocols.tf_serving_examples import CLASSIFY_METHOD, REGRESS_METHOD
from keras_deepseek.inference.protocols.tf_serving_grpc import ModelSpec, Task
from tests.oracles.protocols import NUMBERS, arrays, import_client, same

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

SIGNATURE = Signature((TensorSpec("age", (None, 1), "float32"),), ())


def read_predict(data):
    inputs = tf_serving_grpc.parse_predict(data).inputs
    return {name: from_tensor_proto(inputs[name], name, 2**10) for name in inputs}


PARSERS = [
    read_predict,
    partial(tf_serving_grpc.parse_examples, method=CLASSIFY_METHOD),
    partial(tf_serving_grpc.parse_examples, method=REGRESS_METHOD),
    tf_serving_grpc.parse_multi_inference,
]


def new(name, **fields):
    return new_message(f"tensorflow.serving.{name}", **fields)


def examples_of(*ages, context=None):
    """Returns an `Input` with an example for each age, and perhaps one as context."""
    listed = new("ExampleListWithContext" if context is not None else "ExampleList")
    for age in ages:
        feature = listed.examples.add().features.feature["age"]
        feature.float_list.value.append(age)
    if context is None:
        return new("Input", example_list=listed)
    listed.context.features.feature["age"].float_list.value.append(context)
    listed.examples.add()
    return new("Input", example_list_with_context=listed)


@given(st.dictionaries(st.text(max_size=3), arrays([*NUMBERS, "object"]), max_size=3))
def test_predict_reads_and_writes_every_tensor(tensors):
    request = new("PredictRequest", output_filter=["b", "a"])
    request.model_spec.name = "digits"
    request.model_spec.version.value = 0
    answer = tf_serving_grpc.format_predict(
        tf_serving_grpc.PredictMessage(ModelSpec("digits"), {}, ()), tensors, 1
    )
    for name, tensor in parse_message("tensorflow.serving.PredictResponse", answer).outputs.items():
        request.inputs[name].CopyFrom(tensor)
    call = tf_serving_grpc.parse_predict(request.SerializeToString())
    assert call.model == ModelSpec("digits", 0)
    assert call.output_names == ("b", "a")
    assert call.inputs.keys() == tensors.keys()
    assert all(same(from_tensor_proto(call.inputs[name], ""), tensors[name]) for name in tensors)


def test_the_outputs_that_are_wanted_are_answered_by_the_version_that_ran():
    call = tf_serving_grpc.PredictMessage(ModelSpec("m", signature_name="s"), {}, ("b",))
    outputs = {"a": np.zeros(1), "b": np.ones(1)}
    message = parse_message(
        "tensorflow.serving.PredictResponse", tf_serving_grpc.format_predict(call, outputs, 7)
    )
    assert list(message.outputs) == ["b"]
    spec = message.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "s")
    wrong = tf_serving_grpc.PredictMessage(ModelSpec("m"), {}, ("aa",))
    with pytest.raises(InvalidInputError, match="Unknown output 'aa': did you mean 'a'"):
        tf_serving_grpc.format_predict(wrong, outputs, 7)


def test_a_label_and_no_version_are_told_apart():
    request = new("PredictRequest")
    assert tf_serving_grpc.parse_predict(request.SerializeToString()).model == ModelSpec("")
    request.model_spec.version_label = "canary"
    model = tf_serving_grpc.parse_predict(request.SerializeToString()).model
    assert model == ModelSpec("", None, "canary")


@pytest.mark.parametrize(
    ("kind", "method"), [("Classification", CLASSIFY_METHOD), ("Regression", REGRESS_METHOD)]
)
def test_examples_are_read_with_their_context(kind, method):
    request = new(f"{kind}Request", input=examples_of(1.5, 2.5, context=9))
    request.model_spec.name = "m"
    call = tf_serving_grpc.parse_examples(request.SerializeToString(), method)
    assert (call.model.name, call.method) == ("m", method)
    inputs = tf_serving_examples.bind_examples(call.examples, SIGNATURE)
    assert inputs["age"].tolist() == [[1.5], [2.5], [9]]


def test_features_of_every_kind_are_read():
    request = new("ClassificationRequest", input=examples_of(1))
    features = request.input.example_list.examples[0].features.feature
    features["word"].bytes_list.value.append(b"\xff")
    features["count"].int64_list.value.extend([1, 2])
    features["nothing"].SetInParent()
    data = request.SerializeToString()
    (example,) = tf_serving_grpc.parse_examples(data, CLASSIFY_METHOD).examples
    assert example == {"age": [1.0], "word": [b"\xff"], "count": [1, 2], "nothing": []}


def test_no_examples_are_refused():
    for request in (new("ClassificationRequest"), new("RegressionRequest", input=examples_of())):
        with pytest.raises(InvalidInputError, match="Input is empty"):
            tf_serving_grpc.parse_examples(request.SerializeToString(), CLASSIFY_METHOD)


def tasks(*pairs):
    request = new("MultiInferenceRequest", input=examples_of(1, 2))
    for name, signature_name, method in pairs:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = name, signature_name
    return request.SerializeToString()


def test_several_questions_are_answered_together():
    parsed_tasks, examples = tf_serving_grpc.parse_multi_inference(
        tasks(("m", "c", "classify"), ("m", "r", "regress"))
    )
    assert parsed_tasks == (
        Task(ModelSpec("m", signature_name="c"), tf_serving_examples.CLASSIFY_METHOD),
        Task(ModelSpec("m", signature_name="r"), tf_serving_examples.REGRESS_METHOD),
    )
    assert [example["age"] for example in examples] == [[1], [2]]
    answer = tf_serving_grpc.format_multi_inference(
        [(parsed_tasks[0], [[("a", 0.5)], [("b", 0.25)]]), (parsed_tasks[1], [1.5, 2.5])], 3
    )
    first, second = parse_message("tensorflow.serving.MultiInferenceResponse", answer).results
    classes = first.classification_result.classifications
    assert [(label.label, label.score) for row in classes for label in row.classes] == [
        ("a", 0.5),
        ("b", 0.25),
    ]
    assert [regression.value for regression in second.regression_result.regressions] == [1.5, 2.5]
    assert (first.model_spec.signature_name, second.model_spec.version.value) == ("c", 3)


@pytest.mark.parametrize(
    "data",
    [
        tasks(),
        tasks(("m", "", "predict")),
        tasks(("m", "a", "classify"), ("n", "b", "classify")),
        tasks(("m", "a", "classify"), ("m", "a", "regress")),
    ],
)
def test_questions_that_can_t_go_together_are_refused(data):
    with pytest.raises(InvalidInputError, match=r"method_name|one or more tasks"):
        tf_serving_grpc.parse_multi_inference(data)


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=80))
def test_random_bytes_are_a_request_or_a_bad_input(parse, data):
    with contextlib.suppress(InvalidInputError):
        parse(data)


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.data())
def test_a_request_that_is_cut_short_is_a_request_or_a_bad_input(parse, data):
    whole = tasks(("m", "c", "classify"), ("m", "r", "regress"))
    if parse is not tf_serving_grpc.parse_multi_inference:
        whole = new("ClassificationRequest", input=examples_of(1, 2, context=3)).SerializeToString()
    with contextlib.suppress(InvalidInputError):
        parse(whole[: data.draw(st.integers(0, len(whole)))])


def test_tensorflow_serving_api_s_own_client_is_answered(serve_grpc):
    service = import_client("tensorflow_serving.apis.prediction_service_pb2_grpc")
    apis = import_client("tensorflow_serving.apis.predict_pb2")
    tf = import_client("tensorflow")
    grpc = import_client("grpc")

    def predict(data):
        call = tf_serving_grpc.parse_predict(data)
        return tf_serving_grpc.format_predict(
            call, {"y": 2 * from_tensor_proto(call.inputs["x"], "x")}, 4
        )

    address = serve_grpc("tensorflow.serving.PredictionService", Predict=predict)
    with grpc.insecure_channel(address) as channel:
        stub = service.PredictionServiceStub(channel)
        for x in (np.arange(6, dtype="float32").reshape(2, 3), np.array(3, "int64")):
            request = apis.PredictRequest()
            request.model_spec.name = "double"
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
            answer = stub.Predict(request, timeout=60)
            assert same(tf.make_ndarray(answer.outputs["y"]), 2 * x)
            assert answer.model_spec.version.value == 4


def test_tensorflow_serving_api_s_own_client_classifies_and_regresses(serve_grpc):
    service = import_client("tensorflow_serving.apis.prediction_service_pb2_grpc")
    classification = import_client("tensorflow_serving.apis.classification_pb2")
    regression = import_client("tensorflow_serving.apis.regression_pb2")
    grpc = import_client("grpc")

    def classify(data):
        call = tf_serving_grpc.parse_examples(data, CLASSIFY_METHOD)
        age = tf_serving_examples.bind_examples(call.examples, SIGNATURE)["age"]
        labels = np.array([[b"up", b"down"]] * len(age), object)
        outputs = {"y": np.concatenate([age, -age], 1), "labels": labels}
        classes = tf_serving_examples.classify(outputs, len(call.examples))
        return tf_serving_grpc.format_examples(call, classes, 1)

    def regress(data):
        call = tf_serving_grpc.parse_examples(data, REGRESS_METHOD)
        outputs = tf_serving_examples.bind_examples(call.examples, SIGNATURE)
        results = tf_serving_examples.regress(outputs, len(call.examples))
        return tf_serving_grpc.format_examples(call, results, 1)

    address = serve_grpc("tensorflow.serving.PredictionService", Classify=classify, Regress=regress)
    with grpc.insecure_channel(address) as channel:
        stub = service.PredictionServiceStub(channel)
        request = classification.ClassificationRequest()
        request.input.MergeFromString(examples_of(1.5, context=2.5).SerializeToString())
        answer = stub.Classify(request, timeout=60)
        assert [
            [(label.label, label.score) for label in row.classes]
            for row in answer.result.classifications
        ] == [[("up", 1.5), ("down", -1.5)], [("up", 2.5), ("down", -2.5)]]
        request = regression.RegressionRequest()
        request.input.MergeFromString(examples_of(1.5, 3.5).SerializeToString())
        answer = stub.Regress(request, timeout=60)
        assert [regression.value for regression in answer.result.regressions] == [1.5, 3.5]


def test_ovmsclient_is_answered(serve_grpc):
    client = import_client("ovmsclient")

    def predict(data):
        call = tf_serving_grpc.parse_predict(data)
        return tf_serving_grpc.format_predict(
            call, {"y": 2 * from_tensor_proto(call.inputs["x"], "x")}, 1
        )

    address = serve_grpc("tensorflow.serving.PredictionService", Predict=predict)
    x = np.array([[1.5, 2.5]], "float32")
    assert same(client.make_grpc_client(address).predict({"x": x}, "double"), 2 * x)
