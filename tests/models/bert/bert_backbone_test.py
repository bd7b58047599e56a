import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.models import BertBackbone, BertConfig
from keras_deepseek.testing import assert_close


def make_config(**changes):
    sizes = {"hidden_dim": 8, "num_layers": 2, "num_heads": 2, "intermediate_dim": 12}
    return BertConfig(**{"vocabulary_size": 20, "max_length": 8, **sizes, **changes})


def draw_inputs(batch_size=2, length=5, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 20, (batch_size, length)).astype("int32")
    mask = np.ones_like(tokens)
    mask[0, length - 2 :] = 0
    segments = rng.integers(0, 2, tokens.shape).astype("int32")
    return {"token_ids": tokens, "padding_mask": mask, "segment_ids": segments}


def compute(model, inputs):
    return keras.ops.convert_to_numpy(model(inputs))


def test_padding_changes_nothing_of_what_is_real():
    backbone, inputs = BertBackbone(make_config()), draw_inputs()
    short = {name: array[:1, :3] for name, array in inputs.items()}
    assert_close(compute(backbone, inputs)[:1, :3], compute(backbone, short))
    other = {**inputs, "token_ids": inputs["token_ids"].copy()}
    other["token_ids"][0, 3:] = 7
    assert_close(compute(backbone, other)[0, :3], compute(backbone, inputs)[0, :3])


@pytest.mark.parametrize("name", ["token_ids", "segment_ids"])
def test_tokens_and_segments_reach_every_token_of_their_sequence(name):
    backbone, inputs = BertBackbone(make_config()), draw_inputs()
    other = {**inputs, name: inputs[name].copy()}
    other[name][1, 0] = (other[name][1, 0] + 1) % 2
    changed = np.abs(compute(backbone, other) - compute(backbone, inputs)).max(axis=-1)
    assert np.all(changed[1] > 0)
    assert np.all(changed[0] == 0)


def test_a_padding_mask_of_booleans_is_one_of_integers():
    backbone, inputs = BertBackbone(make_config()), draw_inputs()
    as_booleans = {**inputs, "padding_mask": inputs["padding_mask"].astype(bool)}
    assert_close(compute(backbone, as_booleans), compute(backbone, inputs))


def test_compiled_for_several_lengths_it_computes_the_same():
    backbone = BertBackbone(make_config())
    infer = backend.current().inference.compile_inference(NamedModel(backbone))
    for length in (3, 8):
        inputs = draw_inputs(length=length)
        (outputs,) = infer(inputs).values()
        assert_close(outputs, compute(backbone, inputs))


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(InvalidInputError, match="has 8 positions, and received sequences of 9"):
        BertBackbone(make_config())(draw_inputs(length=9))


def test_tables_of_one_shape_do_not_start_equal():
    backbone = BertBackbone(make_config(num_segments=20, max_length=20))
    tokens, segments, positions = (
        keras.ops.convert_to_numpy(layer.embeddings)
        for layer in (
            backbone.token_embedding,
            backbone.segment_embedding,
            backbone.position_embedding,
        )
    )
    assert np.any(tokens != segments)
    assert np.any(tokens != positions)
    assert 0.01 < tokens.std() < 0.03


def test_the_round_trip_through_its_config_keeps_config_and_policy():
    backbone = BertBackbone(make_config(activation="relu"), dtype="mixed_bfloat16", name="body")
    revived = BertBackbone.from_config(backbone.get_config())
    assert revived.config == backbone.config
    assert revived.name == "body"
    assert revived.transformer_layers[0].compute_dtype == "bfloat16"
    assert [weight.path for weight in revived.weights] == [w.path for w in backbone.weights]
