import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference.protocols import open_inference_models
from keras_deepseek.inference.protocols.open_inference_models import ModelState

SIGNATURE = Signature(
    (TensorSpec("x", (None, 2), "float32"), TensorSpec("word", (None,), "object")),
    (TensorSpec("y", (None,), "bfloat16"),),
)


def test_a_model_s_tensors_are_described_in_the_protocol_s_words():
    assert open_inference_models.model_metadata("m", SIGNATURE, ["1", "2"], "keras") == {
        "name": "m",
        "versions": ["1", "2"],
        "platform": "keras",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "word", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": "y", "datatype": "BF16", "shape": [-1]}],
    }


def test_a_server_says_which_extensions_it_has():
    metadata = open_inference_models.server_metadata("k", "1")
    assert metadata == {
        "name": "k",
        "version": "1",
        "extensions": ["binary_tensor_data", "classification", "model_repository"],
    }


def test_the_index_has_each_model_or_those_that_are_ready():
    states = [ModelState("a", "1", True), ModelState("b", "2", False, "loading")]
    index = open_inference_models.repository_index(states)
    assert [(version["name"], version["state"], version["reason"]) for version in index] == [
        ("a", "READY", ""),
        ("b", "UNAVAILABLE", "loading"),
    ]
    assert len(open_inference_models.repository_index(states, ready=True)) == 1


@pytest.mark.parametrize(
    ("body", "ready"), [(b"", False), (b" ", False), (b"{}", False), (b'{"ready": true}', True)]
)
def test_the_index_is_asked_for_with_or_without_a_body(body, ready):
    assert open_inference_models.parse_repository_index(body) is ready


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1}'])
def test_a_bad_body_is_refused(body):
    with pytest.raises(InvalidInputError):
        open_inference_models.parse_repository_index(body)
