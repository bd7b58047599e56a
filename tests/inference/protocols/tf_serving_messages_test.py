import pytest

from keras_deepseek.inference.protocols.dtypes import DTYPES
from keras_deepseek.inference.protocols.tf_serving_messages import TF_SERVING
from tests.oracles.protocols import calls_of, differing_fields, import_client

pytest.importorskip("google.protobuf", reason="protobuf is not installed")


def test_every_message_can_be_made_and_sent():
    for package, entries in TF_SERVING.packages.items():
        for name, fields in entries.items():
            if isinstance(fields, str):
                assert TF_SERVING.new(f"{package}.{name}").SerializeToString() == b""


def test_dtypes_have_the_numbers_of_the_enumeration():
    numbers = TF_SERVING.packages["tensorflow"]["DataType"]
    assert {dtype.tf_name: dtype.tf_number for dtype in DTYPES}.items() <= numbers.items()


def test_every_field_and_every_number_is_that_of_tensorflow_serving_api():
    import_client("tensorflow_serving.apis.prediction_service_pb2")
    import_client("tensorflow_serving.apis.model_service_pb2")
    from google.protobuf import descriptor_pool

    assert differing_fields(TF_SERVING, descriptor_pool.Default()) == []


@pytest.mark.parametrize("service", ["PredictionService", "ModelService"])
def test_every_call_is_that_of_tensorflow_serving_api(service):
    import_client("tensorflow_serving.apis.prediction_service_pb2")
    import_client("tensorflow_serving.apis.model_service_pb2")
    from google.protobuf import descriptor_pool

    name = f"tensorflow.serving.{service}"
    assert calls_of(TF_SERVING.pool, name) == calls_of(descriptor_pool.Default(), name)
