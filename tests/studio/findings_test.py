"""Findings: the right one for each fault, and none for a healthy run."""

import numpy as np
import pytest

from keras_deepseek.studio.curve_findings import (
    Thresholds,
    find_leap,
    find_not_finite,
    find_overfitting,
    find_plateau,
    find_spike,
)
from keras_deepseek.studio.findings import (
    find_bottleneck,
    find_dead_layers,
    find_end,
    find_expensive_layer,
)
from keras_deepseek.studio.store import Store
from tests.oracles.run_records import invent

NONE = (np.empty(0), np.empty(0))


def faults_of(path):
    store = Store(path)
    store.refresh()
    return [finding for finding in store.findings(path.stem) if finding["level"] != "info"]


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        ("diverging", "divergence", "grown since step"),
        ("nan", "not_finite", "from step 561 on"),
        ("spike", "spike", "jumped at step"),
        ("plateau", "plateau", "has not fallen"),
        ("overfitting", "overfitting", "overfits since step"),
        ("frozen", "frozen", "block_2/attention and block_2/feedforward"),
        ("starved", "starved_expert", "Expert 3 of block_1/experts"),
        ("waiting", "data_wait", "42 %"),
        ("killed", "died", "died without a word after step 800"),
        ("failed", "failed", "OutOfMemoryError"),
    ],
)
def test_a_fault_is_found_and_nothing_else(tmp_path, fault, name, words):
    invent(tmp_path / "run.sqlite", fault, steps=800, begin=1e9, documents=False)
    (finding,) = faults_of(tmp_path / "run.sqlite")
    assert finding["name"] == name
    assert words in finding["sentence"]
    assert finding["advice"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("steps", "rate"), [(30, 3e-3), (800, 9e-3), (2000, 1e-3)])
def test_nothing_is_found_in_a_healthy_run(tmp_path, seed, steps, rate):
    invent(tmp_path / "run.sqlite", steps=steps, seed=seed, rate=rate, begin=1e9, documents=False)
    assert faults_of(tmp_path / "run.sqlite") == []


def test_a_profile_names_its_most_expensive_layer(runs):
    store = Store(runs)
    store.refresh()
    compute, layer = store.findings("healthy")
    assert {(finding["level"], finding["view"]) for finding in (compute, layer)} == {
        ("info", "performance")
    }
    assert compute["sentence"] == "The device computes for 94 % of the step."
    assert "block_1/experts takes 14 % of the step" in layer["sentence"]


def test_the_long_message_of_a_framework_is_cut():
    failure = "ValueError: shapes differ\n" + "at op 7\n" * 500 + ". Detected at " + "node " * 500
    (finding,) = find_end("failed", {"failure": failure}, np.arange(3), None)
    assert finding.sentence.startswith(
        "The run failed after step 2: ValueError: shapes differ at op"
    )
    assert max(len(finding.sentence), len(finding.advice)) < 400


def test_the_model_itself_is_no_expensive_layer():
    layers = {"model": [0.5, 0.2], "model/head": [0.1, 0.2]}
    profile = {"parts": {"forward": 0.6, "backward": 0.4}, "layers": layers, "model": "model"}
    (finding,) = find_expensive_layer(profile)
    assert finding.sentence == "model/head takes 30 % of the step."
    for layers in ({"model": [0.6, 0.4]}, {"model/head": [0.01, 0.02]}):  # None is worth a word.
        assert not list(find_expensive_layer({**profile, "layers": layers}))


def test_the_first_value_that_is_not_finite_is_named():
    steps = np.arange(1, 6)
    (finding,) = find_not_finite((steps, np.array([1, 2, np.inf, 4, 5])), NONE, NONE)
    assert finding.step == 3
    (finding,) = find_not_finite((steps, np.full(5, np.nan)), NONE, NONE)
    assert "inputs and labels" in finding.advice


