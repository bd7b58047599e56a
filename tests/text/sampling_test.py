import json
import math
import sys

import pytest

from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference.text.text_request import TextRequest
from keras_deepseek.text.sampling import (
    MAX_BIASES,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    SamplingOptions,
)

REFUSED = [
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_completion_tokens", -1),
    ("temperature", -0.1),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("temperature", True),
    ("top_k", -2),
    ("top_p", 0),
    ("top_p", 1.01),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", [1]),
    ("logit_bias", {"word": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"²": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": None}),
    ("logit_bias", {str(token): 1 for token in range(MAX_BIASES + 1)}),
    ("seed", 2**63),
    ("seed", "1"),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", [1]),
    ("stop", 5),
    ("stop", ["a"] * (MAX_STOPS + 1)),
    ("stop", "a" * (MAX_STOP_CHARACTERS + 1)),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", ["1"]),
    ("stop_token_ids", [1] * (MAX_STOPS + 1)),
    ("n", 0),
    ("n", 10**9),
    ("logprobs", 21),
    ("logprobs", "true"),
    ("top_logprobs", 21),
    ("top_logprobs", 2),
    ("ignore_eos", 1),
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_a_wrong_setting_is_refused_with_the_name_of_its_field(field, value):
    with pytest.raises(InvalidFieldError, match=f"^`{field}") as caught:
        SamplingOptions.from_request({"model": "m", field: value})
    assert caught.value.field == field
    assert len(str(caught.value)) < 600


def test_settings_are_read_as_clients_write_them():
    body = """{"model": "m", "stream": true, "max_completion_tokens": 7, "temperature": 0,
        "top_k": -1, "top_p": 1, "stop": "END", "seed": 5, "logit_bias": {"42": -100, "7": 0.5},
        "n": 2, "logprobs": true, "top_logprobs": 3, "ignore_eos": true, "unknown": {}}"""
    options = SamplingOptions.from_request(json.loads(body))
    expected = SamplingOptions(
        max_tokens=7,
        temperature=0,
        stop=("END",),
        seed=5,
        logit_bias={42: -100, 7: 0.5},
        n=2,
        logprobs=True,
        top_logprobs=3,
        ignore_eos=True,
    )
    assert options == expected
    assert options.num_alternatives == 3


def test_null_is_as_good_as_not_given():
    fields = dict.fromkeys(vars(SamplingOptions()))
    assert SamplingOptions.from_request(fields) == SamplingOptions()


@pytest.mark.parametrize(
    ("fields", "number"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": 5}, 5)],
)
def test_logprobs_is_a_switch_for_chats_and_a_number_for_completions(fields, number):
    assert SamplingOptions.from_request(fields).num_alternatives == number


@pytest.mark.parametrize("settings", [{"logit_bias": {"9": 1}}, {"stop_token_ids": [9]}])
def test_token_ids_must_be_those_of_the_model(settings):
    options = SamplingOptions.from_request(settings)
    options.check_vocabulary(10)
    with pytest.raises(InvalidFieldError, match="token id 9") as caught:
        TextRequest([1], options).check_vocabulary(9)
    assert [caught.value.field] == list(settings)


@pytest.mark.parametrize("prompt", [[], [1, -1], [2**40], [1.5], ["a"], None])
def test_a_prompt_that_is_no_token_ids_is_refused(prompt):
    with pytest.raises(InvalidFieldError) as caught:
        TextRequest(prompt)
    assert caught.value.field == "prompt"


def test_a_prompt_of_unknown_tokens_is_refused():
    with pytest.raises(InvalidFieldError, match="token id 9"):
        TextRequest([1, 9]).check_vocabulary(9)


def test_a_waiting_prompt_takes_four_bytes_a_token():
    assert sys.getsizeof(TextRequest(range(100_000)).prompt) < 500_000


@pytest.mark.parametrize(("ignore_eos", "stop_tokens"), [(False, {1, 2}), (True, {1})])
def test_ignoring_the_end_keeps_the_requests_own_stop_tokens(ignore_eos, stop_tokens):
    options = SamplingOptions(stop_token_ids=(1,), ignore_eos=ignore_eos)
    assert TextRequest([5], options, end_tokens=[2]).stop_tokens == stop_tokens
