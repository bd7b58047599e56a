"""BERT beside that of transformers while it runs: other seeds, the way back, and twenty steps."""

import keras
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models import BertConfig, BertMaskedLM
from parity_tests.training_losses import STEPS, train_ours, train_theirs
from tests.oracles.golden.models.make_bert_masked_lm import (
    CASES,
    compute_logits,
    draw_inputs,
    make_model,
    run_case,
)
from tests.oracles.model_parity import check_case, read_config, relative_error


def to_arrays(inputs):
    return {name: tensor.numpy().astype("int32") for name, tensor in inputs.items()}


def check_logits(ours, theirs):
    inputs = draw_inputs(theirs)
    real = inputs["padding_mask"].numpy()[..., None]
    with torch.no_grad():
        expected = compute_logits(theirs, inputs).numpy() * real
    logits = keras.ops.convert_to_numpy(ours(to_arrays(inputs))) * real
    error = relative_error(logits, expected)
    assert error < 1e-4
    return error


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_transformers_computes(name, seed, record_property):
    torch.manual_seed(seed)
    case = run_case(name)
    model = BertMaskedLM(BertConfig.from_checkpoint_config(read_config(case)))
    logits, gradients = check_case(model, model.checkpoint_entries(), case)
    record_property("errors", f"{logits:.1e}  {gradients:.1e}  seed {seed}  bert, {name}")


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_go_both_ways(name, tmp_path):
    torch.manual_seed(3)
    theirs = make_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = BertMaskedLM.from_preset(tmp_path / "theirs", verbose=False)
    check_logits(ours, theirs)

    for weight in ours.trainable_weights:
        noise = np.random.default_rng(0).normal(0, 0.1, weight.shape)
        weight.assign(keras.ops.convert_to_numpy(weight) + noise.astype("float32"))
    ours.save_to_preset(tmp_path / "ours", verbose=False)
    again, loading_info = BertForMaskedLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not loading_info["unexpected_keys"]
    assert not loading_info["missing_keys"]
    check_logits(ours, again.eval())


@pytest.mark.parametrize("name", ["decoder.weight", "decoder.bias"])
def test_a_tied_head_of_other_numbers_is_read_untied_as_transformers_reads_it(name, tmp_path):
    make_model("tied, gelu").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    copies = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }
    copies = {name: tensor.clone() for name, tensor in copies.items()}
    save_file({**tensors, **copies}, path, metadata={"format": "pt"})
    check_logits(
        BertMaskedLM.from_preset(tmp_path, verbose=False),
        BertForMaskedLM.from_pretrained(tmp_path).eval(),
    )
    copies[f"cls.predictions.{name}"] *= 3
    save_file({**tensors, **copies}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="give tie_word_embeddings=False"):
        BertMaskedLM.from_preset(tmp_path, verbose=False)
    theirs = BertForMaskedLM.from_pretrained(tmp_path).eval()
    changed = theirs.get_parameter(f"cls.predictions.{name}")
    assert torch.equal(changed, copies[f"cls.predictions.{name}"])
    check_logits(
        BertMaskedLM.from_preset(tmp_path, verbose=False, tie_word_embeddings=False), theirs
    )


@pytest.mark.parametrize("name", list(CASES)[:2])
def test_twenty_steps_have_the_same_losses(name, tmp_path, record_property):
    torch.manual_seed(4)
    theirs = make_model(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = BertMaskedLM.from_preset(
        tmp_path / "theirs", verbose=False, dropout=0.0, attention_dropout=0.0
    )
    batches = []
    for _ in range(STEPS):
        inputs = draw_inputs(theirs)
        targets = torch.randint(0, theirs.config.vocab_size, inputs["token_ids"].shape)
        is_target = (torch.rand(targets.shape) < 0.5) & (inputs["padding_mask"] == 1)
        batches.append((inputs, torch.where(is_target, targets, -100)))

    def compute_loss(batch):
        inputs, targets = batch
        logits = compute_logits(theirs, inputs)  # In inference mode there is no dropout.
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100
        )

    expected = train_theirs(theirs, compute_loss, batches)
    losses = train_ours(
        ours,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100),
        [(to_arrays(inputs), targets.numpy()) for inputs, targets in batches],
    )
    error = np.abs(np.subtract(losses, expected)).max() / np.abs(expected).max()
    record_property("errors", f"{error:.1e}  losses of {STEPS} steps  bert, {name}")
    assert error < 1e-4
