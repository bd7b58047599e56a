import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.models import SequentialRecommenderBackbone, SequentialRecommenderConfig
from keras_deepseek.testing import assert_close


def make_backbone(dtype=None, **changes):
    sizes = {"hidden_dim": 8, "num_heads": 2, "intermediate_dim": 12, "max_length": 6}
    config = SequentialRecommenderConfig(**{"num_items": 20, **sizes, **changes})
    backbone = SequentialRecommenderBackbone(config, dtype=dtype)
    rng = np.random.default_rng(0)  # Fresh weights are so small that positions hardly count.
    for weight in backbone.trainable_weights:
        weight.assign(np.add(weight, rng.normal(0, 0.3, weight.shape)))
    return backbone


def compute(backbone, items):
    return keras.ops.convert_to_numpy(backbone({"item_ids": np.array(items, "int32")}))


def test_an_item_sees_none_behind_it():
    backbone = make_backbone()
    first, other = compute(backbone, [[1, 2, 3, 4]]), compute(backbone, [[1, 2, 9, 4]])
    assert_close(first[:, :2], other[:, :2])
    assert np.all(np.abs(first - other)[:, 2:].max(axis=-1) > 1e-3)


def test_padding_in_front_changes_nothing():
    backbone = make_backbone()
    assert_close(compute(backbone, [[0, 0, 7, 3, 9]])[:, 2:], compute(backbone, [[7, 3, 9]]))
    assert np.all(np.isfinite(compute(backbone, [[0, 0, 0]])))


def test_the_order_of_items_matters():
    backbone = make_backbone()
    first, other = compute(backbone, [[1, 2, 3]]), compute(backbone, [[2, 1, 3]])
    assert np.abs(first - other)[:, -1].max() > 1e-3


def test_compiled_for_several_lengths_it_computes_the_same():
    backbone = make_backbone()
    infer = backend.current().inference.compile_inference(NamedModel(backbone))
    for items in ([[1, 2, 3]], [[0, 4, 5, 6, 7, 8]]):
        (outputs,) = infer({"item_ids": np.array(items, "int32")}).values()
        assert_close(outputs, compute(backbone, items))


def test_a_history_that_is_too_long_is_refused():
    with pytest.raises(InvalidInputError, match="has 6 positions, and received sequences of 7"):
        compute(make_backbone(), [[1] * 7])


def test_the_round_trip_through_its_config_keeps_config_and_policy():
    backbone = make_backbone("mixed_bfloat16", activation="relu")
    revived = SequentialRecommenderBackbone.from_config(backbone.get_config())
    assert revived.config == backbone.config
    assert revived.transformer_layers[0].compute_dtype == "bfloat16"
    assert [weight.path for weight in revived.weights] == [w.path for w in backbone.weights]