def test_a_spike_is_named_by_its_own_step_among_many():
    values = 1 + 0.1 * np.random.default_rng(0).random(50_000)
    values[33_333] = 7.0
    (finding,) = find_spike((np.arange(50_000), values), Thresholds.spike)
    assert finding.step == 33_333


def test_a_rate_that_is_far_too_high_is_named():
    values = np.concatenate([[2.3, 8e6, 900.0], np.full(300, 2.4)])  # Seen with digits and Adam(3).
    (finding,) = find_leap((np.arange(1, 304), values), Thresholds.leap)
    assert finding.step == 2
    assert "learning rate is too high" in finding.sentence


@pytest.mark.parametrize("find", [find_spike, find_leap])
@pytest.mark.parametrize("steps", [60, 300, 3000])
def test_the_losses_of_single_rows_have_long_tails(find, steps):
    random, learnt = np.random.default_rng(3), np.minimum(1, 2 * np.arange(steps) / steps)
    losses = np.logaddexp(0, random.normal(0, 3, steps) - 9 * learnt)  # Of margins that grow.
    losses[0] = 0.01  # An easy row.
    assert not list(find((np.arange(steps), losses), 2.0))


def test_a_jump_that_lasts_is_a_spike_each_time():
    losses = 2 + 0.1 * np.random.default_rng(0).random(1000)
    for start in (300, 600, 900):
        losses[start : start + 8] += 4 * np.exp(-np.arange(8) / 3)
    (finding,) = find_spike((np.arange(1000), losses), Thresholds.spike)
    assert finding.step in (300, 600, 900)


def test_a_layer_that_only_decays_is_frozen():
    gradients = np.array([[1.0] * 20, [0.0] * 20, [2.0] * 20])
    (finding,) = find_dead_layers(["a", "b", "c"], range(20), gradients, np.full((3, 20), 1e-3))
    assert (finding.name, finding.sentence[:24]) == ("frozen", "Nothing is learnt in b: ")


@pytest.mark.parametrize(
    ("validation", "training", "is_found"),
    [
        ([2, 1, 0.5, 0.45, 0.46, 0.47, 0.48, 0.48], 0.01, True),  # It stays far above.
        ([2, 1, 0.06, 0.04, 0.05, 0.04, 0.05, 0.05], 0.01, False),  # Both are small.
        ([2, 1, 0.5, 0.6, 0.5, 0.62, 0.5, 0.61], 0.4, False),  # It only jitters.
    ],
)
def test_overfitting_is_a_gap_or_a_rise(validation, training, is_found):
    steps = np.arange(1, 9) * 50
    loss = steps, np.geomspace(2.3, training, 8)
    findings = list(find_overfitting(loss, (steps, np.array(validation)), Thresholds.overfitting))
    assert bool(findings) == is_found


def test_a_loss_with_a_floor_is_no_plateau():
    losses = 1.5 + 0.8 * np.exp(-np.arange(1000) / 50)
    assert not list(find_plateau((np.arange(1000), losses), Thresholds.plateau))


def test_a_short_wait_in_a_short_step_is_none():
    waits, seconds = np.full(50, 1e-4), np.full(50, 4e-4)
    assert not list(find_bottleneck(None, waits, seconds, Thresholds()))


def test_a_loss_that_has_fallen_far_may_rest():
    steps = np.arange(1000)
    assert not list(find_plateau((steps, 0.1 + 3 * np.exp(-steps / 50)), Thresholds.plateau))


@pytest.mark.parametrize(
    ("parts", "name"),
    [({"idle": 0.5}, "overhead"), ({"data_wait": 0.5}, "data_wait"), ({"idle": 0.1}, "compute")],
)
def test_a_profile_says_what_holds_a_step_up(parts, name):
    profile = {"parts": {"forward": 0.5, **parts}}
    findings = list(find_bottleneck(profile, np.empty(0), np.empty(0), Thresholds()))
    assert [finding.name for finding in findings] == [name]
