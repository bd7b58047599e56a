"""The answers of a real model to many requests at once, beside `generate` of each prompt alone."""

import contextlib
import random

import keras
import numpy as np
import pytest

from keras_deepseek.inference.errors import RequestCancelledError
from keras_deepseek.inference.text.text_engine import TextEngine
from keras_deepseek.models.generation.row_steps import RowSteps
from keras_deepseek.text.sampling import SamplingOptions
from tests.models.generation.row_steps_test import make_model

CHUNK_SIZE = 8


class NumberTokenizer:
    """A tokenizer whose text of a token is its number."""

    most_bytes_per_token = None

    def detokenize(self, token_ids, *, skip_special_tokens=True):
        return "".join(map(self.push, token_ids))

    def stream(self, *, skip_special_tokens=True):
        return self

    def push(self, token_id):
        return f"{token_id} "

    def finish(self):
        return ""


@contextlib.contextmanager
def open_engine(model, shapes):
    engine = TextEngine(
        RowSteps(model, chunk_size=CHUNK_SIZE),
        NumberTokenizer(),
        shapes=shapes,
        chunk_size=CHUNK_SIZE,
        end_tokens=(),
        max_waiting=2048,
    )
    engine.start()
    yield engine
    assert engine.close()


@pytest.mark.parametrize(
    ("family", "number", "shapes"),
    [
        ("DeepSeekV3", 12, [(3, 40)]),
        *(
            pytest.param(family, 500, shapes, marks=pytest.mark.nightly)
            for family, shapes in {
                "DeepSeekV2": [(1, 32), (4, 32), (4, 64), (8, 128)],
                "DeepSeekV3": [(1, 32), (4, 32), (4, 64), (8, 128)],
                "DeepSeekV32": [(1, 128), (4, 128), (8, 128)],
                "DeepSeekV4": [(1, 128), (4, 128), (8, 128)],
            }.items()
        ),
    ],
)
def test_mixed_requests_get_the_tokens_of_each_prompt_alone(family, number, shapes):
    draw = random.Random(number)
    model = make_model(family)
    num_slots = shapes[-1][1]
    requests = []
    with open_engine(model, shapes) as engine:
        for index in range(number):
            prompt = [draw.randrange(1, 200) for _ in range(draw.randint(1, num_slots - 24))]
            stops = tuple(draw.sample(range(200), 20))
            sampling = SamplingOptions(
                temperature=0, max_tokens=draw.randint(1, 20), stop_token_ids=stops
            )
            answer = engine.submit(prompt, sampling, client=draw.choice("abc"))
            requests.append((prompt, stops, answer))
            if index % 8 == 7:  # Others come when some have begun, and one leaves.
                next(iter(requests[-3][2]))
                requests[-8][2].result()
    num_cancelled = 0
    for prompt, stops, answer in requests:
        try:
            choice = answer.result().choices[0]
        except RequestCancelledError:
            num_cancelled += 1
            continue
        text = model.generate(
            prompt,
            max_new_tokens=answer.requests[0].max_tokens,
            stop_token_ids=list(stops),
            strip_prompt=True,
        )
        assert list(choice.token_ids) == text
        is_stopped = text[-1] in stops
        assert choice.finish_reason == ("stop" if is_stopped else "length")
        assert choice.text == "".join(f"{token} " for token in text[: len(text) - is_stopped])
    assert num_cancelled <= number // 8


@pytest.mark.torch_alone
def test_sampled_answers_do_not_depend_on_those_beside_them():
    draw = random.Random(1)
    requests = []
    for seed in range(16):
        settings = {
            "temperature": draw.uniform(0.2, 2),
            "top_k": draw.choice([None, None, 20]),
            "top_p": draw.choice([1.0, 0.9]),
            "min_p": draw.choice([0.0, 0.05]),
            "repetition_penalty": draw.choice([1.0, 1.0, 1.3]),
            "frequency_penalty": draw.choice([0.0, 0.0, 0.5]),
            "logit_bias": draw.choice([None, {7: 3.0}]),
            "logprobs": draw.choice([None, None, 3]),
        }
        prompt = [draw.randrange(1, 200) for _ in range(draw.randint(1, 20))]
        sampling = SamplingOptions(seed=seed, n=2, max_tokens=draw.randint(1, 12), **settings)
        requests.append((prompt, sampling))
    with open_engine(make_model("DeepSeekV3"), [(4, 40)]) as engine:
        answers = [engine.submit(*request) for request in requests]
        for request, answer in zip(requests, answers, strict=True):
            alone = engine.submit(*request).result()
            assert [choice.token_ids for choice in answer.result().choices] == [
                choice.token_ids for choice in alone.choices
            ]
            assert alone.choices[0] != alone.choices[1] or alone.num_tokens < 4


@pytest.mark.torch_alone
def test_log_probabilities_are_those_of_a_plain_call_of_the_model():
    model = make_model("DeepSeekV3")
    prompt = [*range(5, 16)]
    with open_engine(model, [(2, 24)]) as engine:
        sampling = SamplingOptions(temperature=1, seed=0, max_tokens=4, logprobs=4, top_k=50)
        result = engine.submit(prompt, sampling, has_echo=True).result()
    details = [*result.prompt_details, *result.choices[0].tokens]
    tokens = [detail.token_id for detail in details]
    assert tokens == [*prompt, *result.choices[0].token_ids]
    token_ids = np.array([tokens])
    logits = model({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)})[0]
    logits = keras.ops.convert_to_numpy(logits).astype("float64")
    expected = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    for row, detail in zip(expected[:-1], details[1:], strict=True):
        assert abs(detail.log_probability - row[detail.token_id]) < 1e-4
        best = np.argsort(-row)[:4]
        assert [other.token_id for other in detail.alternatives] == best.tolist()
        for other in detail.alternatives:
            assert abs(other.log_probability - row[other.token_id]) < 1e-4
