"""The simulated autoscaler against the documented algorithm, on traffic that can be computed."""

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.operator.simulation import (
    DAY,
    TRAFFIC,
    SimulatedDeployment,
    flash,
    highest_target,
    read_traffic,
    simulate,
)

STEP = [1000.0] * 300 + [4000.0] * 900


def test_constant_traffic_below_the_target_loses_nothing():
    outcome = simulate(SimulatedDeployment(100), [1000.0] * 600, 50)
    assert outcome.success == 1.0
    assert set(outcome.replicas) == {20}


def test_conserves_requests():
    outcome = simulate(SimulatedDeployment(100, queue_seconds=0), [1000.0] * 100, 1000)
    # Two replicas answer 200 of 1,000 until others start; the target of 1,000 asks for no others.
    assert outcome.replicas[-1] == 2
    assert sum(outcome.lost) == pytest.approx(100 * 800)


def test_doubles_at_most_every_15_seconds():
    outcome = simulate(SimulatedDeployment(100, cold_start_seconds=0), STEP, 50)
    counts = outcome.replicas
    assert counts[299] == 20
    assert counts[315] <= 40  # 100 percent or 10 pods.
    assert counts[600] == 80


def test_new_pods_answer_after_their_cold_start():
    fast, slow = (
        simulate(SimulatedDeployment(100, cold_start_seconds=seconds), STEP, 50).success
        for seconds in (5, 120)
    )
    assert fast > slow


def test_falls_slowly_after_the_window():
    outcome = simulate(SimulatedDeployment(100), [4000.0] * 600 + [1000.0] * 1200, 50)
    counts = outcome.replicas
    assert counts[880] == 80  # 300 seconds after the fall, and the metric's window.
    assert 72 <= counts[960] < 80  # 10 percent a minute.
    assert counts[-1] < 40


def test_small_differences_change_nothing():
    outcome = simulate(SimulatedDeployment(100), [1000.0] * 100 + [1090.0] * 500, 50)
    assert set(outcome.replicas) == {20}


@pytest.mark.parametrize(("queue", "lost"), [(0, True), (60, False)])
def test_queue_is_the_buffer_for_bursts(queue, lost):
    traffic = [1000.0] * 300 + [2500.0] * 20 + [1000.0] * 300
    outcome = simulate(SimulatedDeployment(100, queue_seconds=queue), traffic, 50)
    assert (outcome.success < 1.0) == lost


def test_highest_target():
    days = [STEP]
    outcome = highest_target(SimulatedDeployment(100, cold_start_seconds=30), days, 0.999)
    assert outcome is not None
    assert outcome.success >= 0.999
    higher = simulate(SimulatedDeployment(100, cold_start_seconds=30), STEP, outcome.target + 5)
    assert higher.success < 0.999
    assert highest_target(SimulatedDeployment(100, max_replicas=20), days, 1.0) is None


@pytest.mark.nightly
@pytest.mark.parametrize("name", TRAFFIC)
def test_lower_targets_lose_less_on_whole_days(name):
    day = TRAFFIC[name](20_000, 0)
    deployment, targets = SimulatedDeployment(1000), (1000, 700, 500)
    losses = [sum(simulate(deployment, day, target).lost) for target in targets]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", TRAFFIC)
def test_day_stays_near_the_peak_and_repeats(name):
    day = TRAFFIC[name](1000, 1)
    assert len(day) == DAY
    assert 800 < max(day) < 1300
    assert min(day) > 0
    assert day == TRAFFIC[name](1000, 1) != TRAFFIC[name](1000, 2)


def test_flash_doubles_within_two_minutes():
    day = flash(1000, 0)
    assert max(later / now for now, later in zip(day, day[120:], strict=False)) > 1.9


def test_reads_csv(tmp_path):
    file = tmp_path / "day.csv"
    file.write_text("time,requests\n0,10\n1,20.5\n")
    assert read_traffic(str(file)) == [10.0, 20.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n1\n-2\n", "line 3: '-2'"), ("1\nx\n", "line 2: 'x'"), ("", "has no numbers")],
)
def test_refuses_bad_csv(tmp_path, text, message):
    file = tmp_path / "day.csv"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_traffic(str(file))


def test_missing_file(tmp_path):
    with pytest.raises(InvalidInputError, match="Can't read"):
        read_traffic(str(tmp_path / "none.csv"))
