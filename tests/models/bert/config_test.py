import dataclasses
import json

import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import BertConfig

CHECKPOINT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.01,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "transformers_version": "5.24.0",
}


def test_a_preset_is_completed_by_what_is_given():
    config = BertConfig.from_preset("tiny", vocabulary_size=30, dropout=0.5)
    assert (config.vocabulary_size, config.dropout, config.hidden_dim) == (30, 0.5, 128)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InvalidInputError, match="Unknown preset 'bas': did you mean 'base'"):
        BertConfig.from_preset("bas")


def test_it_is_the_same_after_json():
    config = BertConfig.from_preset("small", activation="relu")
    assert BertConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    "broken",
    [
        {"vocabulary_size": 0},
        {"hidden_dim": 1.5},
        {"num_layers": -1},
        {"max_length": True},
        {"dropout": 1.0},
        {"attention_dropout": -0.1},
        {"epsilon": -1e-3},
        {"initializer_range": 0},
        {"tie_word_embeddings": "yes"},
        {"num_heads": 7},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_what_was_expected(broken):
    (name,) = broken
    with pytest.raises(InvalidInputError, match=rf"`{name}` must .*, received "):
        BertConfig(**broken)


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(InvalidInputError, match="Unknown activation 'gelo': did you mean 'gelu'"):
        BertConfig(activation="gelo")


def test_a_checkpoints_config_says_all_of_it():
    config = BertConfig.from_checkpoint_config(CHECKPOINT)
    assert config == BertConfig(
        vocabulary_size=99,
        hidden_dim=12,
        num_layers=3,
        num_heads=4,
        intermediate_dim=20,
        activation="gelu_approximate",
        max_length=40,
        num_segments=3,
        dropout=0.2,
        attention_dropout=0.3,
        epsilon=1e-6,
        initializer_range=0.01,
        tie_word_embeddings=False,
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_approximate", "relu", "silu", "tanh"])
def test_what_is_written_is_read_as_the_same(activation):
    config = BertConfig.from_preset("tiny", activation=activation)
    written = config.to_checkpoint_config()
    assert written["architectures"] == ["BertForMaskedLM"]
    assert BertConfig.from_checkpoint_config(json.loads(json.dumps(written))) == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "roberta"}, "has model_type='roberta', and only 'bert' is supported"),
        ({"is_decoder": True}, "has is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"rope_theta": 1e4}, "unknown keys: 'rope_theta': 10000.0"),
        ({"pruned_heads": {"0": [1]}}, r"has pruned_heads=\{'0': \[1\]\}"),
        ({"hidden_act": "gelu_fast"}, "Unknown hidden_act 'gelu_fast': did you mean"),
    ],
)
def test_a_config_that_is_not_computed_here_is_refused_by_its_key(changed, message):
    with pytest.raises(InvalidInputError, match=message):
        BertConfig.from_checkpoint_config({**CHECKPOINT, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"pruned_heads": {}, "finetuning_task": None, "torchscript": False, "num_labels": 2},
        {"quantization_config": None, "transformers_weights": None, "is_encoder_decoder": None},
        {"_num_labels": 2, "_attn_implementation_autoset": True, "attn_implementation": "sdpa"},
        {"name_or_path": "bert-base-uncased", "_name_or_path": "x", "language": None},
    ],
)
def test_keys_that_change_nothing_are_passed_over(changed):
    config = BertConfig.from_checkpoint_config(CHECKPOINT)
    assert BertConfig.from_checkpoint_config({**CHECKPOINT, **changed}) == config
