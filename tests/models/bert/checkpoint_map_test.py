import fnmatch

import numpy as np
import pytest

from keras_deepseek.models import BertBackbone, BertConfig, BertMaskedLM
from keras_deepseek.models.bert.checkpoint_map import IGNORED_TENSORS, checkpoint_entries


def make_config(**changes):
    sizes = {"hidden_dim": 6, "num_layers": 2, "num_heads": 3, "intermediate_dim": 10}
    return BertConfig(vocabulary_size=11, max_length=5, **sizes, **changes)


@pytest.mark.parametrize("is_tied", [False, True])
def test_every_weight_has_one_entry_and_comes_back_as_it_was(is_tied):
    model = BertMaskedLM(make_config(tie_word_embeddings=is_tied))
    entries = model.checkpoint_entries()
    filled = [variable.path for entry in entries for variable in entry.variables]
    ours = [weight.path for weight in model.weights if "seed_generator" not in weight.path]
    assert sorted(filled) == sorted(ours)
    rng = np.random.default_rng(0)
    for entry in entries:
        drawn = rng.normal(size=entry.tensor_shapes()[0])
        tensors = [drawn] * len(entry.tensors)  # Two are the same one.
        back = entry.to_tensors(entry.to_variables(tensors))
        for tensor, returned in zip(tensors, back, strict=True):
            np.testing.assert_array_equal(returned, tensor)


def test_a_backbone_takes_the_same_tensors_without_those_of_the_head():
    of_task, of_backbone = (
        {name for entry in entries for name in entry.tensors}
        for entries in (
            BertMaskedLM(make_config()).checkpoint_entries(),
            checkpoint_entries(BertBackbone(make_config())),
        )
    )
    assert of_task - of_backbone == {
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    }
    assert of_backbone < of_task


def names_of(tensors=()):
    model = BertMaskedLM(make_config())
    return {name for entry in model.checkpoint_entries(tensors) for name in entry.tensors}


@pytest.mark.parametrize("has_prefix", [True, False])
@pytest.mark.parametrize("is_old", [True, False])
def test_names_of_published_checkpoints_are_those_of_the_entries(has_prefix, is_old):
    def spell(name):
        name = name if has_prefix else name.removeprefix("bert.")
        if is_old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        return name

    published = {spell(name) for name in names_of()}
    assert ("embeddings.LayerNorm.gamma" in published) == (is_old and not has_prefix)
    assert names_of({*published, "other.gamma"}) == published


def test_what_a_masked_language_model_has_no_use_for_is_passed_over():
    for name in (
        "bert.pooler.dense.weight",
        "pooler.dense.bias",
        "embeddings.position_ids",
        "cls.seq_relationship.weight",
    ):
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED_TENSORS)
    for name in names_of():
        assert not any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED_TENSORS)
