"""Rows that begin, go on and end by themselves, beside `generate` of each prompt alone."""

import keras
import numpy as np
import pytest

from keras_deepseek import models
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.row_sampling import RowSampling
from keras_deepseek.models.generation.row_steps import RowSteps
from tests.oracles.language_models import perturb

GREEDY = RowSampling(temperature=0.0)
CHUNK = 8


def make_model(family):
    keras.utils.set_random_seed(1)
    config = getattr(models, f"{family}Config").from_preset("tiny")
    return perturb(getattr(models, f"{family}CausalLM")(config))


class Rows:
    """A driver of `RowSteps`: the texts of rows, and their sampling and noise."""

    def __init__(self, steps, rows, slots):
        self.steps, self.rows = steps, [None] * rows
        steps.make(rows, slots)

    def begin(self, row, prompt, sampling=GREEDY, seed=0):
        noise = np.random.default_rng([seed, 0])
        cache = self.steps.begin(len(prompt))
        for start in range(0, len(prompt), CHUNK):
            chunk = prompt[start : start + CHUNK]
            options = {}
            if start + CHUNK >= len(prompt):
                options = {"sampling": sampling, "prompt": prompt, "uniform": noise.random()}
            cache, outputs, _ = self.steps.read(cache, chunk, start, **options)
        token = int(outputs.tokens[0])
        self.steps.place(cache, row, prompt, sampling, token)
        self.rows[row] = text = [[*prompt, token], noise]
        return text[0]

    def decode(self, times=1, waiting=()):
        for _ in range(times):
            is_active = [row is not None and n not in waiting for n, row in enumerate(self.rows)]
            texts = [row[0] if row else [0] for row in self.rows]
            outputs = self.steps.decode(
                [text[-1] for text in texts],
                [len(text) - 1 for text in texts],
                is_active,
                [row[1].random() if row else 0.0 for row in self.rows],
            )
            for text, token, active in zip(texts, outputs.tokens, is_active, strict=True):
                if active:
                    text.append(int(token))
        return outputs

    def resize(self, slots, sources):
        self.steps.resize(slots, sources)
        self.rows = [None if source is None else self.rows[source] for source in sources]


def expect(model, text, prompt):
    new = len(text) - len(prompt)
    assert text == model.generate(prompt, max_new_tokens=new, stop_token_ids=None)


@pytest.mark.parametrize(
    ("family", "slots"),
    [
        pytest.param("DeepSeekV3", (26, 48, 32), marks=pytest.mark.each_backend),
        pytest.param("DeepSeekV2", (26, 48, 32), marks=pytest.mark.nightly),
        pytest.param("DeepSeekV32", (26, 48, 32), marks=pytest.mark.nightly),
        # It has an indexer from 36 slots on.
        pytest.param("DeepSeekV4", (26, 35, 32), marks=pytest.mark.nightly),
        pytest.param("DeepSeekV4", (40, 64, 48), marks=pytest.mark.nightly),
    ],
)
def test_rows_that_join_and_leave_give_the_tokens_of_each_prompt_alone(family, slots):
    model = make_model(family)
    draw = np.random.default_rng(0).integers
    prompts = [draw(1, 200, length).tolist() for length in (5, 24, 16, 19, 3)]
    rows = Rows(RowSteps(model, chunk_size=CHUNK), 2, slots[0])
    first = rows.begin(0, prompts[0])
    rows.decode(3)
    second = rows.begin(1, prompts[1])  # Its staging cache has more slots than the row.
    rows.decode(1)
    rows.resize(slots[1], [1, None, 0, None])
    rows.decode(2)
    third = rows.begin(1, prompts[2])
    rows.decode(4)
    rows.rows[0] = None
    rows.decode(2)
    fourth = rows.begin(0, prompts[3])  # In the place of the one that left.
    rows.decode(2)
    rows.resize(slots[2], [2, 0])  # The third leaves.
    rows.decode(2)
    rows.rows[0] = None
    fifth = rows.begin(0, prompts[4])  # Shorter than the one that left.
    rows.decode(5)
    for prompt, text in zip(prompts, (first, second, third, fourth, fifth), strict=True):
        expect(model, text, prompt)


def test_rows_do_not_grow_where_the_cache_would_hold_other_tensors():
    steps = RowSteps(make_model("DeepSeekV4"), chunk_size=CHUNK)
    steps.make(1, 32)
    with pytest.raises(InvalidInputError, match="32 slots can't be copied into one of 48"):
        steps.resize(48, [0])
