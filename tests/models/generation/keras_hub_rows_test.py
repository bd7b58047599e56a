"""KerasHub's language models in rows, beside its own `generate` of each prompt alone."""

import keras
import numpy as np
import pytest

from keras_deepseek.errors import NotSupportedError
from keras_deepseek.models.generation.keras_hub_rows import KerasHubRows
from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.row_driver import GREEDY, RowDriver
from tests.oracles.sampling import softmax

keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")

LENGTH = 80


def make_llama():
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=90,
        num_layers=2,
        num_query_heads=4,
        hidden_dim=32,
        intermediate_dim=48,
        num_key_value_heads=2,
    )
    return keras_hub.models.LlamaCausalLM(backbone=backbone)


def make_gpt2():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=90,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=48,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.GPT2CausalLM(backbone=backbone)


def make(function):
    task = function()
    rng = np.random.default_rng(0)
    for variable in task.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(rng.normal(size=variable.shape) * 0.3)
    return task


def compute_logits(task, tokens):
    """Returns the logits after some tokens, by a call on the whole sequence."""
    padded = np.zeros((2, 1, LENGTH), "int32")
    padded[0, 0, : len(tokens)], padded[1, 0, : len(tokens)] = tokens, 1
    inputs = {"token_ids": padded[0], "padding_mask": padded[1]}
    return task.predict_on_batch(inputs)[0, len(tokens) - 1].astype("float64")


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(make_llama, marks=pytest.mark.torch_alone),
        pytest.param(make_gpt2, marks=pytest.mark.nightly),
    ],
)
def test_rows_of_keras_hub_give_the_tokens_of_each_prompt_alone(function):
    task = make(function)
    steps = KerasHubRows(task)
    rows = RowDriver(steps, 2, 70, 1000)
    draw = np.random.default_rng(0).integers
    prompts = [draw(1, 90, length).tolist() for length in (5, 66, 9)]
    started = [rows.begin(0, prompts[0], has_targets=True)]
    rows.decode(2)
    started.append(rows.begin(1, prompts[1]))
    rows.decode(2)
    rows.resize(75, [1, None])
    started.append(rows.begin(1, prompts[2], SamplingOptions(temperature=0.0, logprobs=2)))
    rows.decode(4)
    assert steps.max_length == (LENGTH if function is make_gpt2 else None)
    for row in started:
        for index, token in enumerate(row.answer):
            logits = compute_logits(task, [*row.prompt, *row.answer[:index]])
            assert token == np.argmax(logits)
            log = row.outputs[index]["log_probabilities"]
            if row is started[2]:
                np.testing.assert_allclose(log, np.log(softmax(logits))[token], atol=1e-4)
    scores = [np.log(softmax(compute_logits(task, prompts[0][:stop]))) for stop in range(1, 5)]
    expected = [score[token] for score, token in zip(scores, prompts[0][1:], strict=True)]
    details = started[0].prompt_outputs[0]
    np.testing.assert_allclose(details.log_probabilities, expected, atol=1e-4)


def test_nothing_of_keras_hub_is_compiled_after_the_warm_up():
    steps = KerasHubRows(make(make_gpt2))
    steps.warm_up([(1, 70)], lambda done, number: None)
    number = steps.num_compilations
    rows = RowDriver(steps, 1, 70, 1000)
    for length in (3, 66):
        rows.begin(0, [5] * length, GREEDY)
        rows.decode(2)
    assert steps.num_compilations == number


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (keras.ops.zeros((1, 2, 7)), "one axis counts them"),
        ((keras.ops.zeros((1, 2, 7)),) * 2, "as one tensor"),
    ],
)
def test_a_cache_of_another_form_is_refused(cache, message):
    task = make_gpt2()
    task._build_cache = lambda token_ids: (None, cache)
    with pytest.raises(NotSupportedError, match=message):
        KerasHubRows(task)


def test_a_task_whose_tokens_see_later_slots_is_refused():
    class Looking(keras_hub.models.GPT2CausalLM):
        def call_with_cache(self, token_ids, cache, cache_update_index):
            logits, hidden, cache = super().call_with_cache(token_ids, cache, cache_update_index)
            return logits + keras.ops.sum(keras.ops.abs(cache)), hidden, cache

    task = make(lambda: Looking(make_gpt2().backbone))
    with pytest.raises(NotSupportedError, match="logits of Looking with a cache differ"):
        KerasHubRows(task)
