import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_deepseek.artifacts import InvalidInputError, Signature, TensorSpec
from keras_deepseek.inference import ModelOptions, ServingEngine
from keras_deepseek.inference.errors import ClosedError, ModelNotFoundError
from keras_deepseek.inference.http.open_inference_rest import ROUTES
from keras_deepseek.inference.http.openapi import describe_server
from tests.inference.conftest import DOUBLE, Doubler


class Times(Doubler):
    """Multiplies its input."""

    def __init__(self, factor, warms_up=True):
        super().__init__()
        self.factor = factor
        self.warms_up = warms_up

    def run(self, inputs):
        if not self.warms_up:
            raise ArithmeticError("it does not warm up")
        return {"y": self.factor * super().run(inputs)["y"] / 2}


def states(engine, name="model"):
    return {number: version.state for number, version in engine.models[name].states.items()}


def test_an_unknown_name_is_answered_with_those_that_are_served(doubler):
    engine = ServingEngine(doubler, name="digits")
    with pytest.raises(ModelNotFoundError, match=r"no model 'cats'.* served are \['digits'\]\.$"):
        engine.models["cats"]
    with pytest.raises(KeyError):
        engine.models["cats"]
    assert engine.models.get("cats") is None


def test_options_of_another_type_are_refused(doubler, tmp_path):
    engine, options = ServingEngine(doubler), {"max_batch_size": 8}
    with pytest.raises(InvalidInputError, match="`options` must be a `ModelOptions`"):
        engine.load(doubler, options=options)
    with pytest.raises(InvalidInputError, match="`options` must be a `ModelOptions`"):
        engine.follow(tmp_path, name="digits", options=options)


def test_a_new_version_takes_the_place_of_the_old_when_it_is_warm():
    with ServingEngine(Times(2)) as engine:
        old = engine.find()
        assert engine.load(Times(3)).number == 2
        assert engine.predict([[1, 1]]).tolist() == [[3, 3]]
        assert (old.state, list(engine.models["model"].versions)) == ("END", [2])


def test_a_version_that_was_replaced_leaves_nothing_in_memory():
    with ServingEngine(Times(2)) as engine:
        first = weakref.ref(engine.find())
        engine.predict([[1, 1]])
        second = weakref.ref(engine.load(Times(3)))
        engine.predict([[1, 1]])
        engine.load(Times(4))
        gc.collect()
        assert (first(), second()) == (None, None)


def test_a_version_that_does_not_warm_up_changes_nothing_and_is_remembered():
    with ServingEngine(Times(2)) as engine:
        with pytest.raises(ArithmeticError):
            engine.load(Times(3, warms_up=False))
        assert engine.predict([[1, 1]]).tolist() == [[2, 2]]
        served = engine.models["model"]
        assert states(engine) == {1: "AVAILABLE", 2: "END"}
        assert served.failed[2].error == "ArithmeticError: it does not warm up"
        with pytest.raises(ModelNotFoundError, match="no version 2: it failed with ArithmeticErr"):
            engine.predict([[1, 1]], version=2)
        assert engine.load(Times(4), version=2).state == "AVAILABLE"
        assert engine.predict([[1, 1]]).tolist() == [[4, 4]]
        assert served.failed == {}


def fail_to_load(engine, model=None, **options):
    with pytest.raises((ArithmeticError, InvalidInputError)):
        engine.load(Times(9, warms_up=False) if model is None else model, **options)


def test_a_version_that_failed_does_not_push_out_one_that_is_good():
    with ServingEngine(Times(2)) as engine:
        fail_to_load(engine)
        assert engine.load(Times(3), share=0.0).number == 3
        engine.unload(version=3)
        assert engine.predict([[1, 1]]).tolist() == [[2, 2]]
    with ServingEngine(Times(2)) as engine:
        fail_to_load(engine)
        engine.load(Times(3), keep=2)
        assert engine.predict([[1, 1]], version=1).tolist() == [[2, 2]]


def test_a_version_that_failed_leaves_no_model_no_share_and_no_label():
    with ServingEngine(Times(2)) as engine:
        model = Times(3, warms_up=False)
        reference = weakref.ref(model)
        fail_to_load(engine, model, share=0.9)
        del model
        gc.collect()
        assert reference() is None
        assert engine.models["model"].on_trial == {}
        engine.load(Times(4), share=0.9)


def test_a_version_that_can_not_be_opened_is_remembered_too():
    with ServingEngine(Times(2)) as engine:
        fail_to_load(engine, "/nowhere", version=7)
        assert states(engine) == {1: "AVAILABLE", 7: "END"}
        assert engine.models["model"].failed[7].error.startswith("InvalidInputError: Can't serve")
        engine.unload(version=7)
        assert states(engine) == {1: "AVAILABLE"}
        fail_to_load(engine, "/nowhere", name="other")
        assert states(engine, "other") == {1: "END"}
        with pytest.raises(ModelNotFoundError, match="no version"):
            engine.predict([[1, 1]], model="other")


