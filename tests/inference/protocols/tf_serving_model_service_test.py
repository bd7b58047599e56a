import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import tf_serving_model_service
from keras_deepseek.inference.protocols.grpc_messages import new_message, parse_message
from keras_deepseek.inference.protocols.tf_serving import VersionStatus
from keras_deepseek.inference.protocols.tf_serving_grpc import ModelSpec
from keras_deepseek.inference.protocols.tf_serving_model_service import ModelConfig
from tests.oracles.protocols import import_client

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

SIGNATURE = Signature(
    (TensorSpec("x", (None, 2), "float32"), TensorSpec("word", (None,), "object")),
    (TensorSpec("y", (None,), "bfloat16"),),
)
VERSIONS = [
    VersionStatus(1, "END"),
    VersionStatus(3, "AVAILABLE"),
    VersionStatus(2, "END", "INTERNAL", "no"),
]


def new(name, **fields):
    return new_message(f"tensorflow.serving.{name}", **fields)


def test_metadata_describes_the_signature():
    data = tf_serving_model_service.format_metadata(ModelSpec("m", 2), SIGNATURE)
    answer = parse_message("tensorflow.serving.GetModelMetadataResponse", data)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("m", 2)
    packed = answer.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    definitions = parse_message("tensorflow.serving.SignatureDefMap", packed.value).signature_def
    assert set(definitions) == {"serving_default"}
    definition = definitions["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert [size.size for size in definition.inputs["x"].tensor_shape.dim] == [-1, 2]
    assert {name: info.dtype for name, info in definition.inputs.items()} == {"x": 1, "word": 7}
    assert definition.outputs["y"].dtype == 14


def test_metadata_is_asked_for_by_its_one_field():
    request = new("GetModelMetadataRequest", metadata_field=["signature_def"])
    request.model_spec.name = "m"
    parse = tf_serving_model_service.parse_metadata
    assert parse(request.SerializeToString()) == ModelSpec("m")
    with pytest.raises(InvalidInputError, match="at least one metadata_field"):
        parse(b"")
    with pytest.raises(InvalidInputError, match="did you mean 'signature_def'"):
        parse(new("GetModelMetadataRequest", metadata_field=["signatures_def"]).SerializeToString())


def test_status_has_every_version_the_newest_first():
    data = tf_serving_model_service.format_status(VERSIONS)
    states = parse_message("tensorflow.serving.GetModelStatusResponse", data).model_version_status
    assert [(state.version, state.state) for state in states] == [(3, 30), (2, 50), (1, 50)]
    assert (states[1].status.error_code, states[1].status.error_message) == (13, "no")
    assert states[0].HasField("status")


def test_a_configuration_names_the_models_that_are_to_be_served():
    request = new("ReloadConfigRequest")
    config = request.config.model_config_list.config
    config.add(name="a", base_path="/a")
    config.add(name="b", base_path="/b").model_version_policy.latest.num_versions = 3
    third = config.add(name="c", base_path="/c", version_labels={"stable": 4})
    third.model_version_policy.specific.versions.extend([4, 5])
    config.add(name="d", base_path="/d").model_version_policy.all.SetInParent()
    served = tf_serving_model_service.parse_reload(request.SerializeToString())
    assert served == (
        ModelConfig("a", "/a"),
        ModelConfig("b", "/b", "latest", 3),
        ModelConfig("c", "/c", "specific", 1, (4, 5), {"stable": 4}),
        ModelConfig("d", "/d", "all"),
    )


def test_a_configuration_that_comes_as_text_is_read_as_one_that_is_sent():
    request = new("ReloadConfigRequest")
    model = request.config.model_config_list.config.add(name="a", base_path="/a")
    model.model_version_policy.specific.versions.extend([4, 5])
    model.version_labels["stable"] = 4
    expected = tf_serving_model_service.parse_reload(request.SerializeToString())
    assert tf_serving_model_service.parse_config_text(str(request.config)) == expected


def test_a_configuration_without_models_takes_all_of_them_away():
    request = new("ReloadConfigRequest")
    request.config.model_config_list.SetInParent()
    assert tf_serving_model_service.parse_reload(request.SerializeToString()) == ()


@pytest.mark.parametrize("names", [["a", "a"], [""], ["a", ""]])
def test_models_without_names_of_their_own_are_refused(names):
    request = new("ReloadConfigRequest")
    for name in names:
        request.config.model_config_list.config.add(name=name, base_path="/x")
    with pytest.raises(InvalidInputError, match="unique names"):
        tf_serving_model_service.parse_reload(request.SerializeToString())


def test_a_configuration_of_another_kind_is_refused():
    request = new("ReloadConfigRequest")
    request.config.custom_model_config.type_url = "x"
    for data in (b"", request.SerializeToString()):
        with pytest.raises(InvalidInputError, match="model_config_list"):
            tf_serving_model_service.parse_reload(data)


@pytest.mark.parametrize("name", ["parse_metadata", "parse_status", "parse_reload"])
@given(data=st.binary(max_size=60))
def test_random_bytes_are_a_request_or_a_bad_input(name, data):
    with contextlib.suppress(InvalidInputError):
        getattr(tf_serving_model_service, name)(data)


def test_tensorflow_serving_api_s_own_client_is_answered(serve_grpc):
    service = import_client("tensorflow_serving.apis.model_service_pb2_grpc")
    predictions = import_client("tensorflow_serving.apis.prediction_service_pb2_grpc")
    status = import_client("tensorflow_serving.apis.get_model_status_pb2")
    metadata = import_client("tensorflow_serving.apis.get_model_metadata_pb2")
    management = import_client("tensorflow_serving.apis.model_management_pb2")
    grpc = import_client("grpc")
    configs = []

    def reload(data):
        configs.extend(tf_serving_model_service.parse_reload(data))
        return tf_serving_model_service.format_reload()

    def describe(data):
        model = tf_serving_model_service.parse_metadata(data)
        return tf_serving_model_service.format_metadata(model, SIGNATURE)

    address = serve_grpc(
        "tensorflow.serving.ModelService",
        GetModelStatus=lambda data: tf_serving_model_service.format_status(VERSIONS),
        HandleReloadConfigRequest=reload,
    )
    other = serve_grpc("tensorflow.serving.PredictionService", GetModelMetadata=describe)
    with grpc.insecure_channel(address) as channel, grpc.insecure_channel(other) as second:
        stub = service.ModelServiceStub(channel)
        answer = stub.GetModelStatus(status.GetModelStatusRequest(), timeout=60)
        assert [version_status.version for version_status in answer.model_version_status] == [
            3,
            2,
            1,
        ]
        assert answer.model_version_status[0].state == status.ModelVersionStatus.AVAILABLE
        request = management.ReloadConfigRequest()
        request.config.model_config_list.config.add(name="a", base_path="/a")
        answer = stub.HandleReloadConfigRequest(request, timeout=60)
        assert (answer.status.error_code, answer.status.error_message) == (0, "")
        assert [model.name for model in configs] == ["a"]
        request = metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        answer = predictions.PredictionServiceStub(second).GetModelMetadata(request, timeout=60)
        definitions = metadata.SignatureDefMap()
        assert answer.metadata["signature_def"].Unpack(definitions)
        assert list(definitions.signature_def) == ["serving_default"]
