"""The trace of layers: flat and equal, or whole with a reason. Nothing of the model is changed."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.backend.keras_private.layers import seed_states
from keras_deepseek.backend.keras_private.masks import read_mask
from keras_deepseek.graph.known_code import CannotOpenError
from keras_deepseek.graph.optimized_model import OptimizedModel
from keras_deepseek.graph.plans import Plan
from keras_deepseek.graph.trace import as_symbols
from tests.oracles.graph_layers import layer_names, make_inputs, make_layer

FEW = ["Dense", "BatchNormalization", "Dropout", "MultiHeadAttention", "Conv2DTranspose", "LSTM"]


class Use(keras.Model):
    """A model that calls one layer with positional arguments."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.has_mode = "training" in layer._call_signature.parameters

    def call(self, inputs, training=False):
        return self.layer(*inputs, **({"training": training} if self.has_mode else {}))


def compare_layer(name, training):
    """Returns a row of the table: the layer, and "equal" or the reason why it is whole."""

    def draw():  # Anew for each call: on PyTorch a layer of Keras changes its inputs.
        inputs = make_inputs(name, np.random.default_rng(0))
        return [keras.tree.map_structure(ops.convert_to_tensor, argument) for argument in inputs]

    layer = make_layer(name)
    layer(*draw())  # Keras would build some of its layers wrongly while it infers shapes.
    model = Use(layer)
    model(draw())
    plan = Plan(model, as_symbols(draw()), training=training, passes=(), opens_foreign=True)
    states = [*model.variables, *seed_states(model)]
    values = [ops.copy(state.value) for state in states]
    keras.utils.set_random_seed(1)  # Dropout on PyTorch draws from its own generator.
    expected = model(draw(), training=training)
    for state, value in zip(states, values, strict=True):
        state.assign(value)
    keras.utils.set_random_seed(1)
    received = plan.program(draw())
    outputs = map(keras.tree.flatten, (expected, received))
    for expected_output, output in zip(*outputs, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(expected_output), ops.convert_to_numpy(output), err_msg=name
        )
    reasons = "; ".join(f"{leaf.layer_class} {leaf.reason}" for leaf in plan.leaves.values())
    return f"{name:30} training={training!s:5} {'whole: ' + reasons if reasons else 'equal'}"


@pytest.mark.each_backend
@pytest.mark.parametrize("names", [FEW])
def test_flat_programs_of_a_few_layers_are_bit_equal_or_whole(names):
    rows = [compare_layer(name, training) for name in names for training in (False, True)]
    whole = [row.split()[0] for row in rows if "whole" in row]
    assert {"Conv2DTranspose", "BatchNormalization"} <= set(whole)
    assert set(whole) <= {"Conv2DTranspose", "BatchNormalization", "Dropout", "LSTM"}


@pytest.mark.filterwarnings("ignore:.*Tensor.T is deprecated")  # Of Keras's Equalization.
@pytest.mark.filterwarnings("ignore:.*requested dtype int64")  # Of Keras's MixUp on JAX.
@pytest.mark.nightly
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", layer_names())
def test_the_flat_program_of_each_layer_is_bit_equal_or_whole(name, training):
    print(compare_layer(name, training))


def small_model(**kwargs):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3, **kwargs)(inputs))


def example(rows=2):
    return np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")


def make_plan(model, inputs, training=False, passes=()):
    example = as_symbols(ops.convert_to_tensor(inputs))
    return Plan(model, example, training=training, passes=passes, opens_foreign=True)


@pytest.mark.each_backend
def test_weights_that_are_computed_of_weights_stay_live():
    model = small_model(use_bias=False)
    model.layers[-1].enable_lora(2)
    plan = make_plan(model, example())
    x = ops.convert_to_tensor(example())
    old_outputs = ops.convert_to_numpy(plan.program(x))
    model.layers[-1].lora_kernel_a.assign(np.ones((4, 2), "float32"))
    model.layers[-1].lora_kernel_b.assign(np.ones((2, 3), "float32"))
    new_outputs = ops.convert_to_numpy(plan.program(x))
    assert plan.leaves == {}
    assert np.abs(new_outputs - old_outputs).max() > 0.1
    np.testing.assert_array_equal(new_outputs, ops.convert_to_numpy(model(x)))


