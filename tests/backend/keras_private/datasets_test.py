"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.datasets import (
    ArrayAdapter,
    DataAdapter,
    array_slices,
    batch_specs,
    cast_arrays,
    copied_batches,
    find_data_adapter,
    from_scipy,
    numpy_batches,
    py_dataset_batches,
    split_validation,
    tensorflow_specs,
)


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

    own_adapter = ArrayAdapter(x, shuffle=True)
    assert (own_adapter.num_rows, own_adapter.shuffles) == (6, True)
    assert own_adapter.structure is x
    (array,) = cast_arrays(adapter)
    assert array.dtype == keras.config.floatx()
    sparse = pytest.importorskip("scipy.sparse").csr_matrix(x)
    assert cast_arrays(find_data_adapter(sparse, **arguments)[1]) == [None]

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
    copies = [keras.ops.convert_to_numpy(array).tolist() for array, _, _ in batches]
    assert copies == [[index] * 3 for index in range(3)]
    assert keras.ops.convert_to_numpy(batches[0][1]).tolist() == [1.0]
    assert batches[0][2] is None


def test_tensorflow_s_specs_are_open_in_the_number_of_rows():
    tf = pytest.importorskip("tensorflow")
    spec = tf.TensorSpec((5, 1))
    from_keras, from_tensorflow, nothing = tensorflow_specs(
        (keras.KerasTensor((2, 3), "int32"), spec, None)
    )
    assert from_keras == tf.TensorSpec((None, 3), "int32")
    assert from_tensorflow is spec
    assert isinstance(nothing, tf.OptionalSpec)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras has no sparse tensors there.")
def test_sparse_matrices_of_scipy_become_tensors():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    dense = np.eye(3, dtype="float32")
    tensor = from_scipy(scipy_sparse.csr_matrix(dense))
    assert keras.ops.is_tensor(tensor)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), dense)
    assert from_scipy(dense) is dense
