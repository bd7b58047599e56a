import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.sampler import GREEDY, Sampler, SamplingRules, get_sampler


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, "`temperature` must be a finite number of at least 0"),
        ("temperature", float("nan"), "`temperature` must be a finite number"),
        ("top_k", 0, "`top_k` must be a positive integer, received 0"),
        ("top_k", 2.5, "`top_k` must be a positive integer"),
        ("top_p", 0.0, "`top_p` must be a finite number above 0"),
        ("top_p", 1.5, "`top_p` must be at most 1, received 1.5"),
        ("min_p", -0.1, "`min_p` must be a finite number of at least 0"),
        ("min_p", 1.1, "`min_p` must be at most 1"),
        ("repetition_penalty", 0, "`repetition_penalty` must be a finite number above 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, value, message):
    with pytest.raises(InvalidInputError, match=message):
        Sampler(**{name: value})


def test_steps_that_change_nothing_are_not_compiled():
    nothing = SamplingRules(
        is_greedy=False, top_k=None, has_top_p=False, has_min_p=False, has_penalty=False
    )
    assert Sampler().rules == nothing
    assert Sampler(top_p=1.0, min_p=0.0, repetition_penalty=1.0).rules == nothing


def test_greedy_has_a_penalty_and_no_other_step():
    rules = Sampler(temperature=0.0, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=1.3).rules
    assert rules == SamplingRules(
        is_greedy=True, top_k=None, has_top_p=False, has_min_p=False, has_penalty=True
    )


def test_a_temperature_that_float32_can_not_divide_by_is_greedy():
    assert Sampler(1e-40).rules == Sampler(1e-31).rules == GREEDY.rules
    assert not Sampler(1e-30).rules.is_greedy


def test_samplers_that_differ_in_numbers_share_what_is_compiled():
    first, second = Sampler(0.5, top_k=3, top_p=0.5), Sampler(0.7, top_k=3, top_p=0.9)
    assert first.rules == second.rules
    np.testing.assert_allclose(first.numbers["temperature"], 0.5)
    np.testing.assert_allclose(second.numbers["top_p"], 0.9)
    assert all(number.dtype == "float32" for number in first.numbers.values())


def test_a_name_stands_for_a_sampler():
    assert get_sampler(None) == get_sampler("greedy") == GREEDY
    assert get_sampler("random") == Sampler()
    assert get_sampler(Sampler(0.3)) == Sampler(0.3)
    with pytest.raises(
        InvalidInputError, match=r"did you mean 'greedy'.*You can also give a `Sampler"
    ):
        get_sampler("gredy")
