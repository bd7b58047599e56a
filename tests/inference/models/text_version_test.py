import asyncio
import gc
import json
import logging
import re
import threading
import weakref

import keras
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.errors import InvalidFieldError
from keras_deepseek.inference import ClosedError, ModelNotFoundError, ModelOptions, ServingEngine
from keras_deepseek.inference.models.text_version import make_sizes
from keras_deepseek.inference.monitoring.request_trace import RequestTrace
from keras_deepseek.inference.server.live_line import LiveStatisticsReader
from keras_deepseek.models import CausalLM
from keras_deepseek.text.sampling import SamplingOptions
from tests.inference.conftest import Doubler
from tests.oracles.language_model_preset import write_language_model

PROMPTS = ["The quick brown", "A model reads tokens, and a", "fox"]
CHAT = [{"role": "user", "content": "The lazy dog"}]
SMALL = {"max_batch_size": 2, "max_length": 64}


@pytest.fixture(scope="module")
def engine(preset):
    with ServingEngine(preset, name="deepseek", **SMALL) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(preset):
    return CausalLM.from_preset(preset)


def continue_greedily(model, prompt, number=8):
    return model.generate(prompt, max_new_tokens=number, strip_prompt=True)


def test_the_cache_has_few_sizes_up_to_the_largest():
    assert make_sizes(1, 10) == [1, 4, 10]
    assert make_sizes(1024, 16_384) == [1024, 4096, 16_384]
    assert make_sizes(1024, 100) == [100]


def test_texts_at_the_same_time_are_those_that_the_model_generates_alone(engine, model):
    answers = [engine.text(prompt, max_tokens=8, temperature=0) for prompt in PROMPTS]
    texts = [answer.result(60).text for answer in answers]
    assert texts == [continue_greedily(model, prompt) for prompt in PROMPTS]


def test_messages_are_formatted_by_the_chat_template(engine, model):
    answer = engine.text(CHAT, max_tokens=8, temperature=0)
    prompt = "<s><|user|>The lazy dog<|assistant|>"
    tokens = model.tokenizer.tokenize(prompt, add_special_tokens=False)
    expected = model.generate(tokens, max_new_tokens=8, strip_prompt=True)
    (choice,) = answer.result(60).choices
    assert list(choice.token_ids) == list(expected)
    assert answer.num_prompt_tokens == len(tokens)


def test_pieces_come_in_an_event_loop_too(engine, model):
    async def read():
        answer = engine.text(PROMPTS[0], max_tokens=8, temperature=0)
        return [piece async for piece in answer]

    pieces = asyncio.run(read())
    assert "".join(piece.text for piece in pieces) == continue_greedily(model, PROMPTS[0])
    assert [piece.finish_reason for piece in pieces] == [None] * 7 + ["length"]


def test_nothing_compiles_after_the_warm_up(engine):
    before = engine.find_text().engine.statistics().num_compilations
    settings = [{}, {"temperature": 0}, {"top_k": 3, "logprobs": True}, {"presence_penalty": 1}]
    answers = [
        engine.text("fox " * number, max_tokens=4, ignore_eos=True, **setting)
        for number, setting in enumerate(settings, start=1)
    ]
    assert [len(answer.result(60).choices[0].token_ids) for answer in answers] == [4] * 4
    assert engine.find_text().engine.statistics().num_compilations == before > 0


def test_the_live_line_counts_tokens(engine):
    reader = LiveStatisticsReader(engine, iter([100.0, 102.0]).__next__)
    engine.text("fox", max_tokens=8, ignore_eos=True).result(60)
    statistics = reader.read()
    assert (statistics.tokens_per_second, statistics.running_answers) == (4.0, 0)


def test_a_request_is_in_flight_until_its_answer_is_sent(engine):
    trace, sampling = RequestTrace("openai", "chat"), SamplingOptions(max_tokens=2)
    for _ in range(2):  # Two prompts of one request.
        answer, version = engine.dispatch_text(lambda _: "fox", sampling, trace=trace)
        answer.result(60)
    assert (trace.model, trace.version) == ("deepseek", str(version.number))
    assert engine.monitor.arrivals()["deepseek"].in_flight == 1
    engine.monitor.end(trace, 200)
    assert engine.monitor.arrivals()["deepseek"].in_flight == 0
    assert engine.monitor.arrivals()["deepseek"].total == 1


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 64}, "max_tokens"), ({"n": 129}, "n")],
)
def test_a_wrong_setting_is_refused_by_its_name(engine, settings, field):
    with pytest.raises(InvalidFieldError) as raised:
        engine.text("fox", **settings)
    assert raised.value.field == field


def test_an_unknown_setting_is_refused_with_the_nearest(engine):
    with pytest.raises(InvalidInputError, match="did you mean 'temperature'"):
        engine.text("fox", temprature=1)


def test_tensors_to_a_language_model_are_refused_with_the_route_for_texts(engine):
    for call in (lambda: engine.predict([[1, 2]]), engine.statistics):
        with pytest.raises(InvalidInputError, match=r"takes no tensors\. .*/v1/chat/completions"):
            call()


def test_a_text_to_a_model_of_tensors_is_refused():
    with ServingEngine(Doubler()) as engine:
        with pytest.raises(InvalidInputError, match=r"no language model .*takes tensors \(x"):
            engine.text("fox")
        with pytest.raises(ModelNotFoundError, match="no model 'other'"):
            engine.text("fox", model="other")


