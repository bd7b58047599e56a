import keras
import pytest
from keras import ops

from tests.oracles.graph_rewriting import check_equal, draw, kinds, rewrite


@pytest.mark.parametrize(
    ("function", "remaining_kinds"),
    [
        pytest.param(lambda x: ops.cast(x, "float32") * 2, ["Multiply"], id="cast"),
        pytest.param(lambda x: ops.reshape(x, (-1, 4, 4)) * 2, ["Multiply"], id="reshape"),
        pytest.param(lambda x: ops.exp(x * 1.0 / 1), ["Exp"], id="factor of one"),
        pytest.param(
            lambda x: ops.transpose(ops.transpose(x, (0, 2, 1)), (0, 2, 1)) * 2,
            ["Multiply"],
            id="transposes that cancel",
        ),
        pytest.param(
            lambda x: ops.moveaxis(ops.swapaxes(ops.expand_dims(x, 1), 1, 3), 1, -1),
            ["ExpandDims", "Transpose"],
            id="transposes that follow each other",
        ),
        # These have the shape of their input, and are not it.
        pytest.param(lambda x: ops.transpose(x, (0, 2, 1)), ["Transpose"], id="square transpose"),
        pytest.param(lambda x: ops.flip(x, 1), ["Flip"], id="flip"),
        pytest.param(
            lambda x: ops.cast(ops.cast(x, "int32"), "float32"), ["Cast", "Cast"], id="rounding"
        ),
        pytest.param(  # On PyTorch, indices are int64.
            lambda x: ops.cast(ops.top_k(x, 2)[1], "int32"), ["TopK", "Cast"], id="indices"
        ),
    ],
)
def test_removes_what_returns_its_input(function, remaining_kinds):
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, function(inputs))
    optimized = rewrite(model, draw(3, 4, 4), "identities")
    assert kinds(optimized) == remaining_kinds
    check_equal(model, optimized, draw(3, 4, 4), draw(1, 4, 4))
