import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.inference.errors import ModelNotFoundError
from keras_deepseek.inference.models.model_options import ModelOptions
from keras_deepseek.inference.models.model_version import ModelVersion
from keras_deepseek.inference.models.served_model import (
    MAX_FAILED,
    ServedModel,
    find_states,
    repository_states,
    version_number,
    version_status,
)
from keras_deepseek.inference.protocols.open_inference_models import ModelState
from keras_deepseek.inference.protocols.tf_serving import VersionStatus
from tests.inference.conftest import Doubler


def version_of(number, state="AVAILABLE"):
    version = ModelVersion("m", number, Doubler(), ModelOptions(), lambda: None)
    version.state = state
    return version


@pytest.fixture
def points():
    return [0.5]


@pytest.fixture
def served(points):
    model = ServedModel("m", draw=lambda: points[0])
    for number in (5, 3, 7):
        model.add(version_of(number))
    return model


def test_versions_stand_by_rising_number_and_the_newest_is_asked(served):
    assert list(served.versions) == [3, 5, 7]
    assert served.find().number == 7
    assert served.find(version=5).number == 5


def test_one_that_is_not_available_is_passed_over(served):
    served.add(version_of(9, "LOADING"))
    assert served.find().number == 7
    assert served.find(version=9).state == "LOADING"


def test_where_none_is_available_the_newest_says_why():
    served = ServedModel("m")
    served.add(version_of(1, "LOADING"))
    assert served.find().number == 1


def test_an_unknown_version_or_label_is_named(served):
    with pytest.raises(ModelNotFoundError, match=r"no version 4; it has \[3, 5, 7\]"):
        served.find(version=4)
    with pytest.raises(ModelNotFoundError, match="no label 'stable'"):
        served.find(label="stable")
    with pytest.raises(ModelNotFoundError, match="has no version"):
        ServedModel("m").find()
    with pytest.raises(InvalidInputError, match="Give one of them"):
        served.find(version=3, label="stable")
    for version in ("3", 3.0, True):
        with pytest.raises(InvalidInputError, match=r"Received version=.* Expected an integer"):
            served.find(version=version)


def test_labels_stand_for_versions_and_are_replaced_together(served):
    served.set_labels({"stable": 5, "canary": 7})
    assert served.find(label="stable").number == 5
    with pytest.raises(ModelNotFoundError, match="no available version 4"):
        served.set_labels({"stable": 3, "canary": 4})
    assert served.labels == {"stable": 5, "canary": 7}


def test_a_version_on_trial_gets_its_share(served, points):
    served.set_share(7, 0.25)
    numbers = []
    for point in (0.0, 0.24, 0.25, 0.99):
        points[0] = point
        numbers.append(served.find().number)
    assert numbers == [7, 7, 5, 5]
    served.set_share(7, 1)
    assert served.find().number == 7
    assert served.on_trial == {}


def test_the_newest_is_the_same_during_a_trial(served, points):
    served.set_share(7, 0.9)
    points[0] = 0.0
    assert (served.find().number, served.newest().number) == (7, 5)
    served.set_share(7, 1)
    assert served.newest().number == 7
    with pytest.raises(ModelNotFoundError, match="has no version"):
        ServedModel("m").newest()


def test_a_share_of_zero_is_a_version_that_is_asked_by_its_number_alone(served, points):
    served.set_share(7, 0)
    points[0] = 0.0
    assert served.find().number == 5
    assert served.find(version=7).number == 7


def test_a_trial_of_a_version_that_is_not_ready_costs_nobody_an_answer(served, points):
    served.add(version_of(9, "LOADING"), share=0.5)
    points[0] = 0.1
    assert served.find().number == 7


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True, float("nan")])
def test_a_share_that_is_none_is_refused(served, share):
    with pytest.raises(InvalidInputError, match="share"):
        served.set_share(7, share)


def test_shares_together_are_one_at_the_most(served):
    served.set_share(7, 0.6)
    with pytest.raises(InvalidInputError, match="add up to more than 1"):
        served.set_share(5, 0.6)
    assert served.on_trial == {7: 0.6}


def test_a_removed_version_leaves_nothing_behind(served):
    served.set_labels({"canary": 7})
    served.set_share(7, 0.5)
    gone = served.find(version=7)
    served.remove(gone)
    assert (list(served.versions), served.labels, served.on_trial) == ([3, 5], {}, {})
    served.remove(gone)


def test_why_versions_failed_is_remembered_of_the_last_ones(served):
    for number in range(8, 9 + MAX_FAILED):
        served.fail(number, ValueError("no"))
    assert list(served.failed) == list(range(9, 9 + MAX_FAILED))
    assert list(served.states)[:4] == [3, 5, 7, 9]
    served.forget_failure(9)
    served.add(version_of(10))
    assert list(served.failed) == list(range(11, 9 + MAX_FAILED))
    with pytest.raises(ModelNotFoundError, match="no version 11: it failed with ValueError; it"):
        served.find(version=11)


def test_a_version_that_failed_is_forgotten_but_not_the_one_that_it_was_to_replace(served):
    coming, there = version_of(9), served.find(version=7)
    served.add(coming, share=0.5)
    served.fail(9, ValueError("no"), coming)
    served.fail(7, ValueError("no"), version_of(7))
    assert served.states[7] is there
    assert (served.states[9].state, served.on_trial) == ("END", {})
    served.remove(there)
    assert 7 not in served.states


def test_one_that_took_its_place_is_not_removed(served):
    gone, new = served.find(version=7), version_of(7)
    served.add(new)
    served.remove(gone)
    assert served.find(version=7) is new


def test_the_oldest_beyond_those_that_are_kept_are_surplus(served):
    def numbers(loaded, keep):
        return [version.number for version in served.surplus(served.find(version=loaded), keep)]

    assert numbers(loaded=7, keep=1) == [3, 5]
    assert numbers(loaded=7, keep=2) == [3]
    assert numbers(loaded=3, keep=1) == [5, 7]
    served.set_share(7, 0.5)
    assert numbers(loaded=7, keep=1) == [3]  # One on trial does not count.


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
