import types

import pytest

from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.fake_row_model import FakeRowModel, start_engine

prometheus_parser = pytest.importorskip("prometheus_client.parser")


@pytest.fixture
def model():
    return FakeRowModel(lambda prompt, answer, uniform: 65)


@pytest.fixture
def version(model):
    """A version of a model whose answers are all `A`: 2 rows of 32 tokens."""
    engine = start_engine(model, shapes=[(1, 32), (2, 32)], chunk_size=8)
    yield types.SimpleNamespace(name="deepseek", number=1, engine=engine)
    model.release()
    engine.close(60)


def read(*versions):
    """Returns the values of all samples by name and by the values of the labels, sorted by name."""
    from prometheus_client.exposition import generate_latest

    from keras_deepseek.inference.server.text_metrics import collect_text_metrics

    families = types.SimpleNamespace(collect=lambda: collect_text_metrics(versions))
    text = generate_latest(families).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in prometheus_parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def ask(version, prompt="ten bytes.", **settings):
    return version.engine.submit(prompt, SamplingOptions(**settings))


def test_tokens_and_times_are_counted_under_both_names(version):
    ask(version, max_tokens=4).result(60)
    ask(version, stop=["AA"]).result(60)
    values = read(version)
    ours, vllm = ("deepseek", "1"), ("deepseek",)
    for name, labels in (("keras_deepseek_text_", ours), ("vllm:", vllm)):
        assert values[f"{name}prompt_tokens_total", *labels] == 20
    assert values["keras_deepseek_text_generated_tokens_total", *ours] == 6
    assert values["vllm:generation_tokens_total", *vllm] == 6
    assert values["keras_deepseek_text_answers_total", "deepseek", "length", "1"] == 1
    assert values["vllm:request_success_total", "length", "deepseek"] == 1
    assert values["vllm:request_success_total", "stop", "deepseek"] == 1
    assert values["vllm:request_success_total", "abort", "deepseek"] == 0
    # A prompt of two chunks of 0.1 s; 4 later tokens, 0.045 s each.
    assert values["vllm:time_to_first_token_seconds_count", *vllm] == 2
    assert values["vllm:time_to_first_token_seconds_sum", *vllm] == pytest.approx(0.4)
    assert values["vllm:inter_token_latency_seconds_count", *vllm] == 4
    assert values["vllm:inter_token_latency_seconds_sum", *vllm] == pytest.approx(4 * 0.045)
    assert values["vllm:e2e_request_latency_seconds_sum", *vllm] == pytest.approx(0.4 + 4 * 0.045)
    assert values["keras_deepseek_text_first_token_seconds_sum", *ours] == pytest.approx(0.4)


def test_what_runs_and_waits_now_is_seen(version, model):
    model.hold("decode", 2)
    running = ask(version, prompt="a", max_tokens=8)
    assert model.is_held.wait(60)
    waiting = [ask(version, prompt="b") for _ in range(3)]
    values = read(version)
    assert values["vllm:num_requests_running", "deepseek"] == 2  # It takes the second row at once.
    assert values["vllm:num_requests_waiting", "deepseek"] == 2
    assert values["keras_deepseek_text_requests_reading", "deepseek", "1"] == 1
    assert values["vllm:kv_cache_usage_perc", "deepseek"] == 3 / 64
    assert values["keras_deepseek_text_cache_rows", "deepseek", "1"] == 1
    for answer in (running, *waiting):
        answer.cancel()
    values = read(version)
    assert values["vllm:num_requests_running", "deepseek"] == 0
    assert values["vllm:request_success_total", "abort", "deepseek"] == 4


def test_versions_of_a_model_are_summed_under_the_names_of_vllm(version):
    ask(version, max_tokens=4).result(60)
    other = types.SimpleNamespace(name="deepseek", number=2, engine=version.engine)
    values = read(version, other)
    assert values["keras_deepseek_text_generated_tokens_total", "deepseek", "2"] == 4
    assert values["vllm:generation_tokens_total", "deepseek"] == 8
    assert values["vllm:time_to_first_token_seconds_count", "deepseek"] == 2


def test_without_a_language_model_there_is_no_family():
    assert read() == {}