@pytest.mark.parametrize(
    "options", [{"version": -1}, {"version": 0}, {"share": 2}, {"version": 1, "share": 2}]
)
def test_an_argument_that_does_not_fit_is_no_version_that_failed(options):
    with ServingEngine(Times(2)) as engine:
        fail_to_load(engine, Times(3), **options)
        fail_to_load(engine, Times(3), name="other", **options)
        assert (states(engine), list(engine.models)) == ({1: "AVAILABLE"}, ["model"])
        assert engine.predict([[1, 1]]).tolist() == [[2, 2]]


def test_a_version_is_replaced_by_one_of_the_same_number():
    with ServingEngine(Times(2), version=7) as engine:
        engine.load(Times(3), version=7)
        assert engine.predict([[1, 1]], version=7).tolist() == [[3, 3]]
        with pytest.raises(ArithmeticError):
            engine.load(Times(5, warms_up=False), version=7)
        assert engine.predict([[1, 1]], version=7).tolist() == [[3, 3]]
        assert states(engine) == {7: "AVAILABLE"}
        assert engine.models["model"].failed[7].kind == "ArithmeticError"


def test_older_versions_stay_where_that_is_wanted_and_labels_stand_for_them():
    with ServingEngine(Times(2)) as engine:
        engine.load(Times(3), keep=2)
        engine.models["model"].set_labels({"stable": 1})
        assert engine.predict([[1, 1]], label="stable").tolist() == [[2, 2]]
        assert engine.predict([[1, 1]]).tolist() == [[3, 3]]
        with pytest.raises(ModelNotFoundError, match="no version 9"):
            engine.predict([[1, 1]], version=9)


def test_a_version_on_trial_leaves_the_others_where_they_are():
    with ServingEngine(Times(2)) as engine:
        engine.load(Times(3), share=0.0)
        assert engine.predict([[1, 1]]).tolist() == [[2, 2]]
        assert engine.predict([[1, 1]], version=2).tolist() == [[3, 3]]


def test_what_describes_a_model_is_that_of_the_version_that_is_not_on_trial():
    with ServingEngine(Times(2)) as engine:
        other = Signature(DOUBLE.inputs, (TensorSpec("on_trial", (None, 2), "float32"),))
        model = Times(3)
        model.signature, model.run = other, lambda inputs: {"on_trial": inputs["x"]}
        engine.load(model, share=0.9)
        engine.models["model"]._draw = lambda: 0.0
        assert engine.predict([[1, 1]]).tolist() == [[1, 1]]
        assert engine.find().number == 1
        assert engine.signature == DOUBLE
        assert engine.statistics().rows == 0
        assert engine.statistics(version=2).rows == 1
        assert "on_trial" not in str(describe_server(engine, ROUTES)["components"]["schemas"])


def test_several_models_are_served_by_name_each_with_options_of_its_own():
    with ServingEngine(Times(2), name="two") as engine:
        three = engine.load(Times(3), name="three", options=ModelOptions(max_batch_size=4))
        assert three.number == 1
        assert engine.predict([[1, 1]], model="three").tolist() == [[3, 3]]
        assert engine.predict([[1, 1]]).tolist() == [[2, 2]]
        engine.unload("three")
        assert list(engine.models) == ["two"]
        assert three.state == "END"
        with pytest.raises(ModelNotFoundError, match=r"no model 'three'; .* \['two'\]"):
            engine.predict([[1, 1]], model="three")


def test_one_version_is_unloaded_by_its_number():
    with ServingEngine(Times(2)) as engine:
        engine.load(Times(3), keep=2)
        engine.unload(version=2)
        assert engine.predict([[1, 1]]).tolist() == [[2, 2]]


def test_no_request_fails_while_versions_come_and_go():
    with ServingEngine(Times(1), max_batch_size=4) as engine, ThreadPoolExecutor(8) as pool:
        stop = threading.Event()

        def ask():
            answers = []
            while not stop.is_set():
                answers.append(engine.predict([[1, 1]])[0, 0])
            return answers

        askers = [pool.submit(ask) for _ in range(8)]
        for factor in range(2, 12):
            engine.load(Times(factor))
        stop.set()
        answers = [answer for asker in askers for answer in asker.result(timeout=60)]
    assert set(answers) <= set(map(float, range(1, 12)))
    assert len(answers) > 0


def test_closing_closes_every_model():
    engine = ServingEngine(Times(2))
    other = engine.load(Times(3), name="other")
    engine.close()
    assert other.state == "END"
    with pytest.raises(ClosedError):
        engine.load(Times(4))
