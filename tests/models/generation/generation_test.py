import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.sampler import Sampler
from tests.oracles.sampling import (
    bound_chi_squared,
    compute_chi_squared,
    compute_distribution,
    softmax,
)
from tests.oracles.small_language_model import (
    WordTokenizer,
    compute_logits,
    generate_greedily,
    make_small_model,
)

PROMPTS = [[5, 6, 7, 8, 9], [11], [3, 4, 3]]


@pytest.fixture(scope="module")
def model():
    return make_small_model()


def test_greedy_is_what_whole_calls_choose(model):
    expected = [generate_greedily(model, prompt, 6) for prompt in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=6) == expected
    assert model.generate(PROMPTS[1], max_new_tokens=6) == expected[1]
    assert len({tuple(row[-6:]) for row in expected}) == 3  # Else the prompts had no say.


@pytest.mark.torch_alone
def test_prompts_as_arrays_and_without_them_in_the_output(model):
    prompts = np.asarray([[5, 6], [7, 8]])
    expected = [generate_greedily(model, list(prompt), 4)[2:] for prompt in prompts.tolist()]
    assert model.generate(prompts, max_new_tokens=4, strip_prompt=True) == expected


def test_a_row_is_at_most_as_long_as_asked(model):
    rows = model.generate(PROMPTS, 6)
    assert [len(row) for row in rows] == [6, 6, 6]
    assert [len(row) for row in model.generate(PROMPTS, 6, max_new_tokens=2)] == [6, 3, 5]


def test_stop_tokens_end_a_row(model):
    expected = generate_greedily(model, PROMPTS[0], 8)[5:]
    stop = expected[3]
    end = expected.index(stop) + 1
    rows = model.generate(
        [PROMPTS[0]] * 2, max_new_tokens=8, stop_token_ids=[[stop, 49], []], strip_prompt=True
    )
    assert rows == [expected[:end], expected]


@pytest.mark.torch_alone
def test_the_same_seed_gives_the_same_tokens(model):
    sampler = Sampler(1.0, top_p=0.95)
    first = model.generate(PROMPTS, max_new_tokens=6, sampler=sampler, seed=3)
    assert model.generate(PROMPTS, max_new_tokens=6, sampler=sampler, seed=3) == first
    assert model.generate(PROMPTS, max_new_tokens=6, sampler=sampler, seed=4) != first

    assert model.generate(PROMPTS[:1], max_new_tokens=6, sampler=sampler, seed=3) == first[:1]
    without = [model.generate(PROMPTS, max_new_tokens=6, sampler="random") for _ in range(2)]
    assert without[0] != without[1]


@pytest.mark.torch_alone
def test_at_a_low_temperature_only_the_likeliest_are_drawn(model):
    expected = model.generate(PROMPTS[:1], max_new_tokens=20)
    for temperature in (1e-12, 1e-30):
        sampler = Sampler(temperature)
        texts = model.generate(PROMPTS[:1], max_new_tokens=20, sampler=sampler, seed=2)
        assert texts == expected


def test_without_a_seed_the_global_one_of_keras_says_the_tokens(model):
    sampler = Sampler(temperature=1.5)
    texts = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        texts.append([model.generate(PROMPTS, max_new_tokens=6, sampler=sampler) for _ in range(2)])
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]


@pytest.mark.torch_alone
def test_tokens_are_drawn_from_the_models_own_distribution(model):
    sampler, number = Sampler(0.8, top_k=6, repetition_penalty=1.3), 3000
    tokens = model.generate([PROMPTS[2]] * number, max_new_tokens=2, sampler=sampler, seed=0)
    seconds = [row[4] for row in tokens if row[3] == np.bincount([r[3] for r in tokens]).argmax()]
    first = compute_distribution(compute_logits(model, PROMPTS[2]), sampler, PROMPTS[2])
    counts = np.bincount([row[3] for row in tokens], minlength=50)
    statistic, degrees = compute_chi_squared(counts, first)
    assert statistic < bound_chi_squared(degrees)
    prompt = [*PROMPTS[2], int(counts.argmax())]
    second = compute_distribution(compute_logits(model, prompt), sampler, prompt)
    statistic, degrees = compute_chi_squared(np.bincount(seconds, minlength=50), second)
    assert statistic < bound_chi_squared(degrees)


