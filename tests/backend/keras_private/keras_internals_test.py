"""Canaries: what these say is broken when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.keras_internals import (
    DataAdapter,
    array_slices,
    attend,
    attention_projections,
    batch_specs,
    build_for_training,
    callbacks_beside,
    compile_arguments,
    copied_batches,
    count_samples,
    count_train_steps,
    delete_variables,
    example_inputs,
    find_data_adapter,
    finish_callbacks,
    first_call_shapes,
    flatten_layers,
    forget_global_seed,
    from_scipy,
    functional_graph,
    global_seed_state,
    has_global_seed,
    image_operations,
    infers_shapes,
    numpy_batches,
    order_metrics,
    py_dataset_batches,
    read_learning_rate,
    set_mask,
    split_validation,
    tensorflow_specs,
    uses_flash_attention,
)


def test_layers_inside_layers_are_found():
    inputs = keras.Input((4, 6))
    attention = keras.layers.MultiHeadAttention(2, 3, name="attention")
    recurrent = keras.layers.LSTM(3)
    model = keras.Model(inputs, recurrent(attention(inputs, inputs)))
    found = flatten_layers(model)
    assert model in found
    assert recurrent.cell in found
    assert "query" in [layer.name for layer in found]


def test_a_variable_that_was_deleted_is_none_of_the_layer_s():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    layer.enable_lora(1)
    delete_variables(layer, ["lora_kernel_a", "lora_kernel_b"])
    assert not hasattr(layer, "lora_kernel_a")
    assert [each.name for each in layer.variables] == ["kernel", "bias"]


def test_it_is_known_when_keras_infers_shapes():
    known = []

    class Asking(keras.Layer):
        def call(self, inputs):
            known.append(infers_shapes())
            return inputs

    Asking()(keras.Input((2,)))
    assert set(known) == {True}
    Asking()(np.ones((1, 2), "float32"))
    assert known[-1] is False


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


def test_the_objects_that_a_model_was_compiled_with_are_kept():
    def loss(y_true, y_pred):
        return keras.ops.mean(y_pred)

    metric = keras.metrics.MeanSquaredError()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss, metrics=[metric], steps_per_execution=2)
    arguments = compile_arguments(model)
    assert arguments["loss"] is loss
    assert arguments["metrics"][0] is metric
    assert arguments["steps_per_execution"] == 2


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


def test_the_seed_that_keras_shares_is_a_variable():
    state = global_seed_state()
    before = keras.ops.convert_to_numpy(state.value).copy()
    keras.random.uniform((1,))
    assert not np.array_equal(keras.ops.convert_to_numpy(global_seed_state().value), before)
    assert global_seed_state() is state
    assert has_global_seed()
    forget_global_seed()
    assert not has_global_seed()
    assert global_seed_state() is not state


def test_a_compiled_model_is_built_with_its_optimizer_and_metrics():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("adam", "mse", metrics=["mae"])
    build_for_training(model, (keras.KerasTensor((3, 4)), keras.KerasTensor((3, 2))))
    assert [tuple(weight.shape) for weight in model.weights] == [(4, 2), (2,)]
    assert model.optimizer.built
    assert len(model.metrics_variables) == 4


def test_callbacks_in_a_thread_of_keras_s_can_be_waited_for():
    callbacks = keras.callbacks.CallbackList([])
    finish_callbacks(callbacks)


def test_training_data_of_each_kind_have_an_adapter():
    x = np.arange(6.0)[:, None]
    arguments = {
        "y": None,
        "sample_weight": None,
        "batch_size": 4,
        "steps_per_epoch": None,
        "class_weight": None,
        "shuffle": False,
    }

    class Batches(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, index):
            return x, x

    class Own(DataAdapter):
        pass

    kind, adapter = find_data_adapter(x, **arguments)
    assert kind == "arrays"
    assert (adapter.batch_size, adapter.num_batches) == (4, 2)
    assert find_data_adapter(Batches(), **arguments)[0] == "PyDataset"
    assert find_data_adapter(Own(), **arguments)[0] is None

    num_rows, take = array_slices(adapter)
    assert num_rows == 6
    np.testing.assert_array_equal(take(np.array([4, 1])), [[4.0], [1.0]])

    batches = list(py_dataset_batches(Batches(), None))
    assert len(batches) == 2
    np.testing.assert_array_equal(batches[0][1], x)


def test_validation_data_are_set_aside_from_the_end():
    x = np.arange(8.0)
    train, validation = split_validation((x, None), 0.25)
    np.testing.assert_array_equal(train[0], x[:6])
    np.testing.assert_array_equal(validation[0], x[6:])
    assert train[1] is None


def test_batches_are_told_by_shapes_and_become_arrays():
    batches = [(keras.ops.ones((2, length)), None) for length in (3, 4)]
    spec, nothing = batch_specs(batches)
    assert (spec.shape, spec.dtype, nothing) == ((2, None), "float32", None)
    assert type(next(numpy_batches(batches))[0]) is np.ndarray


def test_batches_are_copied_before_the_next_is_made():
    def fill():
        buffer = np.zeros(3)
        for index in range(3):
            buffer[:] = index
            yield buffer, keras.ops.ones(1), None

    batches = list(copied_batches(fill()))
    found = [keras.ops.convert_to_numpy(each).tolist() for each, _, _ in batches]
    assert found == [[index] * 3 for index in range(3)]
    assert keras.ops.convert_to_numpy(batches[0][1]).tolist() == [1.0]
    assert batches[0][2] is None


def test_tensorflow_s_specs_are_open_in_the_number_of_rows():
    tf = pytest.importorskip("tensorflow")
    given = tf.TensorSpec((5, 1))
    made, kept, nothing = tensorflow_specs((keras.KerasTensor((2, 3), "int32"), given, None))
    assert made == tf.TensorSpec((None, 3), "int32")
    assert kept is given
    assert isinstance(nothing, tf.OptionalSpec)


def test_steps_samples_and_the_rate_are_read_while_a_training_goes_on():
    class Reading(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            found.append((batch, count_samples(self._model), read_learning_rate(self._model)))

    found = []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25, gradient_accumulation_steps=2), "mse")
    data = (np.ones((7, 2), "float32"), np.ones((7, 1), "float32"))
    model.fit(*data, batch_size=3, epochs=2, verbose=0, callbacks=[Reading()])
    assert found == [(0, None, 0.25), (1, 3.0, 0.25), (2, 6.0, 0.25)] * 2
    assert count_train_steps(model) == 6


def test_one_sample_is_made_of_the_shapes_that_a_model_says():
    sequential = keras.Sequential([keras.Input((2, 3)), keras.layers.Dense(1)])
    assert example_inputs(sequential).shape == (1, 2, 3)
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((), dtype="int32", name="b")}
    made = example_inputs(keras.Model(inputs, [inputs["a"] + 1.0, inputs["b"] + 1]))
    assert {name: tuple(value.shape) for name, value in made.items()} == {"a": (1, 3), "b": (1,)}
    assert keras.backend.standardize_dtype(made["b"].dtype) == "int32"
    unknown = keras.Input((None, 3))
    assert example_inputs(keras.Model(unknown, unknown + 1.0)) is None
    assert example_inputs(keras.Sequential([keras.layers.Dense(1)])) is None


def test_a_callback_finds_those_beside_it():
    class Curious(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.found = callbacks_beside(self)

    curious, other = Curious(), keras.callbacks.Callback()
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 1)), np.ones(2), verbose=0, callbacks=[other, curious])
    assert curious in curious.found
    assert other in curious.found
    assert callbacks_beside(other) == [other]


def test_metrics_are_ordered_as_evaluate_does():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", keras.metrics.MeanSquaredError(name="first")])
    x = np.ones((4, 2), "float32")
    expected = model.evaluate(x, x[:, :1], verbose=0)
    logs = model.evaluate(x, x[:, :1], verbose=0, return_dict=True)
    assert order_metrics(model, dict(sorted(logs.items()))) == expected


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no sparse tensors there.")
def test_sparse_matrices_of_scipy_become_tensors():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    dense = np.eye(3, dtype="float32")
    tensor = from_scipy(scipy_sparse.csr_matrix(dense))
    assert keras.ops.is_tensor(tensor)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), dense)
    assert from_scipy(dense) is dense


def test_a_graph_is_found_in_a_model_that_has_one():
    inputs = keras.Input((3,))
    layer = keras.layers.Dense(2)
    functional = keras.Model(inputs, layer(inputs))
    for model in (functional, keras.Sequential([inputs, keras.layers.Dense(2)])):
        graph = functional_graph(model)
        assert len(graph.inputs) == 1
        assert any(isinstance(each, keras.layers.Dense) for each in graph.operations)
    assert functional_graph(layer) is None
    assert layer._inbound_nodes[0].input_tensors[0] is inputs
    assert functional.outputs[0]._keras_history.operation is layer


def test_a_resize_by_the_operation_is_that_of_the_function():
    images = np.arange(16.0, dtype="float32").reshape(1, 4, 4, 1)
    expected = keras.ops.image.resize(images, (8, 6))
    received = image_operations().Resize((8, 6)).call(images)
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (received, expected)))
    assert image_operations().resize is keras.ops.image.resize


def test_a_mask_that_a_layer_sets_is_not_replaced():
    class Shortened(keras.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None):
            return set_mask(inputs[:, -1:] * 1, None if mask is None else mask[:, -1:])

    inputs = keras.layers.Masking()(np.array([[[0.0], [1.0]]], "float32"))
    mask = keras.ops.convert_to_numpy(Shortened()(inputs)._keras_mask)
    np.testing.assert_array_equal(mask, [[True]])
