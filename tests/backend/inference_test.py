import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend import comparison_schedule, current
from keras_deepseek.backend.export.named_model import NamedModel


def draw(signature, batch_size, length):
    generator = np.random.default_rng(batch_size)
    shapes = {
        spec.name: [
            batch_size if axis == 0 else length if size is None else size
            for axis, size in enumerate(spec.shape)
        ]
        for spec in signature.inputs
    }
    return {
        spec.name: generator.integers(0, 5, shapes[spec.name]).astype(spec.dtype)
        for spec in signature.inputs
    }


def test_the_compiled_model_equals_predict_at_every_size(model):
    named = NamedModel(model)
    infer = backend.current().inference.compile_inference(named)
    for batch_size, length in ((1, 3), (5, 7)):
        inputs = draw(named.signature, batch_size, length)
        predicted = named.name_outputs(model.predict(named.pack_inputs(inputs), verbose=0))
        for name, array in infer(inputs).items():
            assert isinstance(array, np.ndarray)
            np.testing.assert_allclose(array, predicted[name], atol=1e-6, rtol=1e-5)


def test_changed_weights_are_seen(convolutional):
    named = NamedModel(convolutional)
    infer = backend.current().inference.compile_inference(named)
    inputs = draw(named.signature, 2, 1)
    old_outputs = infer(inputs)["output_0"]
    convolutional.set_weights([2 * weight for weight in convolutional.get_weights()])
    new_outputs = infer(inputs)["output_0"]
    assert np.abs(new_outputs - old_outputs).max() > 1e-4
    np.testing.assert_allclose(
        new_outputs, convolutional.predict(inputs["image"], verbose=0), atol=1e-6, rtol=1e-5
    )


class NumberedBatches(keras.layers.Layer):
    def build(self, _):
        self.number = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.number.assign_add(1.0)
        return x + self.number


def test_a_variable_that_a_layer_assigns_counts_in_the_next_call():
    model = keras.Sequential([keras.Input((2,)), NumberedBatches()])
    infer = backend.current().inference.compile_inference(NamedModel(model))
    x = {"input_0": np.zeros((1, 2), "float32")}
    assert [float(infer(x)["output_0"][0, 0]) for _ in range(3)] == [1.0, 2.0, 3.0]


def test_dropout_and_batch_statistics_are_those_of_inference():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dropout(0.9)]
    )
    infer = backend.current().inference.compile_inference(NamedModel(model))
    weights = model.get_weights()
    outputs = infer({"input_0": np.full((8, 4), 3.0, "float32")})["output_0"]
    np.testing.assert_allclose(outputs, 3.0, rtol=1e-2)
    for old_weight, new_weight in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old_weight, new_weight)


def test_a_batch_is_computed_at_its_own_sizes():
    """Keras's `TimeDistributed` takes the batch for the length in a graph where both are free."""
    inputs = keras.Input((None, 3))
    layer = keras.layers.TimeDistributed(keras.layers.Dense(2))
    named = NamedModel(keras.Model(inputs, layer(inputs)))
    batch = np.random.default_rng(0).normal(size=(2, 7, 3)).astype("float32")
    outputs = backend.current().inference.plain_inference(named)({"input_0": batch})["output_0"]
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(outputs, batch @ kernel + bias, atol=1e-6, rtol=1e-5)


def add_to_slot(variable):
    def function(state, update, slot):
        slots = ops.zeros((2, 4, 3)) if state is None else state["kept"]
        slots = current().inference.write_slots(slots, slot, update * variable)
        return {"sum": ops.sum(slots, axis=(1, 2))}, {"kept": slots, "none": None}

    return function


def test_a_state_goes_from_call_to_call():
    variable = keras.Variable(2.0)
    step = current().inference.compile_with_state(add_to_slot(variable), [variable])
    outputs, state = step(None, np.ones((2, 2, 3), "float32"), 0)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs["sum"]), [12, 12])
    for slot, total in ((2, 18), (3, 24), (3, 24), (0, 24)):
        outputs, state = step(state, np.ones((2, 1, 3), "float32"), slot)
        np.testing.assert_allclose(ops.convert_to_numpy(outputs["sum"]), [total] * 2)


def test_a_change_of_a_variable_is_seen():
    variable = keras.Variable(2.0)
    step = current().inference.compile_with_state(add_to_slot(variable), [variable])
    _, state = step(None, np.ones((2, 2, 3), "float32"), 0)
    _, state = step(state, np.ones((2, 1, 3), "float32"), 3)
    variable.assign(5.0)
    outputs, _ = step(state, np.ones((2, 1, 3), "float32"), 3)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs["sum"]), [12 + 15] * 2)


