"""The answers of a real model to many requests at once, beside `generate` of each prompt alone."""

import random

import pytest

from keras_deepseek.inference.errors import RequestCancelledError
from keras_deepseek.inference.text.sampling import SamplingOptions
from keras_deepseek.inference.text.text_engine import TextEngine
from keras_deepseek.models.generation.row_steps import RowSteps
from tests.models.generation.row_steps_test import make_model

CHUNK_SIZE = 8


class NumberTokenizer:
    """A tokenizer whose text of a token is its number."""

    stop_token_ids = ()
    most_bytes_per_token = None

    def detokenize(self, token_ids, *, skip_special_tokens=True):
        return "".join(map(self.push, token_ids))

    def stream(self, *, skip_special_tokens=True):
        return self

    def push(self, token_id):
        return f"{token_id} "

    def finish(self):
        return ""


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
    engine = TextEngine(
        RowSteps(model, chunk_size=CHUNK_SIZE),
        NumberTokenizer(),
        shapes=shapes,
        chunk_size=CHUNK_SIZE,
        max_waiting=4 * number,
    )
    engine.start()
    requests = []
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
    assert engine.close()
