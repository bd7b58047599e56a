import keras
import pytest

from keras_deepseek.models import enable_lora, merge_lora
from keras_deepseek.models.checkpoints.mapped_weights import MappedWeights
from keras_deepseek.models.compiled_functions import CompiledFunctions


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_function_is_made_once_and_anew_for_other_variables():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.mapped_weights = MappedWeights()  # As the models of this package have.
    functions, compiled_keys = CompiledFunctions(model), []

    def find(key):
        return functions.find(key, lambda: compiled_keys.append(key) or len(compiled_keys))

    assert [find("a"), find("b"), find("a"), find("b")] == [1, 2, 1, 2]
    enable_lora(model, rank=2)
    assert [find("b"), find("a"), find("b")] == [3, 4, 3]
    merge_lora(model)
    model.quantize("int8")
    assert [find("a"), find("a")] == [5, 5]
    assert compiled_keys == ["a", "b", "b", "a", "a"]
