import inspect
from dataclasses import fields

import pytest

from keras_deepseek.models import CausalLM
from keras_deepseek.models.generation.generation import GenerationOptions, takes_options


@takes_options
def go_on(inputs, max_length=None, *, strip=False, **options):
    return inputs, GenerationOptions(max_length=max_length, **options)


@pytest.mark.parametrize("method", [go_on, CausalLM.generate, CausalLM.stream])
def test_a_method_has_every_option_by_its_default(method):
    parameters = inspect.signature(method).parameters
    assert {field.name: field.default for field in fields(GenerationOptions)} == {
        name: parameters[name].default for name in parameters.keys() & vars(GenerationOptions())
    }
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def test_what_a_method_names_itself_stays_where_it_is():
    names = list(inspect.signature(go_on).parameters)
    assert names[:4] == ["inputs", "max_length", "strip", "max_new_tokens"]
    assert go_on([1], 7, seed=3) == ([1], GenerationOptions(max_length=7, seed=3))


def test_an_option_that_is_none_is_refused():
    words = r"go_on\(\) got an unexpected keyword argument 'max_tokens': did you mean 'max_new_tok"
    with pytest.raises(TypeError, match=words):
        go_on([1], max_tokens=3)
    with pytest.raises(TypeError, match=r"argument 'num_beams'\.$"):
        go_on([1], num_beams=3)


def test_an_option_of_the_sampler_is_sent_there():
    words = r"go_on\(\) got .* 'temperature'\. .*`sampler=Sampler\(temperature=\.\.\.\)`"
    with pytest.raises(TypeError, match=words):
        go_on([1], temperature=0.7)