def test_a_compiled_function_traces_once_for_all_slots():
    traces = []

    def function(state, update, slot):
        traces.append(slot)
        return add_to_slot(1.0)(state, update, slot)

    step = current().inference.compile_with_state(function, [])
    _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    for slot in range(4):
        _, state = step(state, np.ones((2, 1, 3), "float32"), slot)
    # PyTorch runs the function as it is at first.
    assert len(traces) == (5 if keras.backend.backend() == "torch" else 2)


def test_weights_from_a_file_compile_nothing_again():
    """JAX, where such weights are bound to a device, and all that is computed from them."""
    variable = keras.Variable(2.0)
    current().compute.assign_array(variable, np.float32(3.0))
    step = current().inference.compile_with_state(add_to_slot(variable), [variable])
    for _ in range(2):
        _, state = step({"kept": ops.zeros((2, 4, 3)), "none": None}, ops.ones((2, 1, 3)), 3)
        step(state, ops.ones((2, 1, 3)), 3)
    if keras.backend.backend() == "jax":
        assert step.count_compilations() == 1


def test_a_state_is_written_where_it_lies():
    """TensorFlow and PyTorch; JAX gives the memory on by itself."""
    if keras.backend.backend() == "jax":
        return
    step = current().inference.compile_with_state(add_to_slot(1.0), [], make_model()[0])
    _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    _, state = step(state, np.ones((2, 1, 3), "float32"), 1)
    for slot in (2, 3, 0):
        _, new_state = step(state, np.ones((2, 1, 3), "float32"), slot)
        assert new_state["kept"] is state["kept"]


def test_slots_read_before_a_write_keep_their_values():
    """TensorFlow, which reads them without a copy."""
    if keras.backend.backend() != "tensorflow":
        return

    def function(state, update, slot):
        old_slots = None if state is None else ops.reshape(state["kept"], (-1,))
        _, new = add_to_slot(1.0)(state, update, slot)
        return {"before": old_slots, "after": ops.reshape(new["kept"], (-1,))}, new

    step = current().inference.compile_with_state(function, [])
    _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    read = []
    for slot in (1, 2, 3):
        outputs, state = step(state, np.ones((2, 1, 3), "float32"), slot)
        read.append(outputs)
    for number, outputs in enumerate(read):
        assert ops.convert_to_numpy(outputs["before"]).sum() == 6 * (number + 1)
        assert ops.convert_to_numpy(outputs["after"]).sum() == 6 * (number + 2)


def test_slots_are_written_beside_the_tensor_that_nobody_gave_away():
    slots = ops.zeros((1, 3, 2))
    written = current().inference.write_slots(slots, 1, ops.ones((1, 1, 2)))
    assert ops.convert_to_numpy(slots).sum() == 0
    np.testing.assert_array_equal(ops.convert_to_numpy(written)[0, :, 0], [0, 1, 0])


def make_model():
    """Returns a model that only holds a variable, and the variable, which is 2."""
    model = keras.Model()
    variable = model.add_weight(shape=(), initializer=keras.initializers.Constant(2.0))
    model.built = True
    return model, variable


def count_runs(function, calls=20):
    """Returns the outputs of calls that follow one another, and how often the function ran."""
    (model, variable), runs = make_model(), []

    def counted(state, *inputs):
        runs.append(len(inputs))
        return function(variable)(state, *inputs)

    step = current().inference.compile_with_state(counted, [variable], model)
    outputs, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    sums = []
    for number in range(calls):
        if number == calls - 3:
            variable.assign(3.0)
        update = np.full((2, 1, 3), number, "float32")
        outputs, state = step(state, update, number % 4)
        sums.append(float(ops.convert_to_numpy(outputs["sum"])[0]))
    return sums, len(runs)


def expect_sums(calls=20):
    slots, sums = np.asarray([2.0, 0, 0, 0]), []
    for number in range(calls):
        slots[number % 4] = number * (3.0 if number >= calls - 3 else 2.0)
        sums.append(slots.sum() * 3)
    return sums


def test_a_step_that_comes_often_is_no_longer_run_as_it_is_written():
    sums, runs = count_runs(add_to_slot)
    np.testing.assert_allclose(sums, expect_sums())
    assert runs < 20


def test_a_step_that_reads_its_numbers_is_run_as_it_is_written():
    if keras.backend.backend() != "torch":
        return  # The others can't compile it.

    def reading(variable):
        def function(state, update, slot):
            outputs, state = add_to_slot(variable)(state, update, slot)
            assert outputs["sum"][0].item() >= 0
            return outputs, state

        return function

    sums, runs = count_runs(reading)
    np.testing.assert_allclose(sums, expect_sums())
    assert runs >= 20


