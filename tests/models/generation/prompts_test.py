from types import SimpleNamespace

import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.prompts import (
    find_end_tokens,
    read_prompts,
    read_stop_tokens,
)
from tests.oracles.small_language_model import WordTokenizer


@pytest.mark.parametrize(
    ("inputs", "rows", "is_single"),
    [
        ([1, 2], [[1, 2]], True),
        (np.asarray([1, 2]), [[1, 2]], True),
        ([[1, 2], [3]], [[1, 2], [3]], False),
        ([np.asarray([1, 2]), [3]], [[1, 2], [3]], False),
        (np.asarray([[1, 2], [3, 4]], "int64"), [[1, 2], [3, 4]], False),
        (([1],), [[1]], False),
    ],
)
def test_token_ids_come_as_lists_and_arrays(inputs, rows, is_single):
    prompts = read_prompts(inputs, None, 10)
    assert (prompts.rows, prompts.is_single, prompts.is_text) == (rows, is_single, False)


def test_text_is_encoded():
    prompts = read_prompts("ab", WordTokenizer(), None)
    assert prompts.is_single
    assert prompts.texts == ["ab"]
    assert prompts.rows == [WordTokenizer().tokenize("ab")]
    assert read_prompts(["ab", "c"], WordTokenizer(), None).texts == ["ab", "c"]
    assert read_prompts(np.array(["ab", "c"]), WordTokenizer(), None).texts == ["ab", "c"]
    for text in (np.array("ab"), np.str_("ab")):
        assert read_prompts(text, WordTokenizer(), None) == prompts


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "that is not empty; received \\[\\]"),
        (b"abc", "Prompts must be a string"),
        ([b"abc"], "must be a list of at least one token id"),
        (7, "Prompts must be a string, a list of token ids"),
        (np.array(7), "Prompts must be a string, .* received 7"),
        ([[1], []], "must be a list of at least one token id, received \\[\\]"),
        ([[1], "a"], "either all prompts are strings or none is"),
        ([1.5], "`a token id` must be an integer of at least 0, received 1.5"),
        (np.asarray([1.0, 2.0]), "`a token id` must be an integer of at least 0, received 1.0"),
        ([[1.5]], "`a token id` must be an integer of at least 0, received 1.5"),
        ([-1], "received -1"),
        ([1, 10], "the token id 10, and the model's vocabulary has only 10"),
        ("text", "the model has no tokenizer"),
    ],
)
def test_what_is_no_prompt_is_refused(inputs, message):
    with pytest.raises(InvalidInputError, match=message):
        read_prompts(inputs, None, 10)


def test_text_without_tokens_is_refused():
    with pytest.raises(InvalidInputError, match="must have at least one token"):
        read_prompts(["a", ""], WordTokenizer(), None)


def test_text_of_another_tokenizer_is_refused():
    tokens = WordTokenizer().tokenize("ab")
    assert read_prompts("ab", WordTokenizer(), max(tokens) + 1).rows == [tokens]
    words = rf"the prompt 'ab' with the token id {max(tokens)}, .* has only {max(tokens)}"
    with pytest.raises(InvalidInputError, match=words):
        read_prompts(["a", "ab"], WordTokenizer(), max(tokens))
    with pytest.raises(InvalidInputError, match="must be a `Tokenizer`, or None; received 'x'"):
        read_prompts("ab", "x", None)


def test_prompts_are_padded_on_the_left():
    token_ids, mask = read_prompts([[1, 2, 3], [4]], None, None).pad(4)
    assert token_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 4]]
    assert mask.tolist() == [[False, True, True, True], [False, False, False, True]]


def test_stop_tokens_are_those_of_each_row():
    assert read_stop_tokens("auto", frozenset(), 2) == [frozenset()] * 2
    assert read_stop_tokens("auto", frozenset([7]), 2) == [{7}, {7}]
    assert read_stop_tokens(None, frozenset([7]), 1) == [frozenset()]
    assert read_stop_tokens(3, frozenset(), 2) == [{3}, {3}]
    assert read_stop_tokens([3, 4], frozenset(), 2) == [{3, 4}, {3, 4}]
    assert read_stop_tokens([[3], [4, 5]], frozenset(), 2) == [{3}, {4, 5}]
    assert read_stop_tokens(np.asarray(3), frozenset(), 1) == [{3}]
    assert read_stop_tokens(np.asarray([[3], [4]]), frozenset(), 2) == [{3}, {4}]


@pytest.mark.parametrize("stops", ["end", [[3]], [[3], 4], [-1], 1.5, [1.0, 2.0], [None, [3]]])
def test_what_is_no_stop_token_is_refused(stops):
    with pytest.raises(InvalidInputError, match="stop"):
        read_stop_tokens(stops, frozenset(), 2)


def test_a_stop_token_beyond_the_vocabulary_is_refused():
    assert read_stop_tokens([[8], [9]], frozenset([10]), 2, 10) == [{8}, {9}]
    assert read_stop_tokens("auto", frozenset([10]), 1, 10) == [{10}]
    for stops in (10, [3, 10], [[3], [10]]):
        with pytest.raises(InvalidInputError, match=r"id 10, at which .* vocabulary has only 10"):
            read_stop_tokens(stops, frozenset(), 2, 10)


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        ({"eos_token_id": [3, 4]}, 5, 6, {3, 4}),
        ({"top_p": 0.9}, 5, 6, {5}),
        ({}, (5, 7), 6, {5, 7}),
        ({}, None, 6, {6}),
        ({}, None, None, set()),
    ],
)
def test_the_end_tokens_are_those_of_the_first_who_names_any(
    generation, config, tokenizer, expected
):
    model = SimpleNamespace(
        generation_config=generation,
        config=SimpleNamespace(end_token_id=config),
        tokenizer=WordTokenizer(tokenizer),
    )
    assert find_end_tokens(model) == expected
    without = SimpleNamespace(generation_config={}, config=None, tokenizer=None)
    assert find_end_tokens(without) == set()
