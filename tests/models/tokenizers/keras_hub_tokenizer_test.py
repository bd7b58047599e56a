"""KerasHub's tokenizers, as a server uses them."""

import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.tokenizers.keras_hub_tokenizer import KerasHubTokenizer

keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")

from tests.oracles.keras_hub_tasks import make_byte_tokenizer, make_task  # noqa: E402

HE, END = 256, 257
"""The ids of two tokens; the others are bytes."""


@pytest.fixture(scope="module")
def task():
    return make_task("gpt2")


@pytest.fixture(scope="module")
def tokenizer(task):
    return KerasHubTokenizer(task)


def test_a_text_begins_with_the_start_token_as_in_generate(task, tokenizer):
    token_ids = tokenizer.tokenize("the")
    (expected,) = task.preprocessor.generate_preprocess(["the"], sequence_length=3)["token_ids"]
    assert token_ids == np.asarray(expected).tolist()
    assert token_ids[::2] == [END, HE]
    assert tokenizer.tokenize("the", add_special_tokens=False) == token_ids[1:]
    assert tokenizer.tokenize("", add_special_tokens=True) == [END]


def test_characters_come_whole_from_a_stream(tokenizer):
    text = "the 日本 fox"
    token_ids = tokenizer.tokenize(text)
    assert tokenizer.detokenize(token_ids) == text
    assert tokenizer.detokenize(token_ids, skip_special_tokens=False) == f"<|endoftext|>{text}"
    stream = tokenizer.stream()
    pieces = [*map(stream.push, token_ids), stream.finish()]
    assert "".join(pieces) == text
    assert {"日", "本"} <= {*pieces}


def test_tokens_have_ids_and_unknown_ones_have_none(tokenizer):
    assert (tokenizer.id_to_token(HE), tokenizer.token_to_id("he")) == ("he", HE)
    assert [tokenizer.id_to_token(token_id) for token_id in (-1, 259)] == [None, None]
    assert tokenizer.token_to_id("fox") is None


def test_an_id_that_sentencepiece_lacks_has_no_text():
    tokenizer = KerasHubTokenizer(make_task("llama"))
    token_ids = tokenizer.tokenize("fox")
    assert tokenizer.detokenize([*token_ids, 100_000]) == "fox"
    assert tokenizer.id_to_token(100_000) is None
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.stop_token_ids == (2,)


def test_an_answer_stops_at_the_tokens_of_a_generate_that_is_overridden(task):
    class Talkative(keras_hub.models.GPT2CausalLM):
        def generate(self, inputs, max_length=None, stop_token_ids="auto", strip_prompt=False):
            return super().generate(inputs, max_length, [END, HE], strip_prompt)

    talkative = Talkative(task.backbone, task.preprocessor)
    talkative.compile(sampler="greedy")
    before = talkative.generate("the", max_length=8)
    assert KerasHubTokenizer(talkative).stop_token_ids == (END, HE)
    assert talkative.generate("the", max_length=8) == before


def test_a_preprocessor_that_changes_the_text_is_refused(task):
    class Shouting(keras_hub.models.GPT2CausalLMPreprocessor):
        def generate_preprocess(self, x, sequence_length=None):
            texts = [f"{text}!" for text in x]
            return super().generate_preprocess(texts, sequence_length=sequence_length)

    preprocessor = Shouting(make_byte_tokenizer(), sequence_length=8)
    shouting = keras_hub.models.GPT2CausalLM(task.backbone, preprocessor)
    with pytest.raises(NotSupportedError, match="Only tokens before a text can be served"):
        KerasHubTokenizer(shouting)


def test_a_conversation_is_refused(tokenizer):
    with pytest.raises(InvalidInputError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "fox"}])