def test_a_step_that_adds_to_its_state_adds_once():
    def adding(variable):
        def function(state, update, slot):
            slots = ops.zeros((2, 4, 3)) if state is None else state["kept"]
            update = update * variable + slots[:, :1]
            slots = current().inference.write_slots(slots, 0, update)
            return {"sum": ops.sum(slots, axis=(1, 2))}, {"kept": slots}

        return function

    sums, runs = count_runs(adding)
    factors = np.where(np.arange(20) >= 17, 3.0, 2.0)
    np.testing.assert_allclose(sums, 3 * (2 + np.cumsum(factors * np.arange(20))))
    assert runs < 20


def test_what_a_recording_would_write_wrongly_is_found_before_it_is_used():
    if keras.backend.backend() != "torch":
        return  # The others compile numbers of Python into the step.
    runs = []

    def function(state, update, slot):
        runs.append(slot)
        _, state = add_to_slot(float(len(runs)))(state, update, slot)
        return {"sum": ops.sum(update)}, state

    step = current().inference.compile_with_state(function, [], make_model()[0])
    _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    for number in range(8):
        outputs, state = step(state, np.ones((2, 1, 3), "float32"), number % 4)
        assert float(outputs["sum"]) == 6
        written = ops.convert_to_numpy(state["kept"])[:, number % 4]
        np.testing.assert_array_equal(written, len(runs))
    assert runs[-3:] == [1, 2, 3]
    assert step.count_compilations() == 1


def test_a_step_that_differs_from_itself_by_rounding_is_recorded():
    if keras.backend.backend() != "torch":
        return  # The others compile all that a step does.
    runs, numbers = [], np.random.default_rng(0)

    def function(state, update, slot):
        runs.append(slot)
        noisy = current().inference.run_unrecorded(
            lambda x: x * (1 + 1e-6 * ops.convert_to_tensor(numbers.normal(size=x.shape))), update
        )
        return add_to_slot(1.0)(state, ops.cast(noisy, "float32"), slot)

    step = current().inference.compile_with_state(function, [], make_model()[0])
    _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    for number in range(20):
        _, state = step(state, np.ones((2, 1, 3), "float32"), number % 4)
    assert len(runs) < 20
    np.testing.assert_allclose(ops.convert_to_numpy(state["kept"]), 1.0, rtol=1e-4)


def test_a_comparison_without_memory_is_put_off(monkeypatch):
    if keras.backend.backend() != "torch":
        return
    torch = pytest.importorskip("torch")

    def fail(*_):
        raise torch.OutOfMemoryError("all is taken")

    monkeypatch.setattr(comparison_schedule, "_SHARE", 1e9)
    model, variable = make_model()
    step = current().inference.compile_with_state(add_to_slot(variable), [variable], model)
    _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
    sums = []
    for number in range(20):
        if number == 3:
            monkeypatch.setattr(torch.UntypedStorage, "clone", fail)
        outputs, state = step(state, np.full((2, 1, 3), number, "float32"), number % 4)
        sums.append(float(outputs["sum"][0]))
    np.testing.assert_allclose(sums, expect_sums(calls=23)[:20])


def test_nothing_is_compiled_after_the_calls_that_compile():
    inference, (model, variable) = current().inference, make_model()
    calls = inference.calls_to_compile()
    step = inference.compile_with_state(add_to_slot(variable), [variable], model)
    counts = []
    for length in (1, 2):
        _, state = step(None, np.ones((2, 1, 3), "float32"), 0)
        for number in range(calls + 4):
            _, state = step(state, np.ones((2, length, 3), "float32"), number % 3)
            counts.append(step.count_compilations())
    half = len(counts) // 2
    for part in (counts[:half], counts[half:]):
        assert set(part[calls - 1 :]) == {part[-1]}
    assert 0 < counts[half - 1] < counts[-1]


def test_a_step_compiled_by_shape_is_traced_once_a_shape():
    shapes = []

    def function(_, tokens):
        shapes.append(tuple(tokens.shape))
        return {"sum": ops.sum(tokens)}, {"kept": tokens}

    step = current().inference.compile_with_state(function, [])
    for length in (2, 2, 3):
        step(None, np.ones((1, length), "float32"))
    expected = (
        [(1, 2), (1, 3)] if current().inference.compiles_by_shape() else [(1, 2), (1, 2), (1, 3)]
    )
    assert shapes == expected
