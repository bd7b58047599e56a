"""The dashboard file."""

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio.dashboard import Panel, read_dashboard

WHOLE = """
title: My trainings
panels:
  - names: [accuracy, val_accuracy]
  - names: learning_rate
    log: true
hidden: [epoch]
thresholds:
  data_wait: 0.5
"""


def test_a_yaml_and_a_json_file_are_read(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(WHOLE)
    dashboard = read_dashboard(tmp_path / "a.yaml")
    assert dashboard.title == "My trainings"
    assert dashboard.panels == (
        Panel(("accuracy", "val_accuracy")),
        Panel(("learning_rate",), log=True),
    )
    assert (dashboard.hidden, dashboard.thresholds.data_wait) == (("epoch",), 0.5)
    (tmp_path / "a.json").write_text('{"title": "Mine"}')
    assert read_dashboard(tmp_path / "a.json").title == "Mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: a\npanel: []", r"line 2: .*'panel': did you mean 'panels'\?"),
        ("thresholds:\n  data_wate: 1", r"line 2: .*did you mean 'data_wait'\?"),
        ("panels:\n  - names: [a]\n    lag: true", r"line 3: .*did you mean 'log'\?"),
        ("panels: 3", "line 1: panels must be a list, received 3"),
        ("thresholds:\n  idle: much", "line 2: idle must be a number"),
        ("thresholds: {idle: .nan}", "line 1: idle must be a number"),
        ("panels:\n  - names: [a]\n    smoothing: 5", "line 3: smoothing must be a number"),
        ("panels:\n  - names: [a]\n  - name: [b]", r"line 3: .*did you mean 'names'\?"),
        ("panels: [{names: [a], lag: true}]", r"line 1: .*did you mean 'log'\?"),
        ("hidden: {a: 1}", "line 1: hidden must be a list of names"),
        ("- a", "must have keys"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, expected):
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InvalidInputError, match=expected):
        read_dashboard(tmp_path / "a.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match="can't be read"):
        read_dashboard(tmp_path / "none.json")
