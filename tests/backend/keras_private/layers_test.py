"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.layers import (
    attend,
    attention_projections,
    batch_states,
    block_states,
    delete_variables,
    example_inputs,
    first_call_shapes,
    flatten_layers,
    functional_graph,
    infers_shapes,
    inner_layers,
    is_container,
    output_layers,
    own_variables,
    producing_operation,
    unchanged_state,
    uses_flash_attention,
)


def test_layers_inside_layers_are_found():
    inputs = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    recurrent = keras.layers.LSTM(3)
    model = keras.Model(inputs, recurrent(attention(inputs, inputs)))
    layers = flatten_layers(model)
    assert model in layers
    assert recurrent.cell in layers
    assert "query" in [layer.name for layer in layers]


def test_a_variable_that_was_deleted_is_none_of_the_layer_s():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    layer.enable_lora(1)
    delete_variables(layer, ["lora_kernel_a", "lora_kernel_b"])
    assert not hasattr(layer, "lora_kernel_a")
    assert [variable.name for variable in layer.variables] == ["kernel", "bias"]


def test_the_layers_that_make_the_outputs_of_a_graph_are_found():
    inputs = keras.Input((4, 6))
    shared = keras.layers.Dense(3, name="first")
    inner = keras.Sequential([keras.Input((4, 6)), keras.layers.Dense(6, name="inner")])
    hidden = keras.layers.Dense(6, name="hidden")(inputs)
    outputs = [
        keras.layers.Softmax()(shared(hidden)),
        keras.layers.TimeDistributed(keras.layers.Dense(2, name="wrapped"))(hidden),
        inner(hidden),
        hidden + keras.layers.Dense(6, name="added")(hidden),
    ]
    names = {layer.name for layer in output_layers(keras.Model(inputs, outputs))}
    assert names == {"first", "wrapped", "inner"}
    assert output_layers(keras.layers.Dense(2)) == []


def test_it_is_known_when_keras_infers_shapes():
    answers = []

    class Asking(keras.Layer):
        def call(self, inputs):
            answers.append(infers_shapes())
            return inputs

    Asking()(keras.Input((2,)))
    assert set(answers) == {True}
    Asking()(np.ones((1, 2), "float32"))
    assert answers[-1] is False


def test_the_shapes_of_the_first_call_are_kept():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    assert first_call_shapes(model) == {}
    model(keras.ops.zeros((3, 4)))
    assert [tuple(shape) for shape in first_call_shapes(model).values()] == [(3, 4)]


def test_one_sample_is_made_of_the_shapes_that_a_model_says():
    sequential = keras.Sequential([keras.Input((2, 3)), keras.layers.Dense(1)])
    assert example_inputs(sequential).shape == (1, 2, 3)
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((), dtype="int32", name="b")}
    inputs_by_name = example_inputs(keras.Model(inputs, [inputs["a"] + 1.0, inputs["b"] + 1]))
    assert {name: tuple(value.shape) for name, value in inputs_by_name.items()} == {
        "a": (1, 3),
        "b": (1,),
    }
    assert keras.backend.standardize_dtype(inputs_by_name["b"].dtype) == "int32"
    unknown = keras.Input((None, 3))
    assert example_inputs(keras.Model(unknown, unknown + 1.0)) is None
    assert example_inputs(keras.Sequential([keras.layers.Dense(1)])) is None


def test_the_operation_that_makes_a_symbol_is_found():
    inputs, layer = keras.Input((2,)), keras.layers.Dense(1)
    assert producing_operation(layer(inputs)) is layer
    assert producing_operation(np.ones(2)) is None


def test_a_graph_is_found_in_a_model_that_has_one():
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2)
    functional = keras.Model(inputs, layer(inputs))
    for model in (functional, keras.Sequential([inputs, keras.layers.Dense(2)])):
        graph = functional_graph(model)
        assert len(graph.inputs) == 1
        assert any(isinstance(operation, keras.layers.Dense) for operation in graph.operations)
    assert functional_graph(layer) is None
    assert layer._inbound_nodes[0].input_tensors[0] is inputs
    assert functional.outputs[0]._keras_history.operation is layer


def test_variables_that_a_block_assigns_are_found():
    block = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    )
    frozen = keras.layers.Dense(1)
    block.add(frozen)
    frozen.trainable = False
    names = [variable.path.split("/")[-1] for variable in block_states(block)]
    assert sorted(names) == ["moving_mean", "moving_variance", "seed_generator_state"]


def test_states_that_a_batch_leaves_are_statistics_and_no_seeds():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5, seed=1)]
    )
    names = [variable.path.split("/")[-1] for variable in batch_states(model)]
    assert sorted(names) == ["moving_mean", "moving_variance"]


class Holder(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.dropout = keras.layers.Dropout(0.5, seed=1)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.scale = self.add_weight(shape=())

    def call(self, inputs):
        return self.dropout(self.dense(inputs)) * self.scale


def test_a_layer_holds_its_own_layers_and_variables():
    holder = Holder()
    model = keras.Sequential([keras.Input((3,)), holder])
    model(np.ones((1, 3)))
    assert holder in inner_layers(model)
    assert holder.dense not in inner_layers(model)
    assert inner_layers(holder) == [holder.dense, holder.dropout]
    assert [id(variable) for variable in own_variables(holder)] == [id(holder.scale)]
    assert len(own_variables(holder.dense)) == 2
    assert own_variables(holder.dropout) == holder.dropout.variables  # Its seed.
    assert own_variables(model) == []


class Own(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def test_models_that_only_hand_on_are_containers():
    layers = [keras.Input((3,)), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    assert is_container(model)
    assert is_container(keras.Model(model.inputs, model.outputs))
    assert not is_container(Own([keras.Input((3,)), keras.layers.Dense(2)]))
    assert not is_container(layers[1])


@pytest.mark.parametrize(
    "attention",
    [keras.layers.MultiHeadAttention(2, 3), keras.layers.GroupQueryAttention(3, 2, 2)],
)
def test_the_parts_of_an_attention_layer_make_the_whole(attention):
    inputs = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    expected = attention(inputs, inputs, use_causal_mask=True)
    parts = attention_projections(attention)
    assert list(parts) == ["query", "key", "value", "output"]
    projected = [parts[name](inputs) for name in ("query", "key", "value")]
    heads = attend(attention, *projected, np.tri(4, dtype=bool)[None], training=False)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(parts["output"](heads)),
        keras.ops.convert_to_numpy(expected),
        atol=1e-6,
    )


def test_a_layer_says_whether_it_was_told_to_use_flash_attention():
    for choice in (None, False, True):
        attention = keras.layers.MultiHeadAttention(2, 3, flash_attention=choice)
        assert uses_flash_attention(attention) == bool(choice)


class Counter(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign(self.calls + 1)
        return x * self.calls


def test_counters_are_restored():
    layer = Counter()
    model = keras.Sequential([keras.Input((2,)), layer])
    model(np.ones((1, 2)))
    num_calls = float(layer.calls)
    with unchanged_state(model):
        model(np.ones((1, 2)))
        assert float(layer.calls) == num_calls + 1
    assert float(layer.calls) == num_calls
