import subprocess
import sys

import pytest

from keras_deepseek.inference.protocols.dtypes import DTYPES
from keras_deepseek.inference.protocols.open_inference_messages import OPEN_INFERENCE
from tests.oracles.protocols import calls_of, differing_fields, import_client, skip_without

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

SERVICE = "inference.GRPCInferenceService"


def test_every_message_can_be_made_and_sent():
    for name in OPEN_INFERENCE.packages["inference"]:
        assert OPEN_INFERENCE.new(f"inference.{name}").SerializeToString() == b""


def test_dtypes_name_the_fields_that_list_their_values():
    fields = {
        field.name
        for field in OPEN_INFERENCE.new("inference.InferTensorContents").DESCRIPTOR.fields
    }
    assert {dtype.open_inference_values for dtype in DTYPES} == fields | {""}


def test_every_field_is_that_of_tritonclient_but_the_answers_of_kserve():
    import_client("tritonclient.grpc.service_pb2")
    from google.protobuf import descriptor_pool

    differing = differing_fields(OPEN_INFERENCE, descriptor_pool.Default())
    assert [line.partition(":")[0] for line in differing] == [
        "inference.RepositoryModelLoadResponse.model_name",
        "inference.RepositoryModelLoadResponse.isLoaded",
        "inference.RepositoryModelUnloadResponse.model_name",
        "inference.RepositoryModelUnloadResponse.isUnloaded",
    ]


def test_every_call_is_that_of_tritonclient():
    import_client("tritonclient.grpc.service_pb2")
    from google.protobuf import descriptor_pool

    theirs = calls_of(descriptor_pool.Default(), SERVICE)
    assert calls_of(OPEN_INFERENCE.pool, SERVICE).items() <= theirs.items()


def test_every_field_and_call_of_kserve_is_ours_but_the_names_of_a_repository():
    skip_without("kserve")
    # In a process of its own: its messages and tritonclient's have the same names.
    code = f"""
from google.protobuf import descriptor_pool
from kserve.protocol.grpc import grpc_predict_v2_pb2
from keras_deepseek.inference.protocols.open_inference_messages import OPEN_INFERENCE
from tests.oracles.protocols import calls_of
theirs, ours = descriptor_pool.Default(), OPEN_INFERENCE.pool
assert calls_of(theirs, "{SERVICE}").items() <= calls_of(ours, "{SERVICE}").items()
for message in grpc_predict_v2_pb2.DESCRIPTOR.message_types_by_name.values():
    for field in message.fields:
        own = ours.FindMessageTypeByName(message.full_name).fields_by_number[field.number]
        if (own.name, own.type) != (field.name, field.type):
            print(message.name, field.name, own.name)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "RepositoryModelLoadRequest model_name repository_name",
        "RepositoryModelUnloadRequest model_name repository_name",
    ]
