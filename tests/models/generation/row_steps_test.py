"""Rows that begin, go on and end by themselves, beside `generate` of each prompt alone."""

import keras
import numpy as np
import pytest

from keras_deepseek import models
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.row_steps import RowSteps
from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.language_models import perturb
from tests.oracles.row_driver import CHUNK, GREEDY, RowDriver, drive
from tests.oracles.small_language_model import make_small_model


def make_model(family):
    keras.utils.set_random_seed(1)
    config = getattr(models, f"{family}Config").from_preset("tiny")
    return perturb(getattr(models, f"{family}CausalLM")(config))


def expect(model, row):
    number = len(row.answer)
    expected = model.generate(row.prompt, max_new_tokens=number, stop_token_ids=None)
    assert row.text == expected


@pytest.mark.parametrize(
    ("family", "slots"),
    [
        pytest.param("DeepSeekV3", (26, 48, 32), marks=pytest.mark.torch_alone),
        pytest.param("DeepSeekV2", (26, 48, 32), marks=pytest.mark.nightly),
        pytest.param("DeepSeekV32", (26, 48, 32), marks=pytest.mark.nightly),
        pytest.param("Qwen3", (26, 48, 32), marks=pytest.mark.nightly),
        # It has an indexer from 36 slots on.
        pytest.param("DeepSeekV4", (26, 35, 32), marks=pytest.mark.nightly),
        pytest.param("DeepSeekV4", (40, 64, 48), marks=pytest.mark.nightly),
    ],
)
def test_rows_that_join_and_leave_give_the_tokens_of_each_prompt_alone(family, slots):
    model = make_model(family)
    draw = np.random.default_rng(0).integers
    prompts = [draw(1, 200, length).tolist() for length in (5, 24, 16, 19, 3)]
    rows = drive(model, 2, slots[0])
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
    for row in (first, second, third, fourth, fifth):
        expect(model, row)


@pytest.mark.torch_alone
def test_rows_do_not_grow_where_the_cache_would_hold_other_tensors():
    steps = RowSteps(make_model("DeepSeekV4"), chunk_size=CHUNK)
    steps.make(1, 32)
    assert steps.resizable_slots([16, 32, 48, 64]) == [48, 64]
    with pytest.raises(InvalidInputError, match="32 slots can't be copied into one of 48"):
        steps.resize(48, [0])


def test_the_bytes_of_a_cache_are_known_before_it_is_made():
    model = make_model("DeepSeekV4")
    tensors = [tensor for layer in model.make_cache(3, 48) for tensor in layer.values()]
    num_bytes = sum(keras.ops.convert_to_numpy(tensor).nbytes for tensor in tensors)
    assert RowSteps(model, chunk_size=CHUNK).count_bytes(3, 48) == num_bytes


@pytest.mark.torch_alone
def test_nothing_is_compiled_after_the_warm_up():
    model = make_small_model(vocabulary_size=1100, scale=0.02)
    steps, reports = RowSteps(model, chunk_size=CHUNK), []
    steps.warm_up([(1, 12), (1, 24), (2, 12), (2, 24)], lambda *numbers: reports.append(numbers))
    assert reports == [(number + 1, len(reports)) for number in range(len(reports))]
    number = steps.num_compilations
    assert number > 20
    rows = RowDriver(steps, 1, 12)
    rows.begin(0, [5, 6, 7])
    rows.decode(2)
    rows.resize(24, [0, None])
    rows.begin(1, [3] * 8, SamplingOptions(), has_targets=True)
    rows.decode(2)
    for sampling in (
        SamplingOptions(temperature=0.5, top_p=0.9),  # All are sorted: the logits are about even.
        SamplingOptions(top_k=3),
        SamplingOptions(presence_penalty=1.0),
        SamplingOptions(top_p=0.9, logprobs=3),
    ):
        rows.begin(1, [3, 4, 7] * 5, sampling)
        rows.decode(2)
    rows.begin(0, [5])
    rows.resize(12, [0])
    rows.decode()
    assert steps.num_compilations == number


@pytest.mark.torch_alone
def test_a_batch_invariant_row_has_the_same_bits_beside_any_others():
    keras.utils.set_random_seed(1)
    config = models.DeepSeekV3Config.from_preset("tiny", hidden_dim=128, moe_intermediate_dim=256)
    model = models.DeepSeekV3CausalLM(config)
    steps = RowSteps(model, chunk_size=CHUNK, batch_invariant=True)
    draw = np.random.default_rng(0)
    prompt = draw.integers(1, 200, 11).tolist()
    bits = []
    for index in (2, 2, 7, 0):
        rows = RowDriver(steps, 8, 40)
        for other in range(1, 7):
            if draw.random() < 0.7:
                length = int(draw.integers(1, 20))
                sampling = [SamplingOptions(), SamplingOptions(top_k=9), GREEDY][other % 3]
                rows.begin(other, draw.integers(1, 200, length).tolist(), sampling)
        row = rows.begin(index, prompt, SamplingOptions(logprobs=20), seed=7)
        rows.decode(12)
        names = ("log_probabilities", "top_log_probabilities")
        bits.append([outputs[name].tobytes() for outputs in row.outputs for name in names])
    assert bits[1:] == bits[:1] * 3
    with pytest.raises(InvalidInputError, match="must keep its shape"):
        steps.resize(48, [0])
