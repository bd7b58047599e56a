import dataclasses

from keras_deepseek.inference.batching.batch import BatchDecision
from keras_deepseek.inference.batching.batch_totals import NUM_DECISIONS, BatchTotals

NOW = {"waiting_rows": 4, "queue_age": 0.5, "overhead": 0.1, "per_row": 0.01, "replicas": 2}


def test_batches_are_added_up():
    totals = BatchTotals()
    for reason, rows in (("full", 8), ("idle", 3), ("full", 8)):
        totals.add(BatchDecision(reason, rows, 8 - rows, 0.25, 0.5))
    statistics = totals.statistics(**NOW)
    assert (statistics.batches, statistics.rows, statistics.padded_rows) == (3, 19, 5)
    assert (statistics.busy_seconds, statistics.reasons) == (1.5, {"full": 2, "idle": 1})
    assert (statistics.batch_rows.count, statistics.batch_rows.sum) == (3, 19)
    assert (statistics.queue_ages.sum, statistics.batch_seconds.sum) == (0.75, 1.5)
    fields = dataclasses.asdict(statistics)
    assert {name: fields[name] for name in NOW} == NOW


def test_what_was_told_does_not_change_with_what_comes():
    totals = BatchTotals()
    first_statistics = totals.statistics(**NOW)
    totals.add(BatchDecision("idle", 1, 0, 0.0, 0.1))
    assert (
        first_statistics.reasons,
        first_statistics.batch_rows.count,
        first_statistics.decisions,
    ) == ({}, 0, ())


def test_the_last_decisions_alone_are_kept():
    totals = BatchTotals()
    for number in range(NUM_DECISIONS + 3):
        totals.add(BatchDecision("idle", number, 0, 0.0, 0.1))
    statistics = totals.statistics(**NOW)
    assert statistics.decisions[0].rows == 3
    assert len(statistics.decisions) == NUM_DECISIONS
