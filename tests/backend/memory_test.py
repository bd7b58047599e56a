import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow waits ten seconds; the test of the search for a batch size has it.",
)
def test_a_tensor_that_does_not_fit_is_out_of_memory():
    with pytest.raises(Exception, match="llocat") as caught:
        ops.convert_to_numpy(ops.ones((2**21, 2**20)))
    assert current().is_out_of_memory(caught.value)


def test_memory_that_ran_out_is_told_from_other_errors():
    with pytest.raises(MemoryError) as memory_error:
        np.ones((2**21, 2**20))
    assert current().is_out_of_memory(memory_error.value)
    with pytest.raises(Exception, match=r"[Ss]hape|incompatible|[Dd]imension") as caught:
        ops.matmul(ops.ones((2, 3)), ops.ones((2, 3)))
    assert not current().is_out_of_memory(caught.value)


def test_memory_is_released():
    current().release_memory()
    assert float(ops.sum(ops.ones(3))) == 3.0
    assert keras.backend.backend() in current().__name__
