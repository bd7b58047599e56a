import keras
import numpy as np
import pytest

from keras_deepseek.testing.layer_subject import (
    AttachMask,
    LayerSubject,
    RecordMask,
    is_float,
    to_arrays,
    to_tensors,
)

DENSE = (keras.layers.Dense, {"units": 2})

MASK = np.array([[True, False, True]])


def test_one_shape_gives_one_array():
    subject = LayerSubject.from_shapes(*DENSE, (2, 3), "float32")
    assert subject.inputs.shape == (2, 3)
    assert subject.inputs.dtype == "float32"


def test_a_list_of_shapes_gives_a_list_with_a_dtype_each():
    subject = LayerSubject.from_shapes(*DENSE, [(2, 3), (2, 4)], ["float32", "int32"])
    assert [array.dtype.name for array in subject.inputs] == ["float32", "int32"]
    assert set(np.unique(subject.inputs[1])) <= {0, 1}


def test_a_dict_of_shapes_gives_the_arguments_of_call():
    shapes = {"query": (2, 3, 4), "value": (2, 5, 4)}
    subject = LayerSubject.from_shapes(
        keras.layers.MultiHeadAttention, {"num_heads": 1, "key_dim": 2}, shapes, "float32"
    )
    layer = subject.make_layer()
    (outputs,) = to_arrays(subject.call(layer, to_tensors(subject.inputs)))
    assert outputs.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ((2, 3), (2, 3)),
        ([(2, 4), (2, 3)], (2, 4)),
        ({"query": (2, 5), "key": (2, 3)}, (2, 5)),
    ],
)
def test_the_first_input_is_the_first_as_written(shapes, expected):
    subject = LayerSubject.from_shapes(*DENSE, shapes, "float32")
    assert subject.first_input.shape == expected
    replaced = subject.replace_first_input(to_tensors(np.zeros(expected, "float32")))
    zeros = [not array.any() for array in to_arrays(replaced)]
    assert sum(zeros) == 1


@pytest.mark.parametrize(
    ("shapes", "dtype", "single_shape"),
    [
        ((2, 3), "float32", None),
        ((2, 3, 4), "float32", (2, 1, 4)),
        ((2, 3), "int32", (2, 1)),
        ((2, 3, 4, 5), "float32", None),
        ({"x": (2, 5, 3), "places": (2, 5)}, {"x": "float32", "places": "int32"}, (2, 1)),
        ({"x": (2, 5, 3), "few": (2, 4)}, {"x": "float32", "few": "int32"}, (2, 4)),
    ],
)
def test_small_inputs_are_an_empty_batch_and_a_sequence_of_one(shapes, dtype, single_shape):
    small = LayerSubject.from_shapes(*DENSE, shapes, dtype).small_inputs(keras.Layer())
    arrays, last = list(small.values()), shapes
    if isinstance(shapes, dict):
        arrays, last = [list(named.values())[-1] for named in arrays], list(shapes.values())[-1]
    assert [array.shape for array in arrays] == [(0, *last[1:])] + (
        [single_shape] if single_shape else []
    )
    assert is_float(arrays[-1]) or not arrays[-1].any()


def test_a_second_axis_of_one_size_is_no_length():
    layer = keras.Layer()
    layer.input_spec = keras.InputSpec(min_ndim=3, axes={-2: 3, -1: 4})
    small = LayerSubject.from_shapes(*DENSE, (2, 3, 4), "float32").small_inputs(layer)
    assert list(small) == ["an empty batch"]


def test_two_layers_are_made_alike_and_their_zeros_are_moved():
    subject = LayerSubject.from_shapes(*DENSE, (2, 3), "float32")
    first, second = (to_arrays(subject.make_layer().weights) for _ in range(2))
    for first_weight, second_weight in zip(first, second, strict=True):
        np.testing.assert_array_equal(first_weight, second_weight)
    assert np.all(first[1] != 0)


def test_the_model_takes_any_batch():
    subject = LayerSubject.from_shapes(*DENSE, (2, 3), "float32")
    model = subject.make_model(subject.make_layer())
    assert model.input_shape == (None, 3)


def test_the_compiled_layer_takes_any_batch_size_and_the_weights_of_the_moment():
    subject = LayerSubject.from_shapes(*DENSE, (2, 3), "float32")
    layer = subject.make_layer()
    compute = subject.compile(layer)
    old_outputs = compute(subject.inputs)
    np.testing.assert_allclose(compute(subject.inputs[:1])[0], old_outputs[0][:1], rtol=1e-6)
    layer.set_weights([2 * array for array in layer.get_weights()])
    np.testing.assert_allclose(compute(subject.inputs)[0], 2 * old_outputs[0], rtol=1e-6)


def test_the_objective_gives_integer_outputs_no_weight():
    class Both(keras.Layer):
        def call(self, inputs):
            return inputs, keras.ops.cast(inputs > 0, "int32")

    subject = LayerSubject.from_shapes(Both, {}, (2, 3), "float32")
    layer = subject.make_layer()
    objective = subject.make_objective(layer, lambda inputs: layer(to_tensors(inputs)))
    floats, integers = to_arrays(objective([subject.inputs]))
    assert np.all(floats != 0)
    assert not integers.any()


def test_bfloat16_is_a_float():
    assert is_float(keras.ops.ones((), "bfloat16"))
    assert not is_float(np.ones((), "int32"))


def test_an_attached_mask_arrives_through_a_layer_of_keras():
    recorder = RecordMask()
    x = AttachMask(MASK)(keras.ops.ones((1, 3, 2)))
    recorder(keras.layers.Dense(4)(x))
    np.testing.assert_array_equal(recorder.mask, MASK)


def test_a_dropped_mask_is_recorded_as_none():
    recorder = RecordMask()
    x = AttachMask(MASK)(keras.ops.ones((1, 3, 2)))
    recorder(keras.layers.GlobalAveragePooling1D()(x))
    assert recorder.mask is None


def test_values_pass_unchanged():
    x = np.random.default_rng(0).normal(size=(1, 3, 2)).astype("float32")
    outputs = RecordMask()(AttachMask(MASK)(keras.ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), x)
