import types

import keras
import pytest

from keras_deepseek.training.step.loss.compiled_losses import list_losses, losses_by_output


def test_list_losses_takes_names_configs_and_functions():
    def own(y, y_pred):
        return y_pred - y

    mse = keras.losses.MeanSquaredError()
    losses = list_losses(["mse", None, own, mse])
    assert losses == [keras.losses.get("mse"), own, mse]
    assert list_losses(None) == []


@pytest.mark.parametrize(
    ("spec", "y", "y_pred", "expected"),
    [
        (print, 1, 2, [(print, 1, 2, None)]),
        ([print], 1, {"a": 2}, [(print, 1, 2, None)]),
        ([print, None], [1, 3], [2, 4], [(print, 1, 2, None), (None, 3, 4, None)]),
        (
            {"b": print},
            {"b": 1, "a": 3},
            {"a": 4, "b": 2},
            [(None, 3, 4, None), (print, 1, 2, None)],
        ),
        ({"b": print, "a": len}, [3, 1], [4, 2], [(len, 3, 4, None), (print, 1, 2, None)]),
        (print, [1, 3], [2, 4], []),  # Which of them?
    ],
)
def test_losses_by_output_pairs_losses_with_outputs(spec, y, y_pred, expected):
    model = types.SimpleNamespace(loss=spec, output_names=["a", "b"])
    assert losses_by_output(model, y, y_pred, None) == expected


def test_losses_by_output_pairs_losses_with_weights():
    model = types.SimpleNamespace(loss=[print, len], output_names=["a", "b"])
    assert [w for *_, w in losses_by_output(model, [1, 3], [2, 4], 5)] == [5, 5]
    assert [w for *_, w in losses_by_output(model, [1, 3], [2, 4], [5, None])] == [5, None]
    model.loss = {"a": print, "b": len}
    assert [w for *_, w in losses_by_output(model, [1, 3], [2, 4], {"b": 6})] == [None, 6]
