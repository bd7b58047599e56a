import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.protocols import grpc_messages
from keras_deepseek.inference.protocols.grpc_messages import (
    message_pool,
    new_message,
    parse_message,
    parse_message_text,
)
from keras_deepseek.inference.protocols.tensor_bytes import DTYPES
from tests.oracles.protocols import (
    DESCRIPTORS,
    calls_of,
    described_names,
    differing_fields,
    import_client,
    read_descriptors,
    skip_without,
)

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

OPEN_INFERENCE = "inference.GRPCInferenceService"


def test_a_message_is_read_as_it_was_written():
    spec = new_message("tensorflow.serving.ModelSpec", name="digits")
    spec.version.value = 3
    request = new_message("tensorflow.serving.PredictRequest", model_spec=spec)
    request.inputs["x"].int_val.extend([1, 2])
    read = parse_message("tensorflow.serving.PredictRequest", request.SerializeToString())
    assert read == request
    assert read.model_spec.WhichOneof("version_choice") == "version"
    assert list(read.inputs["x"].int_val) == [1, 2]
    read.model_spec.version_label = "stable"
    assert not read.model_spec.HasField("version")


def test_every_message_can_be_made_and_sent():
    names = described_names()
    assert len(names) > 60
    for name in names:
        assert new_message(name).SerializeToString() == b""


def test_the_bytes_of_health_are_those_of_the_protocol():
    assert parse_message("grpc.health.v1.HealthCheckRequest", b"\x0a\x03abc").service == "abc"
    for number, status in enumerate(("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"), 1):
        response = new_message("grpc.health.v1.HealthCheckResponse", status=status)
        assert response.SerializeToString() == bytes([8, number])


def test_a_message_may_come_as_text():
    config = parse_message_text("tensorflow.serving.ModelConfig", "name: 'oak' base_path: '/oak'")
    assert (config.name, config.base_path) == ("oak", "/oak")
    with pytest.raises(
        InvalidInputError,
        match=r"not a valid tensorflow\.serving\.ModelConfig message: 1:6 : 'name",
    ):
        parse_message_text("tensorflow.serving.ModelConfig", "name oak")


def test_lists_of_numbers_are_packed_and_read_either_way():
    message = new_message("tensorflow.Int64List", value=[1, 2])
    assert message.SerializeToString() == b"\x0a\x02\x01\x02"
    assert list(parse_message("tensorflow.Int64List", b"\x08\x01\x08\x02").value) == [1, 2]


def test_unknown_fields_are_kept():
    data = b"\x0a\x01\x01" + b"\x7a\x01x"
    assert parse_message("tensorflow.Int64List", data).SerializeToString() == data


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff", b"\xff" * 20])
def test_bytes_that_are_no_message_are_a_bad_input(data):
    with pytest.raises(InvalidInputError, match=r"bytes that are not a valid tensorflow\.Example "):
        parse_message("tensorflow.Example", data)