class Stateful(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.count.assign(self.count + 1.0)
        return inputs * 1.0


class Adding(layers.Layer):
    def call(self, inputs):
        self.add_loss(ops.mean(inputs))
        return inputs


class Looking(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return inputs * float(ops.convert_to_numpy(self.scale.value))

    def compute_output_shape(self, shape):
        return shape


class Conditional(layers.Layer):
    def call(self, inputs):
        return ops.cond(ops.sum(inputs) > 0, lambda: inputs * 2, lambda: inputs)


class Around(layers.Layer):
    """A layer whose operation is found when a layer inside of it is called."""

    def __init__(self, layer):
        super().__init__()
        self.inner, self.dense = layer, layers.Dense(2)

    def build(self, shape):
        self.inner.build(shape)
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(self.inner.call(inputs))


class Raising(layers.Layer):
    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("It takes no symbols. " * 9)
        return inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


# Keras's `cond` on JAX takes no symbols.
CONDITION = "ValueError" if keras.backend.backend() == "jax" else "Cond, which holds a function"


def quantized():
    model = small_model()
    model.layers[-1].quantize("int8")
    return model


def recomputed():
    with keras.RematScope(mode="full"):
        layer = layers.Dense(3)
    return of_layer(layer)


def of_layer(layer):
    return keras.Sequential([keras.Input((4,)), layer])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (quantized, "is quantized"),
        (lambda: small_model(activity_regularizer="l2"), "activity regularizer"),
        (recomputed, "recomputes"),
        (lambda: of_layer(Stateful()), "assigns"),
        (lambda: of_layer(Adding()), "add_loss"),
        (lambda: of_layer(Looking()), ""),
        (lambda: of_layer(Conditional()), CONDITION),
        (lambda: of_layer(Around(Conditional())), CONDITION),
        (lambda: of_layer(Raising()), "TypeError: " + "It takes no symbols. " * 9),
    ],
)
def test_a_layer_that_is_no_graph_of_operations_stays_whole(make, reason):
    model = make()
    plan = make_plan(model, example())
    (leaf,) = plan.leaves.values()
    assert reason in leaf.reason
    assert "Exception encountered" not in leaf.reason
    x = ops.convert_to_tensor(example())
    np.testing.assert_array_equal(
        ops.convert_to_numpy(plan.program(x)), ops.convert_to_numpy(model(x))
    )


@pytest.mark.each_backend
@pytest.mark.parametrize(("size", "shape"), [(1, (8,)), (None, (8, 1, 1))])
def test_inputs_whose_rank_keras_adjusts(size, shape):
    inputs = keras.Input((size,))
    model = keras.Model(inputs, layers.Dense(2)(ops.sum(inputs, axis=-1, keepdims=True)))
    x = ops.convert_to_tensor(np.arange(8, dtype="float32").reshape(shape))
    plan = make_plan(model, x)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(plan.program(x)), ops.convert_to_numpy(model(x))
    )
    assert plan.leaves == {}


class Same(keras.Operation):
    """An operation on whose result Keras writes a history that has no end."""

    def call(self, x):
        return x

    def compute_output_spec(self, x):
        return x


def test_an_operation_that_returns_its_own_symbol_ends_the_walk():
    class Around(layers.Layer):
        def call(self, inputs):
            return Same()(inputs * 2.0)

    plan = make_plan(of_layer(Around()), example())
    (leaf,) = plan.leaves.values()
    assert "which returns its own input" in leaf.reason


def test_sizes_that_a_whole_layer_does_not_declare_are_inferred():
    inputs = keras.Input((3, 4))
    x = layers.EinsumDense("abc,cd->abd", (None, 2))(inputs)
    model = keras.Model(inputs, x[:, 0])
    model.quantize("int8", filters="einsum_dense")
    x = ops.ones((2, 3, 4))
    plan = make_plan(model, x)
    assert [leaf.reason for leaf in plan.leaves.values()] == ["is quantized"]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(plan.program(x)), ops.convert_to_numpy(model(x))
    )


def test_a_whole_layer_is_run_though_its_output_spec_is_its_input():
    class Doubling(layers.Layer):
        def call(self, inputs):
            return inputs * int(ops.convert_to_numpy(inputs).size > 0) * 2.0

        def compute_output_spec(self, inputs):
            return inputs

    class Tripling(Use):
        def call(self, inputs, training=False):
            return self.layer(inputs) + inputs

    model = Tripling(Doubling())
    model(example())
    plan = make_plan(model, example())
    assert [leaf.layer_class for leaf in plan.leaves.values()] == ["Doubling"]
    received = ops.convert_to_numpy(plan.program(ops.convert_to_tensor(example())))
    np.testing.assert_allclose(received, 3 * example(), rtol=1e-6)


