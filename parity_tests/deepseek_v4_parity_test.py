"""What of DeepSeek-V4 the table of models does not show: long texts, generation, padding, names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from keras import ops

from parity_tests.language_model_cases import HEAVY, SPARSE, V4
from parity_tests.language_model_parity_test import LOGITS, relative_error
from parity_tests.written_checkpoints import (
    call_theirs,
    draw_batch,
    load_theirs,
    make_ours,
    make_theirs,
    read_tensors,
    write_theirs,
)

PUBLISHED_RATES = {"compress_rates": {SPARSE: 4, HEAVY: 128}, "sliding_window": 16}
NEW_TOKENS = 64


def make_pair(tmp_path, case="plain", **sizes):
    """Returns a model of transformers and ours of the folder that it wrote."""
    family = replace(V4, cases={case: sizes}) if sizes else V4
    theirs = make_theirs(family, case)
    write_theirs(theirs, tmp_path)
    return theirs, make_ours(family, tmp_path)


def draw_text(batch_size, length, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 61, (batch_size, length)).astype("int32")
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}


def logits_of(model, batch):
    with torch.no_grad():
        return call_theirs(model, batch)[0].numpy()


@pytest.mark.parametrize("length", [3, 127, 128, 300])
def test_logits_of_texts_shorter_and_longer_than_the_published_windows(
    length, tmp_path, record_property
):
    theirs, ours = make_pair(tmp_path, **PUBLISHED_RATES, max_position_embeddings=512)
    batch = draw_text(2, length)
    error = relative_error(ops.convert_to_numpy(ours(batch)), logits_of(theirs, batch))
    record_property("errors", f"logits {error:.1e}  rates of 4 and 128, {length} tokens")
    assert error < LOGITS


@pytest.mark.parametrize("case", list(V4.cases))
def test_greedy_generation_gives_the_tokens_of_transformers(case, tmp_path, record_property):
    theirs, ours = make_pair(tmp_path, case)
    prompt = draw_text(2, 7)["token_ids"] % theirs.config.vocab_size
    with torch.no_grad():
        expected = theirs.generate(
            torch.from_numpy(prompt).long(),
            attention_mask=torch.ones(prompt.shape, dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    generated = ours.generate(prompt, max_new_tokens=NEW_TOKENS, stop_token_ids=None)
    np.testing.assert_array_equal(generated, expected.numpy())
    record_property("errors", f"{NEW_TOKENS} tokens the same  {case}")


def test_padding_on_the_left_changes_what_transformers_computes_and_not_what_we_do(
    tmp_path, record_property
):
    theirs, ours = make_pair(tmp_path)
    batch = draw_batch(61, "left")
    mask = batch["padding_mask"]
    positions = torch.from_numpy(np.maximum(np.cumsum(mask, axis=1) - 1, 0)).long()
    with torch.no_grad():
        padded = theirs(
            input_ids=torch.from_numpy(batch["token_ids"]).long(),
            attention_mask=torch.from_numpy(mask).long(),
            position_ids=positions,
        ).logits.numpy()
    logits = ops.convert_to_numpy(ours(batch))
    for row, real in enumerate(mask > 0):
        alone = {name: array[row : row + 1, real] for name, array in batch.items()}
        expected = logits_of(theirs, alone)[0]
        assert relative_error(logits[row, real], expected) < LOGITS
        difference = relative_error(padded[row, real], expected)
        record_property("errors", f"transformers, {int((~real).sum())} padded: {difference:.1e}")
        # Its windows begin at the first slot, be it padding or not.
        assert (difference > 0.01) == (not real.all())


def test_tensors_by_the_names_of_transformers_are_read(tmp_path):
    theirs = make_theirs(V4, "plain")
    theirs.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in read_tensors(tmp_path)
    batch = draw_text(2, 13)
    ours = make_ours(V4, tmp_path)
    assert relative_error(ops.convert_to_numpy(ours(batch)), logits_of(theirs, batch)) < LOGITS


def test_transformers_passes_over_the_layers_that_predict_further_tokens(tmp_path):
    write_theirs(make_theirs(V4, "plain"), tmp_path / "theirs")
    plain = make_ours(V4, tmp_path / "theirs")
    config = plain.config.to_checkpoint_config()
    further = type(plain)(
        type(plain.config).from_checkpoint_config(config, num_prediction_layers=1)
    )
    further.backbone.set_weights(plain.backbone.get_weights())
    further.save_to_preset(tmp_path / "ours", verbose=False)
    assert any(name.startswith("mtp.0.") for name in read_tensors(tmp_path / "ours"))
    loaded, report = load_theirs(tmp_path / "ours")
    assert not any(report.values()), report
    batch = draw_text(2, 13)
    error = relative_error(ops.convert_to_numpy(further(batch)), logits_of(loaded.eval(), batch))
    assert error < LOGITS