@pytest.mark.torch_alone
def test_log_probabilities_are_the_models_own(model):
    tokens, logs = model.generate(
        PROMPTS[0],
        max_new_tokens=3,
        sampler=Sampler(0.5, top_k=2),
        seed=1,
        return_log_probabilities=True,
    )
    expected = [
        np.log(softmax(compute_logits(model, tokens[:position]))[tokens[position]])
        for position in range(5, 8)
    ]
    np.testing.assert_allclose(logs, expected, rtol=1e-3, atol=1e-4)
    _, several = model.generate(PROMPTS, max_new_tokens=2, return_log_probabilities=True)
    assert [row.shape for row in several] == [(2,)] * 3


def test_a_change_of_the_weights_is_seen():
    model = make_small_model()
    old_texts = model.generate(PROMPTS, max_new_tokens=5)
    other = make_small_model(seed=1)
    model.set_weights(other.get_weights())
    new_texts = model.generate(PROMPTS, max_new_tokens=5)
    assert new_texts != old_texts
    assert new_texts == [generate_greedily(model, prompt, 5) for prompt in PROMPTS]


def test_a_stream_gives_what_generate_returns(model):
    whole = model.generate(PROMPTS[0], max_new_tokens=6, strip_prompt=True)
    assert list(model.stream(PROMPTS[0], max_new_tokens=6)) == whole
    rows = model.generate(PROMPTS, 8, strip_prompt=True)
    steps = list(model.stream(PROMPTS, 8))
    assert [[step[row] for step in steps if step[row] is not None] for row in range(3)] == rows
    assert steps[-1][0] is None


@pytest.fixture
def talking(model):
    model.tokenizer = WordTokenizer(end_token_id=60)
    yield model
    model.tokenizer = None


def test_text_comes_back_as_text(talking):
    tokens = generate_greedily(talking, WordTokenizer().tokenize("hi"), 9)[2:]
    text = WordTokenizer().detokenize(tokens)
    assert talking.generate("hi", max_new_tokens=9) == "hi" + text
    assert talking.generate(["hi"], max_new_tokens=9, strip_prompt=True) == [text]
    assert "".join(talking.stream("hi", max_new_tokens=9)) == text


def test_text_ends_before_the_end_token(talking):
    tokens = generate_greedily(talking, WordTokenizer().tokenize("hi"), 9)[2:]
    talking.tokenizer = WordTokenizer(end_token_id=tokens[4])
    text = WordTokenizer().detokenize(tokens[: tokens.index(tokens[4])])
    assert talking.generate("hi", max_new_tokens=9, strip_prompt=True) == text
    assert "".join(talking.stream("hi", max_new_tokens=9)) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": [1] * 600}, "A prompt has 600 tokens, and the model's context is 600"),
        ({"inputs": [1, 50]}, "the token id 50, and the model's vocabulary has only 50"),
        ({"inputs": [1], "seed": -1}, "`seed` must be an integer of at least 0"),
        ({"inputs": [1], "sampler": 3}, "Unknown sampler 3"),
        ({"inputs": "text"}, "has no tokenizer"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_what_does_not_fit_is_said_before_anything_runs(model, method, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        getattr(model, method)(**arguments)


def test_a_damaged_model_is_told():
    model = make_small_model()
    norm = model.backbone.final_norm
    norm.set_weights([np.full_like(weight, np.nan) for weight in norm.get_weights()])
    with pytest.raises(InvalidInputError, match="logits for prompt 0 are not finite"):
        model.generate([1], max_new_tokens=2)


@pytest.mark.torch_alone
def test_half_precision_generates(monkeypatch):
    keras.config.set_dtype_policy("bfloat16")
    try:
        tokens = make_small_model().generate(PROMPTS, max_new_tokens=3, sampler="random", seed=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert [len(row) for row in tokens] == [8, 4, 6]
