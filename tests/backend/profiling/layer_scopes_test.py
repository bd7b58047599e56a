import keras
import pytest

from keras_deepseek.backend.profiling.layer_scopes import LayerScopes


def build():
    """Returns a model whose names could be taken for others, as those that Keras gives are."""
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4, name="dense"), keras.layers.Dense(4, name="up")],
        name="block",
    )
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, name="dense_1")(inner(inputs))
    hidden = keras.layers.Add(name="add")([hidden, inputs])
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden), name="model")
    model.compile(keras.optimizers.Adam(name="adam"), "mse")
    return model


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(_run)/jvp(model)/head/dot_general", ("forward", "head")),
        ("jit(_run)/transpose(jvp(model))/head/dot_general", ("backward", "head")),
        ("jit(_run)/jvp(model)/block/dense/jit(relu)/max", ("forward", "block/dense")),
        ("jit(_run)/jvp(model)/add/add", ("forward", "add")),
        ("jit(_run)/jvp(model)/dense_1/add", ("forward", "dense_1")),  # The name of the operation.
        ("jit(_run)/transpose(jvp(model))/add_any", ("backward", "model")),
        ("jit(_run)/jvp(compile_loss)/mean_squared_error/sub", ("loss", "")),
        ("jit(_run)/transpose(jvp(step.loss))/compile_loss/mul", ("loss", "")),
        ("jit(_run)/step.optimizer/adam/mul", ("optimizer", "")),
        ("jit(_run)/adam/mul", ("optimizer", "")),
        ("jit(_run)/jvp()/convert_element_type", ("forward", "model")),
        ("jit(_run)/step.backward/while/body/add", ("backward", "model")),
        ("jit(_run)/convert_element_type", ("rest", "")),
        ("copy", ("rest", "")),
        ("", ("rest", "")),
    ],
)
def test_a_scope_of_jax_names_its_owner(scope, expected):
    assert LayerScopes(build(), is_numbered=False).owner(scope) == expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("StatefulPartitionedCall/model_1/head_1/MatMul:_MklMatMul", ("forward", "head")),
        ("StatefulPartitionedCall/gradient_tape/model_1/head_1/MatMul", ("backward", "head")),
        # The first scope of `dense_1` has the name that the second one of `dense` got.
        ("model_1/block_1/dense_1/MatMul:MatMul", ("forward", "block/dense")),
        ("model_1/dense_1_1/MatMul:MatMul", ("forward", "dense_1")),
        ("model_1/dense_1_2/MatMul:MatMul", ("forward", "dense_1")),
        ("step.backward/AddN_6:AddN", ("backward", "model")),
        ("step.loss_1/compile_loss/sub:Sub", ("loss", "")),
        ("step.optimizer/adam/Mul_3:Mul", ("optimizer", "")),
        ("ReadVariableOp:ReadVariableOp", ("rest", "")),
    ],
)
def test_a_scope_of_tensorflow_names_its_owner(scope, expected):
    assert LayerScopes(build(), is_numbered=True).owner(scope) == expected
