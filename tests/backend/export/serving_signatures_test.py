import pytest

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.serving_signatures import ServingSignatures
from keras_deepseek.errors import InvalidInputError


def test_it_is_true_where_there_is_one():
    assert not ServingSignatures()
    assert ServingSignatures(classes=())
    assert ServingSignatures(regresses=True)


def signature_of(sizes, *widths):
    outputs = tuple(
        TensorSpec(f"output_{index}", (None, width), "float32")
        for index, width in enumerate(widths)
    )
    return Signature((TensorSpec("input_0", (None, *sizes), "float32"),), outputs)


@pytest.mark.parametrize(
    ("signature", "signatures", "match"),
    [
        (signature_of((None, 3), 2), ServingSignatures(classes=("a", "b")), "fixed size.*input_0"),
        (
            signature_of((3,), 2),
            ServingSignatures(classes=("a", "b", "c")),
            r"shape \(any, 3\); received",
        ),
        (
            signature_of((3,), 2),
            ServingSignatures(regresses=True),
            r"For 1 value a row.*shape \(any, 1\)",
        ),
        (signature_of((3,), 1, 1), ServingSignatures(regresses=True), "one output"),
    ],
)
def test_what_a_model_has_no_signature_for_is_refused(signature, signatures, match):
    with pytest.raises(InvalidInputError, match=match):
        signatures.check(signature)


def test_what_fits_passes():
    ServingSignatures(classes=("a", "b")).check(signature_of((3,), 2))
    ServingSignatures(regresses=True).check(signature_of((3,), 1))
    ServingSignatures().check(signature_of((None,), 2, 3))
