from collections import deque

import numpy as np
import pytest

from keras_deepseek.callbacks.step_metrics import STEP_METRICS, Labels, StepMetrics

LABELS = Labels(["a", "b", "a"], ["router/0", "router/1"])
VALUES = np.array([0.5, 0.01, 3, 1, 4, 6, 2, 8, 0.3, 0, 0.4, 5, 7], "float32")


def hand_over(values, labels):
    step_metrics, queue = StepMetrics(), deque()
    step_metrics.labels = labels
    with step_metrics.read_by([queue]):
        assert step_metrics.are_wanted
        logs = {"loss": 1.0, STEP_METRICS: values}
        step_metrics.end(logs)
    assert logs == {"loss": 1.0}
    assert not step_metrics.are_wanted
    return queue.popleft()


def test_norms_of_variables_become_those_of_layers():
    metrics = hand_over(VALUES, LABELS)
    assert metrics.scalars() == {
        "step_loss": 0.5,
        "learning_rate": pytest.approx(0.01),
        "gradient_norm": pytest.approx(26**0.5),
    }
    vectors = metrics.vectors()
    np.testing.assert_allclose(vectors["layer_gradient_norms"], [5, 1])
    np.testing.assert_allclose(vectors["layer_update_ratios"], [0.05, 0], rtol=1e-6)
    np.testing.assert_array_equal(vectors["expert_load"], [5, 7])
    assert LABELS.of_vectors["layer_update_ratios"] == ["a", "b"]


def test_a_layer_without_a_gradient_has_zeros():
    labels = Labels(["a", "b", "a"], trainable=["a", "frozen", "b"])
    vectors = hand_over(VALUES[:11], labels).vectors()
    assert labels.of_vectors["layer_gradient_norms"] == ["a", "frozen", "b"]
    np.testing.assert_allclose(vectors["layer_gradient_norms"], [5, 0, 1])
    np.testing.assert_allclose(vectors["layer_update_ratios"], [0.05, 0, 0], rtol=1e-6)


def test_without_layer_statistics_there_are_two_numbers():
    metrics = hand_over(VALUES[:2], Labels())
    assert metrics.scalars() == {"step_loss": 0.5, "learning_rate": pytest.approx(0.01)}
    assert metrics.vectors() == {}
