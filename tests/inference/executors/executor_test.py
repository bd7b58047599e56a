import pytest

from keras_deepseek.artifacts import NotSupportedError
from keras_deepseek.inference import Executor
from keras_deepseek.inference.executors.executor import as_executor
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