class Penalized(keras.Model):
    """A model that calls a layer for its loss alone."""

    def __init__(self):
        super().__init__()
        self.dense, self.penalty = layers.Dense(3), layers.ActivityRegularization(0.1)

    def call(self, inputs):
        outputs = self.dense(inputs)
        self.penalty(outputs)
        return outputs


def test_a_whole_layer_whose_outputs_nobody_reads_is_not_lost():
    model = Penalized()
    model(example())
    with pytest.raises(CannotOpenError, match="and does not use its outputs"):
        make_plan(model, example())


@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state")
def test_outputs_by_name_of_a_whole_layer_keep_their_names():
    class Naming(layers.Layer):
        def call(self, inputs):
            float(ops.convert_to_numpy(inputs)[0, 0])
            return {"b": inputs + 1.0, "a": inputs[:, :2]}

        def compute_output_spec(self, inputs):
            return {"b": keras.KerasTensor((2, 4)), "a": keras.KerasTensor((2, 2))}

    inputs = [ops.convert_to_tensor(example())]
    model = Use(Naming())
    model(inputs)
    plan = Plan(model, as_symbols(inputs), training=False, passes=(), opens_foreign=True)
    received = plan.program(inputs)
    np.testing.assert_array_equal(ops.convert_to_numpy(received["a"]), example()[:, :2])


def test_masks_reach_whole_layers_and_the_outputs():
    tokens = keras.Input((4,), dtype="int32")
    x = layers.Embedding(9, 3, mask_zero=True)(tokens)
    model = keras.Model(tokens, layers.LSTM(3, return_sequences=True)(x))
    ids = ops.convert_to_tensor(np.array([[1, 2, 0, 0], [3, 0, 0, 0]], "int32"))
    plan = make_plan(model, ids)
    expected, received = model(ids), plan.program(ids)
    np.testing.assert_allclose(
        ops.convert_to_numpy(received), ops.convert_to_numpy(expected), atol=1e-6
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(read_mask(received)), ops.convert_to_numpy(read_mask(expected))
    )


def test_a_trace_leaves_no_nodes_and_no_names_behind():
    inputs = keras.Input((4,))
    outputs = layers.Dense(3)(inputs) + 1.0
    model = keras.Model(inputs, outputs)
    name = layers.Dense(1).name
    node_counts = [len(operation._inbound_nodes) for operation in model.operations]
    make_plan(model, example())
    assert [len(operation._inbound_nodes) for operation in model.operations] == node_counts
    number = int(name.rpartition("_")[2]) if name.rpartition("_")[2].isdigit() else 0
    assert layers.Dense(1).name == f"dense_{number + 1}"
    assert "symbolic_call" not in {name for layer in model.layers for name in vars(layer)}


def test_a_layer_whose_operation_fails_in_the_first_run_becomes_whole():
    class Wrong(keras.Operation):
        def call(self, x):
            raise ValueError("This runs in no program.")

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    class Branching(layers.Layer):
        def call(self, inputs):
            if isinstance(inputs, keras.KerasTensor):
                return Wrong()(inputs)
            return inputs * 3.0

    model = of_layer(Branching())
    optimized = OptimizedModel(model, as_symbols(ops.convert_to_tensor(example())), passes=())
    x = ops.convert_to_tensor(example())
    np.testing.assert_allclose(ops.convert_to_numpy(optimized(x)), 3 * example(), rtol=1e-6)
    assert optimized.has_program(x)


def test_names_of_keras_that_the_trace_reads_are_there():
    """A canary: it fails when a Keras release moves a private name."""
    layer = layers.Dense(2)
    layer.build((None, 3))
    assert {"_trainable_variables", "_non_trainable_variables", "_layers"} <= set(vars(layer))
    assert layer._remat_mode is None
    assert layer.kernel._autocast is True
    assert keras.backend.standardize_dtype(layer.kernel._dtype) == "float32"
    symbol = layer(keras.KerasTensor((2, 3)))
    operation, index = symbol._keras_history.operation, symbol._keras_history.node_index
    node = operation._inbound_nodes[index]
    assert node.arguments.keras_tensors[0].shape == (2, 3)
    assert node.outputs[0] is symbol
    assert isinstance(operation._outbound_nodes, list)
    model = small_model()
    assert model._call_has_training_arg is True
    assert type(layer).symbolic_call is keras.Layer.symbolic_call
