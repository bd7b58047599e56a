"""Folders that transformers reads and a plain `save_pretrained` of its own does not make."""

import shutil

import numpy as np
import pytest
import torch
from keras import ops

from parity_tests.language_model_cases import FAMILIES
from parity_tests.written_checkpoints import load_theirs, make_ours, make_theirs

V3 = FAMILIES["deepseek_v3"]
TOLERANCE = 1e-4
LENGTH = 40


def draw_tokens(theirs):
    return np.random.default_rng(0).integers(0, theirs.config.vocab_size, (2, LENGTH))


def their_logits(theirs):
    with torch.no_grad():
        return theirs(input_ids=torch.from_numpy(draw_tokens(theirs))).logits.numpy()


def check_logits(ours, theirs):
    expected, tokens = their_logits(theirs), draw_tokens(theirs)
    found = ours({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    error = np.abs(ops.convert_to_numpy(found) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE


@pytest.mark.parametrize("are_shards_there", [False, True])
def test_one_file_that_was_saved_over_shards_is_read(are_shards_there, tmp_path):
    theirs = make_theirs(V3, "plain")
    theirs.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    shards = sorted((tmp_path / "a").glob("model-*.safetensors"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with torch.no_grad():
        theirs.lm_head.weight.normal_()
    theirs.save_pretrained(tmp_path / "a")  # It takes the shards away, and leaves the index.
    assert (tmp_path / "a" / "model.safetensors.index.json").exists()
    assert shards
    assert not shards[0].exists()
    if are_shards_there:
        for path in shards:
            shutil.copy(tmp_path / "b" / path.name, path)
    again = load_theirs(tmp_path / "a")[0]
    assert torch.equal(again.lm_head.weight, theirs.lm_head.weight)
    check_logits(make_ours(V3, tmp_path / "a"), theirs)