def test_the_same_names_may_be_taken_in_the_default_pool():
    # In a process of its own: what stands in the default pool stays there.
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="a.proto", package="tensorflow.serving")
file.message_type.add(name="ModelSpec").field.add(name="other", number=7, type=5, label=1)
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
from keras_deepseek.inference.protocols.grpc_messages import new_message
print(new_message("tensorflow.serving.ModelSpec", name="x").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "x\n"


def test_without_protobuf_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pool", None)
    monkeypatch.setattr(grpc_messages, "_make_pool", grpc_messages._make_pool.__wrapped__)
    monkeypatch.setattr(grpc_messages, "_message_class", grpc_messages._message_class.__wrapped__)
    for use in (
        lambda: new_message("tensorflow.Example"),
        lambda: parse_message("tensorflow.Example", b""),
    ):
        with pytest.raises(MissingExtraError, match=r"keras_deepseek\[grpc\]"):
            use()


def test_the_descriptors_are_those_of_the_proto_files(tmp_path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: `tox -e clients`")
    script = Path(__file__).parents[3] / ".ci" / "compile_protos.py"
    compiled = tmp_path / "descriptors.binpb"
    # In its own process: protoc's native code crashes beside that of other packages.
    subprocess.run([sys.executable, script, compiled], check=True)
    assert read_descriptors(compiled) == read_descriptors()


def test_every_name_and_number_of_the_proto_files_is_in_the_descriptors():
    def walk(kinds):
        for kind in kinds:
            if not kind.options.map_entry:
                yield from kind.field
                yield from walk(kind.nested_type)
                for enum in kind.enum_type:
                    yield from enum.value

    for file in read_descriptors().file:
        text = (DESCRIPTORS.parent / file.name).read_text()
        written = re.findall(r"(\w+) = (\d+);", text)
        compiled = [
            *walk(file.message_type),
            *(value for enum in file.enum_type for value in enum.value),
        ]
        assert sorted(written) == sorted(
            (element.name, str(element.number)) for element in compiled
        )


def test_dtypes_have_the_numbers_of_tensorflow():
    values = message_pool().FindEnumTypeByName("tensorflow.DataType").values
    numbers = {value.name: value.number for value in values}
    assert {dtype.tf_name: dtype.tf_number for dtype in DTYPES}.items() <= numbers.items()


def test_dtypes_name_the_fields_that_list_their_values():
    fields = message_pool().FindMessageTypeByName("inference.InferTensorContents").fields
    assert {dtype.open_inference_values for dtype in DTYPES} == {
        *(field.name for field in fields),
        "",
    }


def test_every_field_and_every_number_is_that_of_tensorflow_serving_api():
    import_client("tensorflow_serving.apis.prediction_service_pb2")
    import_client("tensorflow_serving.apis.model_service_pb2")
    from google.protobuf import descriptor_pool

    assert differing_fields("tensorflow", descriptor_pool.Default()) == []


@pytest.mark.parametrize("service", ["PredictionService", "ModelService"])
def test_every_call_is_that_of_tensorflow_serving_api(service):
    import_client("tensorflow_serving.apis.prediction_service_pb2")
    import_client("tensorflow_serving.apis.model_service_pb2")
    from google.protobuf import descriptor_pool

    name = f"tensorflow.serving.{service}"
    assert calls_of(message_pool(), name) == calls_of(descriptor_pool.Default(), name)


def test_every_field_is_that_of_tritonclient_but_the_answers_of_kserve():
    import_client("tritonclient.grpc.service_pb2")
    from google.protobuf import descriptor_pool

    differing = differing_fields("inference", descriptor_pool.Default())
    assert [line.partition(":")[0] for line in differing] == [
        "inference.RepositoryModelLoadResponse.model_name",
        "inference.RepositoryModelLoadResponse.isLoaded",
        "inference.RepositoryModelUnloadResponse.model_name",
        "inference.RepositoryModelUnloadResponse.isUnloaded",
    ]


def test_every_call_is_that_of_tritonclient():
    import_client("tritonclient.grpc.service_pb2")
    from google.protobuf import descriptor_pool

    theirs = calls_of(descriptor_pool.Default(), OPEN_INFERENCE)
    assert calls_of(message_pool(), OPEN_INFERENCE).items() <= theirs.items()


def test_every_field_and_call_of_kserve_is_ours_but_the_names_of_a_repository():
    skip_without("kserve")
    # In a process of its own: its messages and tritonclient's have the same names.
    code = f"""
from google.protobuf import descriptor_pool
from kserve.protocol.grpc import grpc_predict_v2_pb2
from keras_deepseek.inference.protocols.grpc_messages import message_pool
from tests.oracles.protocols import calls_of
theirs, ours = descriptor_pool.Default(), message_pool()
assert calls_of(theirs, "{OPEN_INFERENCE}").items() <= calls_of(ours, "{OPEN_INFERENCE}").items()
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


INFER, PREDICT = "inference.ModelInferRequest", "tensorflow.serving.PredictRequest"
CLASSIFY = "tensorflow.serving.ClassificationRequest"


def infer(**contents):
    message = new_message(INFER)
    tensor = message.inputs.add()
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return message.SerializeToString()


def examples(count):
    message = new_message(CLASSIFY)
    for _ in range(count):
        message.input.example_list.examples.add()
    return message.SerializeToString()


def check(name, data):
    asyncio.run(grpc_messages.check_field_count(name, data))


OVERLONG = b"\xaa\x80\x80\x00\x80\x80\x00"
"""Field 5, empty, with a tag and a size of more bytes than they need."""

GROUP = b"\x2b\x2a\x02\xff\xff\x2c"
"""A group of number 5, with a field of number 5 that is no message."""


@pytest.mark.parametrize(
    ("name", "make", "most"),
    [
        (CLASSIFY, examples, 98),
        (INFER, lambda count: infer(bytes_contents=[b"a"] * count), 98),
        (INFER, lambda count: infer(int64_contents=[1] * count), 97 * 32 + 31),
        (INFER, lambda count: b"\x2a\x00" * count, 100),
        (INFER, lambda count: b"\x3a\x00" * count, 100),
        (INFER, lambda count: OVERLONG * count, 100),
        (INFER, lambda count: GROUP * 9 + b"\x2a\x00" * count, 100 - 9 * 4),
        (INFER, lambda count: b"\x7a\x00" * count, 100),  # An unknown field.
        (INFER, lambda count: b"\x2a\x02" * count + b"\x2a\x00", 99),  # Each in the one before.
        (PREDICT, lambda count: b"\x12\x00" * count, 100),
        (PREDICT, lambda count: b"\x0d1234" * count, 100),
        (PREDICT, lambda count: b"\x0912345678" * count, 100),
    ],
)
def test_more_fields_than_the_most_are_refused(monkeypatch, name, make, most):
    monkeypatch.setattr(grpc_messages, "MAX_FIELDS", 100)
    for count in (most // 2, most):
        check(name, make(count))
    with pytest.raises(InvalidInputError, match="more than 100 fields"):
        check(name, make(most + 1) + bytes(100))


def test_raw_bytes_and_floats_of_any_size_are_few_fields():
    message = new_message(INFER, raw_input_contents=[bytes(2**23)])
    check(INFER, message.SerializeToString())
    check(INFER, infer(fp32_contents=[0.0] * 2**20))


def test_malformed_bytes_are_left_to_the_parser():
    check(PREDICT, b"\x12\xff\xff\xff\x7f" + b"\xff" * 2**20)
    check(PREDICT, b"\xff" * 2**20)
