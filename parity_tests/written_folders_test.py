"""Folders that transformers reads and a plain `save_pretrained` of its own does not make."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from keras import ops
from safetensors.torch import load_file, save_file

from keras_deepseek.errors import CheckpointError
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
    logits = ours({"token_ids": tokens, "padding_mask": np.ones_like(tokens)})
    error = np.abs(ops.convert_to_numpy(logits) - expected).max() / np.abs(expected).max()
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


TIED = {"deepseek_v2": "tied, biased", "deepseek_v4": "yarn, odd sizes, tied"}
HEADS = [(family, "lm_head.weight") for family in TIED] + [("deepseek_v4", "head.weight")]


def add_tensors(folder, tensors, dropped=()):
    path = folder / "model.safetensors"
    other_tensors = {
        name: tensor for name, tensor in load_file(path).items() if name not in dropped
    }
    save_file({**other_tensors, **tensors}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(("family", "head"), HEADS)
def test_a_tied_folder_may_hold_the_head_beside_the_table_or_alone(family, head, tmp_path):
    theirs = make_theirs(FAMILIES[family], TIED[family])
    theirs.save_pretrained(tmp_path)
    (table,) = [name for name in load_file(tmp_path / "model.safetensors") if "embed" in name]
    copy = {head: theirs.get_input_embeddings().weight.detach().clone()}
    for dropped in ((), (table,)):
        add_tensors(tmp_path, copy, dropped)
        again, report = load_theirs(tmp_path)
        assert not any(report.values()), report
        assert again.lm_head.weight is again.get_input_embeddings().weight
        check_logits(make_ours(FAMILIES[family], tmp_path), again.eval())


@pytest.mark.parametrize(("family", "name"), HEADS)
def test_a_tied_head_of_other_numbers_is_read_untied_as_transformers_reads_it(
    family, name, tmp_path
):
    theirs = make_theirs(FAMILIES[family], TIED[family])
    theirs.save_pretrained(tmp_path)
    head = torch.randn_like(theirs.get_input_embeddings().weight)
    add_tensors(tmp_path, {name: head})
    again = load_theirs(tmp_path)[0]
    assert torch.equal(again.lm_head.weight, head)
    with pytest.raises(CheckpointError, match="give tie_word_embeddings=False"):
        make_ours(FAMILIES[family], tmp_path)
    ours = FAMILIES[family].model_class()
    ours = ours.from_preset(tmp_path, verbose=False, tie_word_embeddings=False)
    check_logits(ours, again.eval())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # Of transformers.
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "deepseek_v32"])
def test_a_folder_without_shared_experts_is_read_and_written(family, tmp_path):
    family = replace(FAMILIES[family], cases={"none": {"n_shared_experts": 0}})
    theirs = make_theirs(family, "none")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = make_ours(family, tmp_path / "theirs")
    check_logits(ours, theirs)
    ours.save_to_preset(tmp_path / "ours", verbose=False)
    again, report = load_theirs(tmp_path / "ours")
    missing = report.pop("missing_keys")  # The empty ones, which it wrote itself.
    assert missing
    assert all(".shared_experts." in name for name in missing)
    assert not any(report.values()), report
    check_logits(ours, again.eval())


LENGTHS = [1.0, 1.5, 2.0]  # For each of the three pairs that are rotated.
SCALINGS = {
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"factor": 4.0, "short_factor": LENGTHS, "long_factor": LENGTHS[::-1]},
    "longrope by lengths": {
        "short_factor": LENGTHS,
        "long_factor": LENGTHS[::-1],
        "original_max_position_embeddings": 4,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "deepseek_v32"])
def test_a_scaling_without_its_trained_length_is_read(family, kind, tmp_path):
    """The tokens are more than the positions, where some kinds have other angles."""
    scaling = {"rope_type": kind.partition(" ")[0], "rope_theta": 30.0, **SCALINGS[kind]}
    cases = {kind: {"rope_parameters": scaling, "max_position_embeddings": LENGTH - 8}}
    family = replace(FAMILIES[family], cases=cases)
    theirs = make_theirs(family, kind)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": scaling}))
    ours = family.model_class().from_preset(tmp_path, verbose=False, max_length=None)
    check_logits(ours, load_theirs(tmp_path)[0].eval())


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_scaling_of_v4_without_its_trained_length_is_read(is_nested, tmp_path):
    scaling = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
    nested = {"main": dict(scaling), "compress": dict(scaling)}
    family = replace(
        FAMILIES["deepseek_v4"],
        cases={"yarn": {"rope_parameters": nested, "max_position_embeddings": LENGTH}},
    )
    theirs = make_theirs(family, "yarn")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for kind in ("main", "compress"):
        del values["rope_parameters"][kind]["original_max_position_embeddings"]
    if not is_nested:  # Of the layers that compress alone, with an angle of their own.
        values["compress_rope_theta"] = scaling["rope_theta"]
        values["rope_parameters"] = values["rope_parameters"]["compress"]
    path.write_text(json.dumps(values))
    check_logits(make_ours(family, tmp_path), load_theirs(tmp_path)[0].eval())
