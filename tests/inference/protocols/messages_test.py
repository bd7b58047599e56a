import subprocess
import sys

import pytest

from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.inference.protocols.messages import Protocol

pytest.importorskip("google.protobuf", reason="protobuf is not installed")

PROTOCOL = Protocol(
    packages={
        "a": {"Kind": {"NONE": 0, "SOME": 1}, "Leaf": "value 1 repeated int32"},
        "b.c": {
            "Tree": """
                name 1 string oneof either
                number 2 int64 oneof either
                leaves 3 map string a.Leaf
                branches 4 repeated Branch
                kind 5 a.Kind
            """,
            "Tree.Branch": "tree 1 Tree",
        },
    },
    services={"b.c.Forest": {"Grow": ("Tree", "stream Tree")}},
)


def test_a_table_makes_messages():
    tree = PROTOCOL.new("b.c.Tree", name="oak", kind=1)
    tree.leaves["x"].value.extend([1, 2])
    tree.branches.add().tree.number = 3
    read = PROTOCOL.parse("b.c.Tree", tree.SerializeToString())
    assert read == tree
    assert (read.WhichOneof("either"), read.branches[0].tree.number) == ("name", 3)
    assert list(read.leaves["x"].value) == [1, 2]
    read.number = 4
    assert read.name == ""


def test_a_message_may_come_as_text():
    tree = PROTOCOL.parse_text(
        "b.c.Tree", "name: 'oak' leaves { key: 'x' value { value: [1, 2] } }"
    )
    assert (tree.name, list(tree.leaves["x"].value)) == ("oak", [1, 2])
    with pytest.raises(InvalidInputError, match=r"no b\.c\.Tree message: 1:6 : 'name oak'"):
        PROTOCOL.parse_text("b.c.Tree", "name oak")


def test_lists_of_numbers_are_packed_and_read_either_way():
    assert PROTOCOL.new("a.Leaf", value=[1, 2]).SerializeToString() == b"\x0a\x02\x01\x02"
    assert list(PROTOCOL.parse("a.Leaf", b"\x08\x01\x08\x02").value) == [1, 2]


def test_what_a_message_does_not_know_it_keeps():
    data = b"\x0a\x01\x01" + b"\x7a\x01x"
    assert PROTOCOL.parse("a.Leaf", data).SerializeToString() == data


def test_services_are_described():
    call = PROTOCOL.pool.FindServiceByName("b.c.Forest").methods_by_name["Grow"]
    assert (call.input_type.full_name, call.output_type.full_name) == ("b.c.Tree", "b.c.Tree")
    assert (call.client_streaming, call.server_streaming) == (False, True)


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff", b"\xff" * 20])
def test_what_is_no_message_is_a_bad_input(data):
    with pytest.raises(InvalidInputError, match=r"bytes are no b\.c\.Tree message"):
        PROTOCOL.parse("b.c.Tree", data)


def test_the_same_names_may_be_taken_in_the_default_pool():
    # In a process of its own: what stands in the default pool stays there.
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="other.proto", package="tensorflow.serving")
file.message_type.add(name="ModelSpec").field.add(name="other", number=7, type=5, label=1)
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
from keras_deepseek.inference.protocols.tf_serving_messages import TF_SERVING
print(TF_SERVING.new("tensorflow.serving.ModelSpec", name="x").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "x\n"


def test_without_protobuf_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pool", None)
    monkeypatch.setitem(sys.modules, "google.protobuf.message", None)
    fresh = Protocol(PROTOCOL.packages, PROTOCOL.services)
    for use in (lambda: fresh.new("a.Leaf"), lambda: fresh.parse("a.Leaf", b"")):
        with pytest.raises(MissingExtraError, match=r"keras_deepseek\[grpc\]"):
            use()
