"""KerasHub's language models behind an engine, beside their own `generate` of each prompt alone."""

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidFieldError, InvalidInputError, NotSupportedError
from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.server.server import describe_servers
from tests.inference.conftest import service_of

keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")

from tests.oracles.keras_hub_tasks import LENGTH, make_task  # noqa: E402 - it needs KerasHub.
from tests.oracles.served_text import TextClient, read_events  # noqa: E402

PROMPTS = ["The quick brown", "fox", "Häufig 日本語", "A model reads tokens, and a tokenizer makes"]
PROMPTS += [f"{prompt} of text." for prompt in PROMPTS] + ["x" * size for size in (1, 17, 60, 65)]


def generate_alone(task, prompt, number, **options):
    """Returns the text that `generate` adds to a prompt, of so many tokens at most."""
    token_ids = task.preprocessor.tokenizer.tokenize(prompt)
    length = 1 + len(token_ids) + number  # There is a start token.
    return task.generate(prompt, max_length=length, strip_prompt=True, **options)


def check_answers(engine, task):
    """Asks for many answers at the same time, and compares each with that of the task."""
    numbers = [5 + index for index in range(len(PROMPTS))]
    answers = [
        engine.text(prompt, temperature=0, max_tokens=number)
        for prompt, number in zip(PROMPTS, numbers, strict=True)
    ]
    results = [answer.result(300) for answer in answers]
    expected = list(map(generate_alone, [task] * len(PROMPTS), PROMPTS, numbers))
    assert [result.text for result in results] == expected
    assert {result.choices[0].finish_reason for result in results} == {"length", "stop"}


@pytest.fixture(scope="module")
def task():
    return make_task("gpt2")


@pytest.fixture(scope="module")
def engine(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "gpt2"
    task.save_to_preset(str(folder))
    with ServingEngine(folder, name="gpt2", max_batch_size=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine):
    pytest.importorskip("uvicorn")
    server = HttpServer(service_of(engine))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server):
    client = TextClient(server)
    yield client
    client.close()


def test_a_preset_of_keras_hub_gives_the_texts_of_each_prompt_alone(engine, task):
    check_answers(engine, task)


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_live_task_of_keras_hub_gives_the_texts_of_each_prompt_alone(family):
    task = make_task(family)
    with ServingEngine(task, max_batch_size=4) as engine:
        before = engine.find_text().engine.statistics().num_compilations
        check_answers(engine, task)
        assert engine.find_text().engine.statistics().num_compilations == before


@pytest.mark.nightly
def test_the_address_of_a_model_without_chats_is_that_of_completions(engine, server):
    line = describe_servers(engine, [server])
    assert line == f"Serving 'gpt2' at {server.url}/v1/completions"


@pytest.mark.nightly
def test_clients_of_openai_get_the_texts_of_keras_hub(client, task):
    expected = generate_alone(task, "fox", 4)
    settings = {"temperature": 0, "max_tokens": 4}
    answered = client.complete("fox", **settings).content
    assert answered["choices"][0]["text"] == expected
    assert answered["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    events = read_events(client.complete("fox", stream=True, **settings))
    assert "".join(event["choices"][0]["text"] for event in events) == expected
    echoed = client.complete("fox", echo=True, logprobs=2, **settings).content["choices"][0]
    assert echoed["text"] == "fox" + expected
    assert echoed["logprobs"]["tokens"][:4] == ["<|endoftext|>", *"fox"]
    answered = client.post("/tokenize", prompt="the", return_token_strs=True).content
    assert answered["token_strs"] == ["<|endoftext|>", "t", "he"]
    assert answered["max_model_len"] == LENGTH
    assert client.post("/detokenize", tokens=answered["tokens"][1:]).content["prompt"] == "the"
    refused = client.chat("fox", **settings)
    assert (refused.status, refused.content["error"]["param"]) == (400, "messages")
    assert "no chat template" in refused.content["error"]["message"]


def test_a_prompt_beyond_the_context_is_refused(engine):
    with pytest.raises(InvalidFieldError, match=f"context length is {LENGTH} tokens") as raised:
        engine.text("x" * LENGTH)
    assert raised.value.field == "prompt"


def test_a_cache_beyond_the_context_of_the_model_is_refused(task):
    with pytest.raises(InvalidInputError, match=f"with at most {2 * LENGTH} tokens"):
        ServingEngine(task, max_length=2 * LENGTH + 1)


def test_one_size_of_the_cache_for_the_same_bits_is_refused(task):
    with pytest.raises(NotSupportedError, match=r"`batch_invariant` .* GPT2CausalLM"):
        ServingEngine(task, batch_invariant=True)


def test_a_task_without_a_preprocessor_is_refused_unless_its_logits_are_served(task):
    bare = keras_hub.models.GPT2CausalLM(task.backbone)
    with pytest.raises(InvalidInputError, match=r"`preprocessor` of GPT2CausalLM is None.*Model\("):
        ServingEngine(bare)
    tokens = np.ones((1, 3), "int32")
    with ServingEngine(keras.Model(bare.inputs, bare.outputs), max_batch_size=1) as engine:
        logits = engine.predict({"token_ids": tokens, "padding_mask": tokens})
    assert logits.shape == (1, 3, 260)


def test_a_task_with_an_encoder_is_refused():
    backbone = keras_hub.models.BartBackbone(20, 1, 2, 8, 16, max_sequence_length=8)
    with pytest.raises(NotSupportedError, match="BartSeq2SeqLM has an encoder"):
        ServingEngine(keras_hub.models.BartSeq2SeqLM(backbone))


def test_a_preset_of_another_task_is_refused(tmp_path):
    backbone = keras_hub.models.BertBackbone(20, 1, 2, 8, 16, max_sequence_length=8)
    backbone.save_to_preset(str(tmp_path / "bert"))
    with pytest.raises(InvalidInputError, match="KerasHub can't read a language model from"):
        ServingEngine(tmp_path / "bert")
