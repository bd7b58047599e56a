"""OpenAI's API of a real, tiny language model: the same answers as in the process itself."""

import shutil

import numpy as np
import pytest
from keras.ops import convert_to_numpy

from keras_deepseek.inference import HttpServer, ServingEngine
from keras_deepseek.inference.executors.text_model import open_text_model
from keras_deepseek.models import CausalLM
from tests.inference.conftest import service_of
from tests.oracles.served_text import TextClient, read_events

pytest.importorskip("uvicorn")

TEXT = "The lazy dog"
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def model(preset):
    return CausalLM.from_preset(preset)


@pytest.fixture(scope="module")
def client(preset):
    engine = ServingEngine(preset, name="deepseek", max_batch_size=1, max_length=64)
    server = HttpServer(service_of(engine))
    server.start()
    client = TextClient(server)
    client.while_starting = [client.ask("GET", f"/v1/models{end}") for end in ("", "/deepseek")]
    with engine:
        yield client
        client.close()
        server.stop()


def test_a_chat_is_what_the_model_generates_after_its_template(client, model):
    messages = [{"role": "user", "content": TEXT}]
    prompt = model.tokenizer.apply_chat_template(messages)
    tokens = model.tokenizer.tokenize(prompt, add_special_tokens=False)
    written = model.generate(tokens, max_new_tokens=8, strip_prompt=True)
    expected = model.tokenizer.detokenize(list(written))
    content = client.chat(TEXT, model="deepseek", **GREEDY).content
    assert content["choices"][0]["message"]["content"] == expected
    assert content["usage"]["prompt_tokens"] == len(tokens)
    events = read_events(client.chat(TEXT, stream=True, **GREEDY))
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas) == expected
    answered = client.post("/tokenize", messages=messages).content
    assert (answered["tokens"], answered["max_model_len"]) == (tokens, 64)
    assert client.post("/detokenize", tokens=tokens).content["prompt"] == prompt


def test_a_prompt_is_scored_by_the_model_s_own_logits(client, model):
    tokens = model.tokenizer.tokenize(TEXT)
    settings = {"echo": True, "logprobs": 3, "max_tokens": 1, "temperature": 0}
    choice = client.complete([tokens], **settings).content["choices"][0]
    details = choice["logprobs"]
    values = np.asarray(details["token_logprobs"][1:], "float64")
    scored = [*tokens, int(model.generate(tokens, max_new_tokens=1, strip_prompt=True)[0])]
    batch = np.array([scored])
    logits = convert_to_numpy(
        model({"token_ids": batch, "padding_mask": np.ones_like(batch)})[0]
    ).astype("float64")
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    positions = np.arange(len(tokens))
    np.testing.assert_allclose(values, expected[positions, scored[1:]], atol=1e-5)
    best = [max(values.values()) for values in details["top_logprobs"][1:]]
    np.testing.assert_allclose(best, expected[:-1].max(-1), atol=1e-5)
    assert "".join(details["tokens"]) == choice["text"]


def test_a_model_that_is_starting_is_not_listed(client):
    models, model = client.while_starting
    assert (models.status, models.content["data"]) == (200, [])
    assert (model.status, model.headers["Retry-After"]) == (503, "1")
    assert "'deepseek' is not ready" in model.content["error"]["message"]


def test_a_model_s_address_answers_openai_s_and_tf_serving_s_clients(client):
    (model,) = client.ask("GET", "/v1/models").content["data"]
    content = client.ask("GET", "/v1/models/deepseek").content
    (state,) = content.pop("model_version_status")
    assert state["state"] == "AVAILABLE"
    assert content == model
    assert (model["id"], model["max_model_len"]) == ("deepseek", 64)
    assert b"Chat with a model" in client.ask("GET", "/").body


def test_tensors_are_refused_and_the_error_names_the_address_of_chats(client):
    answered = client.post("/v1/models/deepseek:predict", instances=[["Hi"]])
    assert answered.status == 400
    assert "/v1/chat/completions" in answered.content["error"]
    answered = client.chat(model="other")
    assert (answered.status, answered.content["error"]["code"]) == (404, "model_not_found")


def test_a_broken_template_is_told_at_the_start(preset, tmp_path, caplog):
    shutil.copytree(preset, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{% for m in %}")
    open_text_model(tmp_path, chunk_size=16, batch_invariant=False, threads=None)
    assert "The chat template refuses a message of a user: The chat template" in caplog.text
