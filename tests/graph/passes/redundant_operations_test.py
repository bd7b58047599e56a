import keras
import pytest
from keras import layers, ops

from tests.oracles.graph_rewriting import check_equal, draw, kinds, randomize, rewrite


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


def test_computes_equal_branches_once():
    inputs = keras.Input((6,))
    dense = layers.Dense(4, activation="gelu")
    model = randomize(keras.Model(inputs, dense(inputs) * ops.sigmoid(dense(inputs))))
    optimized = rewrite(model, draw(3, 6), "equal_operations", mode="train")
    assert kinds(optimized).count("Matmul") == kinds(optimized).count("Gelu") == 1
    check_equal(model, optimized, draw(3, 6), draw(5, 6))
    check_equal(model, optimized, draw(5, 6), gradients=True)


def test_random_layers_stay():
    inputs = keras.Input((1000,))
    dropout = layers.Dropout(0.5)
    model = keras.Model(inputs, dropout(inputs) - dropout(inputs))
    optimized = rewrite(model, draw(1, 1000), "equal_operations", mode="train")
    assert kinds(optimized, training=True) == ["Dropout", "Dropout", "Subtract"]
    assert float(ops.max(ops.abs(optimized(draw(1, 1000), training=True)))) > 0


def test_operations_with_other_attributes_or_numbers_stay():
    inputs = keras.Input((4, 4))
    outputs = [
        ops.softmax(inputs, axis=1),
        ops.softmax(inputs, axis=2),
        ops.cast(inputs, "int32") // 1,
        ops.cast(inputs, "int32") // 1.0,
        ops.clip(inputs, 0, 1),
        ops.clip(inputs, 0, 2),
    ]
    model = keras.Model(inputs, outputs)
    optimized = rewrite(model, draw(2, 4, 4), "equal_operations")
    names = ["Softmax", "Softmax", "FloorDivide", "FloorDivide", "Clip", "Clip"]
    assert [kind for kind in kinds(optimized) if kind != "Cast"] == names
    check_equal(model, optimized, draw(2, 4, 4), draw(3, 4, 4))
