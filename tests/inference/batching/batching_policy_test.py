import pytest

from keras_deepseek.inference.batching.batch_time import BatchTime
from keras_deepseek.inference.batching.batcher import batch_buckets
from keras_deepseek.inference.batching.batching_policy import (
    MOMENTS_BETWEEN_LESSONS,
    NUM_MOMENTS,
    AdaptivePolicy,
    FixedPolicy,
)
from tests.oracles.queue_simulation import (
    bursts,
    make_queue,
    poisson,
    returning,
    simulate,
)


def test_a_fixed_rule_counts_from_the_oldest_row_whatever_happens():
    policy = FixedPolicy(8, 0.5)
    policy.begin("idle", 1, 10.0)
    policy.arrive(2, 10.1)
    policy.end(10.2)
    assert policy.plan(oldest=10.0) == (10.5, 8)


CEILING = 32 / 0.012  # Rows a second of the simulated model in full batches.


def nightly(*parameters):
    return [pytest.param(parameter, marks=pytest.mark.nightly) for parameter in parameters]


@pytest.fixture
def policy():
    time = BatchTime()
    for rows in (1, 32):
        time.add(rows, 0.004 + 0.00025 * rows)
    return AdaptivePolicy(batch_buckets("dynamic", 32), time)


def live_through(policy, moments, offsets, start=0.0):
    """Lets a policy see moments of 10 ms in which a row waits and others come after `offsets`."""
    for number in range(moments):
        now = start + 0.01 * number
        policy.begin("idle", 1, now)
        for offset in offsets:
            policy.arrive(1, now + offset)
    return start + 0.01 * moments


def test_it_does_not_wait_before_it_knows_that_somebody_comes(policy):
    policy.begin("idle", 1, 5.0)
    assert policy.plan(oldest=5.0) == (5.0, 0)


def test_it_waits_for_rows_that_always_come_and_no_longer_than_that(policy):
    now = live_through(policy, NUM_MOMENTS, (0.0003, 0.0004))
    policy.begin("idle", 1, now)
    plan = policy.plan(oldest=now)
    assert plan.rows == 3
    assert 0.0004 <= plan.time - now <= 0.001


def test_it_stops_when_nobody_comes_any_more(policy):
    now = live_through(policy, NUM_MOMENTS, (0.0003, 0.0004))
    now = live_through(policy, NUM_MOMENTS + MOMENTS_BETWEEN_LESSONS, (), now)
    policy.begin("idle", 1, now)
    assert policy.plan(oldest=now) == (now, 0)


def test_it_does_not_wait_for_rows_that_come_too_late_to_be_worth_it(policy):
    now = live_through(policy, 2 * NUM_MOMENTS, (0.0039,))
    policy.begin("idle", 1, now)
    assert policy.plan(oldest=now) == (now, 0)


@pytest.mark.parametrize(("rows", "pays"), [(20, True), (16, False)])
def test_rows_that_fill_a_padded_batch_are_worth_a_longer_wait(policy, rows, pays):
    """Apart, 20 and 12 rows take 12 + 8 ms, together 12. Apart, 16 and 12 take 8 + 8 ms."""
    for number in range(NUM_MOMENTS + 1):
        now = 0.02 * number
        policy.begin("freed", rows, now)
        plan = policy.plan(oldest=now)
        policy.arrive(12, now + 0.005)
    assert plan == ((pytest.approx(now + 0.006), rows + 12) if pays else (now, 0))


def test_the_two_occasions_are_learned_apart(policy):
    now = live_through(policy, NUM_MOMENTS, (0.0003, 0.0004))
    policy.begin("freed", 1, now)
    assert policy.plan(oldest=now) == (now, 0)


def test_rows_beyond_a_full_batch_are_not_counted(policy):
    now = live_through(policy, NUM_MOMENTS, [0.0001 + 1e-6 * row for row in range(100)])
    policy.begin("idle", 1, now)
    assert policy.plan(oldest=now).rows <= 1 + 32


@pytest.mark.parametrize("num_clients", [2, 8, *nightly(4, 16, 32)])
def test_clients_that_wait_for_their_answers_share_full_batches(num_clients):
    def run(wait):
        return simulate(make_queue(wait), num_clients=num_clients, think=returning(), seconds=5)

    learned = run(None)
    assert learned.mean_rows > 0.9 * num_clients
    assert run(0.0).mean_rows < 0.6 * num_clients  # Two half-filled batches, for ever.
    assert learned.rate > 1.1 * run(0.0).rate
    assert learned.rate > 0.97 * max(run(wait).rate for wait in (0.001, 0.002, 0.005, 0.010))


def test_one_client_alone_is_never_kept_waiting():
    outcome = simulate(make_queue(), num_clients=1, think=returning(), seconds=5)
    assert {batch.reason for batch in outcome.batches} == {"idle"}


@pytest.mark.parametrize("load", [0.1, 0.5, *nightly(0.3, 0.7, 0.9)])
def test_of_requests_that_know_nothing_of_each_other_none_is_much_later_than_by_the_best_wait(load):
    def run(wait):
        return simulate(make_queue(wait), poisson(load * CEILING, 10), seconds=10)

    learned, fixed_runs = run(None), [run(wait) for wait in (0.0, 0.001, 0.002, 0.005, 0.010)]
    assert learned.mean < 1.05 * min(other.mean for other in fixed_runs)
    assert learned.quantile(0.99) < 1.1 * min(other.quantile(0.99) for other in fixed_runs)


@pytest.mark.parametrize("load", [0.3, *nightly(0.1, 0.5)])
@pytest.mark.parametrize(("rows", "spread"), [(8, 0.001), (24, 0.003)])
def test_bursts_are_waited_for_about_as_well_as_by_the_best_wait(load, rows, spread):
    def run(wait):
        arrivals = bursts(load * CEILING, rows, spread, 10)
        return simulate(make_queue(wait), arrivals, seconds=10)

    learned, fixed_runs = run(None), [run(wait) for wait in (0.0, 0.001, 0.002, 0.005, 0.010)]
    assert learned.mean < 1.05 * min(other.mean for other in fixed_runs)
    assert learned.mean < fixed_runs[0].mean
