from pathlib import Path

import pytest

from keras_deepseek.artifacts import InvalidInputError, NotSupportedError, Signature, TensorSpec
from keras_deepseek.inference import Executor
from keras_deepseek.inference.executors.executor import (
    RuntimeTensor,
    as_executor,
    check_names,
    make_signature,
)
from tests.inference.conftest import DOUBLE, Doubler


class Minimal(Executor):
    signature = DOUBLE

    def run(self, inputs):
        return {"y": 2 * inputs["x"]}


def test_the_signature_and_run_are_required_and_all_else_has_a_default(bundle_of):
    with pytest.raises(TypeError, match="abstract"):
        Executor()
    executor = Minimal()
    assert not executor.is_isolated
    executor.prepare_to_close()
    executor.close()
    bundle = bundle_of("other")
    with pytest.raises(NotSupportedError, match=r"Minimal can't open the bundle at .*from_bundle"):
        Minimal.from_bundle(bundle)
    with pytest.raises(NotSupportedError, match=r"Minimal can't open .*model\.bin.*from_path"):
        Minimal.from_path(bundle.entry)


def test_only_objects_that_have_a_signature_and_run_become_executors():
    executor, doubler = Minimal(), Doubler()
    assert as_executor(executor) is executor
    assert as_executor(doubler).signature is doubler.signature
    for other in (None, object(), Minimal, Doubler):
        assert as_executor(other) is None


PATH = Path("models/digits")
GOOD = RuntimeTensor("x", (None, 2), "float32")


def test_tensors_whose_rows_come_first_make_a_signature():
    inputs = [
        GOOD,
        RuntimeTensor("text", [None], "object"),
        RuntimeTensor("any", [None, None], "bool"),
    ]
    assert make_signature(PATH, inputs, [GOOD], "") == Signature(
        (
            TensorSpec("x", (None, 2), "float32"),
            TensorSpec("text", (None,), "object"),
            TensorSpec("any", (None, None), "bool"),
        ),
        (TensorSpec("x", (None, 2), "float32"),),
    )


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (RuntimeTensor("y", None, "float32"), "'y' .*models/digits.* unknown rank.*Mend it"),
        (RuntimeTensor("y", (), "float32"), "no axis for the rows"),
        (RuntimeTensor("y", (8, 2), "float32"), "first axis of 8"),
        (RuntimeTensor("y", (None,), "complex64"), "has the dtype complex64"),
        (RuntimeTensor("y", (), "seq(map(int64,tensor(float)))"), r"has the dtype seq\(map"),
    ],
)
def test_a_tensor_that_can_t_be_served_is_refused_with_advice(tensor, match):
    with pytest.raises(NotSupportedError, match=f"Input {match}" if "Mend" in match else match):
        make_signature(PATH, [tensor], [GOOD], "Mend it.")
    with pytest.raises(NotSupportedError, match="Output 'y'"):
        make_signature(PATH, [GOOD], [tensor], "Mend it.")


@pytest.mark.parametrize(("inputs", "outputs"), [([], [GOOD]), ([GOOD], [])])
def test_a_model_without_inputs_or_outputs_is_refused(inputs, outputs):
    with pytest.raises(NotSupportedError, match="at least one of each"):
        make_signature(PATH, inputs, outputs, "")


def test_names_are_those_of_the_manifest():
    signature = make_signature(PATH, [GOOD], [GOOD], "")
    check_names(PATH, ["x"], ["x", "another"], signature)
    for inputs, outputs in ((["x", "z"], ["x"]), ([], ["x"]), (["x"], ["z"])):
        with pytest.raises(InvalidInputError, match=r"its manifest says \['x'\] and \['x'\]"):
            check_names(PATH, inputs, outputs, signature)
