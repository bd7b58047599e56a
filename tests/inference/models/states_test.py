import pytest

from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.models.served_model import (
    find_states,
    repository_states,
    version_number,
    version_status,
)
from keras_deepseek.inference.protocols.open_inference_models import ModelState
from keras_deepseek.inference.protocols.tf_serving import VersionStatus


def test_a_version_s_state_is_told_and_why_it_failed_is_not(doubler, monkeypatch):
    with ServingEngine(doubler) as engine:
        version = engine.find()
        assert version_status(version, True) == VersionStatus(1, "AVAILABLE")
        assert version_status(version, False) == VersionStatus(1, "UNLOADING")
        monkeypatch.setattr(doubler, "run", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.load(doubler)
        failed = version_status(engine.models["model"].states[2], True)
    message = "It failed with ZeroDivisionError; see the server's log."
    assert failed == VersionStatus(2, "END", "UNKNOWN", message)


def test_states_are_asked_for_by_number_or_all_together(doubler):
    with ServingEngine(doubler) as engine:
        served = engine.models["model"]
        served.fail(3, ValueError("no"))
        assert [version.number for version in find_states(served, None)] == [1, 3]
        assert [version.state for version in find_states(served, 3)] == ["END"]
        assert find_states(served, 2) == find_states(None, None) == []


def test_the_repository_has_each_version_of_each_model(doubler):
    with ServingEngine(doubler) as engine:
        engine.load(doubler, name="other", version=3)
        states = repository_states(engine.models)
    assert states[0] == ModelState("model", "1", True, "AVAILABLE")
    assert states[1] == ModelState("other", "3", True, "AVAILABLE")


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("0", 0), ("9" * 20, None), ("-1", None), ("1.0", None), ("", None)],
)
def test_a_version_is_a_number_of_no_more_than_int64_has(text, number):
    assert version_number(text) == number
