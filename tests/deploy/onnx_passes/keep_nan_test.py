import numpy as np
import pytest

from keras_deepseek.deploy.onnx_passes.keep_nan import keep_nan

onnx = pytest.importorskip("onnx")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("operator", "num_gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrence_is_nan_from_the_step_of_a_nan_on(
    operator, num_gates, direction, parse, check_pass, run_all, draw
):
    sides, rows = 2 if direction == "bidirectional" else 1, 3 * num_gates
    options = f'hidden_size = 3, direction = "{direction}"'
    outputs = ", c" if operator == "LSTM" else ""
    if operator == "RNN":
        options += ", activations = [" + ", ".join(['"Relu"'] * sides) + "]"
    model = parse(
        f"y, h{outputs} = {operator} <{options}> (x, w, r, b)",
        f"float[S,N,4] x, float[{sides},{rows},4] w, float[{sides},{rows},3] r, "
        f"float[{sides},{2 * rows}] b",
        "float[A,B,C,D] y, float[E,F,G] h" + (outputs and ", float[I,J,K] c"),
    )
    arrays = draw(x=(5, 3, 4), w=(sides, rows, 4), r=(sides, rows, 3), b=(sides, 2 * rows))
    assert check_pass(keep_nan, model, [arrays], tolerance=0)[0] == 1
    arrays["x"][2, 1, 0] = np.nan
    arrays["x"][3, 0, 2] = np.inf
    sequence, *last = map(np.isnan, run_all(model, arrays))
    steps = np.arange(5)
    spoilt = {"forward": [steps >= 2], "reverse": [steps <= 2]}
    spoilt["bidirectional"] = spoilt["forward"] + spoilt["reverse"]
    expected = np.zeros((5, sides, 3, 3), bool)
    expected[:, :, 1] = np.stack(spoilt[direction], axis=1)[..., None]
    np.testing.assert_array_equal(sequence, expected)
    for state in last:
        np.testing.assert_array_equal(state, expected[2])
