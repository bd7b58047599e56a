import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.models.sequential_recommender.sequential_recommender_backbone import HistoryMask


def expected_mask(items):
    length = items.shape[1]
    is_earlier = np.tril(np.ones((length, length), bool), -1) & (items != 0)[:, None, :]
    return is_earlier | np.eye(length, dtype=bool)


def test_items_see_themselves_and_the_real_ones_before_them():
    items = np.array([[0, 0, 3, 5], [1, 0, 2, 4]])
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(HistoryMask()(items)), expected_mask(items)
    )


def test_compiled_for_several_lengths_it_is_the_same():
    inputs = keras.Input((None,), dtype="int32", name="items")
    model = keras.Model(inputs, HistoryMask()(inputs))
    infer = backend.current().inference.compile_inference(NamedModel(model))
    for length in (3, 5):
        items = np.random.default_rng(0).integers(0, 3, (2, length)).astype("int32")
        (mask,) = infer({"items": items}).values()
        np.testing.assert_array_equal(mask, expected_mask(items))