def test_options_of_tensors_are_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for options in ({"isolated": True}, {"cache_entries": 3}, {"batch_size": 4}, {"replicas": 2}):
        (name,) = options
        with pytest.raises(InvalidInputError, match=f"Received {name}=.* a language model"):
            ServingEngine(tmp_path, **options)
    for options in ({"max_length": 64}, {"batch_invariant": True}, {"weights": "int8"}):
        (name,) = options
        with pytest.raises(InvalidInputError, match=f"Received {name}=.* no language model"):
            ServingEngine(Doubler(), **options)


def test_a_model_without_a_tokenizer_is_refused(preset, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in preset.iterdir():
        if not path.name.startswith("tokenizer"):
            (bare / path.name).symlink_to(path)
    with pytest.raises(InvalidInputError, match=r"bare' has no `tokenizer\.json`"):
        ServingEngine(bare)
    live = CausalLM.from_preset(bare)
    with pytest.raises(InvalidInputError, match="`tokenizer` of the language model is None"):
        ServingEngine(live)
    # Its logits are served as the error says.
    model = keras.Model(live.inputs, live.outputs)
    with ServingEngine(model, warm_up=False, max_batch_size=1) as engine:
        inputs = {"token_ids": [[1, 2, 3]], "padding_mask": [[1, 1, 1]]}
        assert engine.predict(inputs).shape == (1, 3, 320)


def test_more_tokens_than_the_model_takes_are_refused(preset):
    with pytest.raises(InvalidInputError, match=r"max_length=2000 .* at most 1024 tokens"):
        ServingEngine(preset, max_length=2000)


def test_a_cache_that_no_memory_holds_is_refused_before_it_is_made(tmp_path):
    model = write_language_model(tmp_path, max_length=None)
    with pytest.raises(InvalidInputError, match=r"16 answers of 100000000 .* \(--max-length\)"):
        ServingEngine(model, max_length=10**8)


def test_a_live_model_is_served_and_the_log_says_how_much_is_compiled(model, caplog):
    with caplog.at_level(logging.INFO), ServingEngine(model, **SMALL) as engine:
        assert re.search(r"The language model 'model' warms up (\d+) of \1 steps", caplog.text)
        answer = engine.text(PROMPTS[2], max_tokens=4, temperature=0)
        assert answer.result(60).text == continue_greedily(model, PROMPTS[2], 4)


def test_an_answer_ends_on_the_version_that_is_replaced_meanwhile(preset, tmp_path):
    """Requests go to a version until the new one is warm, and none is lost."""
    other = write_language_model(tmp_path / "other", seed=1)
    expected = {
        continue_greedily(CausalLM.from_preset(preset), PROMPTS[0]),
        continue_greedily(other, PROMPTS[0]),
    }
    texts, has_loaded = [], threading.Event()
    with ServingEngine(preset, name="deepseek", **SMALL) as engine:

        def ask():
            while not has_loaded.is_set():
                answer = engine.text(PROMPTS[0], max_tokens=8, temperature=0)
                texts.append(answer.result(60).text)

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        first = weakref.ref(engine.find_text())
        running = engine.text(PROMPTS[1], max_tokens=40, temperature=0, ignore_eos=True)
        engine.load(tmp_path / "other")
        assert len(running.result(0).choices[0].token_ids) == 40
        has_loaded.set()
        for asker in askers:
            asker.join()
        del running
        gc.collect()
        assert first() is None  # The memory of its model is free.
        assert engine.find_text().number == 2
        answer = engine.text(PROMPTS[0], max_tokens=8, temperature=0)
        assert answer.result(60).text == continue_greedily(other, PROMPTS[0])
    assert set(texts) == expected


def test_the_newest_version_in_a_folder_is_served_and_a_removed_model_is_gone(preset, tmp_path):
    (tmp_path / "3").symlink_to(preset)
    with ServingEngine(tmp_path, name="deepseek", **SMALL) as engine:
        assert engine.find_text().number == 3
        assert len(engine.text("fox", max_tokens=2).result(60).choices) == 1
        engine.unload("deepseek")
        with pytest.raises(ModelNotFoundError):
            engine.text("fox", model="deepseek")
    with pytest.raises(ClosedError):
        engine.text("fox")


def test_a_model_of_tensors_and_a_language_model_are_served_side_by_side(preset):
    with ServingEngine(Doubler(), max_concurrent_batches=1) as engine:
        engine.load(preset, name="deepseek", options=ModelOptions(**SMALL))
        answer = engine.text("fox", model="deepseek", max_tokens=2)
        assert engine.predict([[1, 2]]).tolist() == [[2, 4]]
        assert answer.result(60).num_tokens == 2


def test_requests_and_answers_are_logged_in_the_form_of_openai(preset, model, tmp_path):
    log = tmp_path / "requests"
    with ServingEngine(preset, name="deepseek", log_requests=log, sample=1, **SMALL) as engine:
        result = engine.text(CHAT, max_tokens=4, temperature=0).result(60)
        engine.text("fox", max_tokens=2).result(60)
        engine.text("fox", max_tokens=60, ignore_eos=True).cancel()
    chat, completion, cancelled = map(json.loads, log.read_text().splitlines())
    assert chat["request"] == {"messages": CHAT, "max_tokens": 4, "temperature": 0}
    assert (chat["model"], chat["version"]) == ("deepseek", 1)
    assert chat["response"] == {
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": result.text},
            }
        ],
        "usage": {
            "prompt_tokens": result.num_prompt_tokens,
            "completion_tokens": 4,
            "total_tokens": result.num_prompt_tokens + 4,
        },
    }
    assert completion["request"]["prompt"] == "fox"
    assert completion["response"]["choices"][0].keys() == {"index", "finish_reason", "text"}
    assert cancelled["error"] == "RequestCancelledError"
