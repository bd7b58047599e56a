import dataclasses

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import StepGuard
from keras_deepseek.training.step.step_options import StepOptions


@pytest.mark.parametrize("number", [0, 1.5, True])
def test_micro_batches_must_be_positive(number):
    with pytest.raises(InvalidInputError, match="`micro_batches` must be a positive integer"):
        StepOptions(micro_batches=number)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fp16_enabled": 1}, "`fp16_enabled`"),
        ({"fp16_enabled": True, "precision": "float16"}, "not both"),
        ({"precision": "fp8"}, "Unknown precision"),
        ({"float32_layers": ["a"]}, "needs half precision"),
        ({"gradient_clip": ("norm", 0)}, "gradient_clip"),
        ({"guard": "sleep"}, "guard"),
        ({"remat": 1}, "`remat`"),
        ({"tune_malloc": "yes"}, "`tune_malloc`"),
    ],
)
def test_invalid_options_are_named(options, match):
    with pytest.raises(InvalidInputError, match=match):
        StepOptions(**options)


def test_an_action_becomes_a_guard():
    assert StepOptions(guard="skip").make_guard().action == "skip"
    guard = StepGuard("stop", spike=3.0)
    assert StepOptions(guard=guard).make_guard() is guard
    assert StepOptions().make_guard() is None


def test_options_that_change_updates_are_found():
    options = StepOptions(micro_batches=2, remat=True).changes_to_updates()
    assert [name for name, is_used in options.items() if is_used] == ["`micro_batches`", "`remat`"]


def test_an_empty_list_of_blocks_changes_no_update():
    assert not any(StepOptions(remat=[]).changes_to_updates().values())


def test_processes_compare_all_options_but_those_that_may_differ():
    names = {option.name for option in dataclasses.fields(StepOptions)}
    assert names - set(StepOptions().shared_options()) == {
        "fp16_enabled",
        "precision",
        "tune_malloc",
    }
