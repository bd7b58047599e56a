"""Findings of Studio on real trainings, with a fault and without: `tox -e examples`.

With `-s`, it prints a row of a table for each training.
"""

import keras
import pytest

from example_tests import studio_runs as runs
from keras_deepseek.studio.store import Store

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables"),
]

HEALTHY = (
    *(runs.digits_network, runs.many_epochs, runs.one_epoch, runs.bare_fit, runs.recurrent),
    *(runs.language_model, runs.classifier_of_text, runs.recommender, runs.balanced_experts),
    *(runs.small_batches, runs.single_rows, runs.dropout_noise, runs.noisy_labels),
    *(runs.warm_up, runs.half_precision, runs.accumulated, runs.momentum),
    *(runs.regression, runs.autoencoder, runs.frozen_backbone),
)
DIES = ("frozen", "vanishing")
"""A rate that is far too high leaves units that never answer again."""
FAULTS = {
    runs.rate_too_high: ("leap", *DIES),
    runs.rate_too_high_for_plain_descent: ("leap", *DIES),
    runs.rate_a_little_too_high: ("leap", *DIES),
    runs.rate_that_grows: ("divergence", *DIES),
    runs.rate_too_low: ("plateau",),
    runs.labels_of_other_rows: ("plateau",),
    runs.nan_labels: ("failed", "not_finite"),
    runs.nan_labels_in_a_bare_fit: ("not_finite",),
    runs.nan_label_of_one_row: ("not_finite",),
    runs.sleeping_generator: ("data_wait",),
    runs.sleeping_dataset: ("data_wait",),
    runs.frozen_block: ("frozen",),
    runs.frozen_block_with_decay: ("frozen",),
    runs.deep_sigmoids: ("vanishing", "plateau"),
    runs.starved_expert: ("starved_expert",),
    runs.overfitting: ("overfitting",),
    runs.overfitting_noisy_labels: ("overfitting",),
}
"""The worst finding of each, which the page shows, and those that may follow from it."""


@pytest.fixture
def find(tmp_path):
    """Returns a function that trains, and returns what the page finds in the run."""

    def find(train):
        keras.utils.set_random_seed(0)
        train(tmp_path / "run.sqlite")
        store = Store(tmp_path)
        store.refresh()
        findings = [finding for finding in store.findings("run") if finding["level"] != "info"]
        sentence = f"; {findings[0]['sentence']}" if findings else ""
        names = [finding["name"] for finding in findings]
        print(f"\n| {keras.backend.backend()} | {train.__name__} | {' '.join(names)}{sentence} |")
        return names

    return find


@pytest.mark.parametrize("train", HEALTHY, ids=lambda train: train.__name__)
def test_nothing_is_found_in_a_healthy_training(find, train):
    assert find(train) == []


@pytest.mark.parametrize("train", FAULTS, ids=lambda train: train.__name__)
def test_the_fault_of_a_training_is_its_worst_finding(find, train):
    worst, *allowed = FAULTS[train]
    first, *later_findings = find(train)
    assert first == worst
    assert set(later_findings) <= set(allowed)
