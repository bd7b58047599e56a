import pytest

from keras_deepseek.training import StepProfile
from keras_deepseek.training.step.step_profiler import PARTS


def test_a_profile_is_printed_as_a_table():
    parts = {**dict.fromkeys(PARTS, 0.0), "forward": 0.03, "rest": 0.01, "idle": 0.06}
    layers = {f"layer_{index}": [0.001, 0.0] for index in range(20)} | {"head": [0.02, 0.01]}
    profile = StepProfile(5, 0.1, parts, layers, "model", "tool", "CPU", "trace.json.gz")
    rows = str(profile).splitlines()
    assert rows[0].split() == ["forward", "30.00", "ms", "30.0%"]
    assert rows[7].split() == ["step", "100.00", "ms", "100.0%"]
    assert rows[8].split() == ["head", "30.00", "ms", "30.0%"]
    assert len(rows) == 18
    assert profile.unassigned == pytest.approx(0.25)
