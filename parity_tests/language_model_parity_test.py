"""Our language models against those of transformers, from the checkpoints that either writes."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from keras_deepseek import backend
from keras_deepseek.layers.heads.token_losses import compute_token_losses
from parity_tests.language_model_cases import CASES, FAMILIES
from parity_tests.training_losses import STEPS, train_ours, train_theirs
from parity_tests.written_checkpoints import (
    call_theirs,
    draw_batch,
    load_theirs,
    make_ours,
    make_theirs,
    perturb_ours,
    their_gradients,
    to_tensors,
    write_theirs,
)

LOGITS, GRADIENTS, LOSSES = 1e-4, 1e-3, 1e-4
NEW_TOKENS = 64
PADDED = [
    (family, case, side) for family, case in CASES for side in (None, *FAMILIES[family].sides)
]
PADDED_ONCE = [
    padded_case
    for padded_case in PADDED
    if padded_case[2] in (None, FAMILIES[padded_case[0]].sides[0])
]


def relative_error(actual, expected, mask=None):
    """The largest difference, over the largest number that is expected."""
    actual, expected = (np.asarray(array, "float64") for array in (actual, expected))
    if mask is not None:
        actual, expected = actual[mask > 0], expected[mask > 0]
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0))


def mean_loss(model, batch):
    tokens, mask = batch["token_ids"], batch["padding_mask"]
    losses = compute_token_losses(model(batch)[:, :-1], ops.convert_to_tensor(tokens[:, 1:]))
    counted = (mask[:, :-1] * mask[:, 1:]).astype("float32")
    return ops.sum(ops.multiply(losses, counted)) / float(counted.sum())


@pytest.mark.parametrize(("family", "case", "side"), PADDED)
def test_logits_are_those_of_transformers(family, case, side, tmp_path, record_property):
    theirs = make_theirs(FAMILIES[family], case)
    write_theirs(theirs, tmp_path)
    batch = draw_batch(theirs.config.vocab_size, side)
    with torch.no_grad():
        expected = call_theirs(theirs, batch)[0].numpy()
    ours = make_ours(FAMILIES[family], tmp_path)
    logits = ops.convert_to_numpy(ours(batch))
    error = relative_error(logits, expected, batch["padding_mask"])
    record_property("errors", f"logits {error:.1e}  {family}, {case}, padding {side}")
    assert error < LOGITS


@pytest.mark.parametrize(("family", "case", "side"), PADDED_ONCE)
def test_gradients_of_the_loss_are_those_of_transformers(
    family, case, side, tmp_path, record_property
):
    theirs = make_theirs(FAMILIES[family], case)
    write_theirs(theirs, tmp_path / "weights")
    batch = draw_batch(theirs.config.vocab_size, side)
    loss = call_theirs(theirs, batch)[1]
    loss.backward()
    expected = their_gradients(theirs, tmp_path / "gradients")

    ours = make_ours(FAMILIES[family], tmp_path / "weights")
    variables = ours.trainable_variables
    gradients = backend.current().compute.compute_gradients(
        lambda: mean_loss(ours, batch), [], variables
    )
    by_variable = dict(zip(map(id, variables), gradients[1], strict=True))
    actual = to_tensors(ours, by_variable, tmp_path / "weights")
    assert set(actual) == set(expected)
    assert relative_error(ops.convert_to_numpy(mean_loss(ours, batch)), loss.item()) < LOSSES
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.get)
    record_property("errors", f"gradient {errors[worst]:.1e}  {family}, {case}, {worst}")
    assert errors[worst] < GRADIENTS, worst


@pytest.mark.parametrize(("family", "case"), CASES)
def test_transformers_loads_what_we_write_and_gives_the_same_logits(
    family, case, tmp_path, record_property
):
    theirs = make_theirs(FAMILIES[family], case)
    write_theirs(theirs, tmp_path / "theirs")
    ours = make_ours(FAMILIES[family], tmp_path / "theirs")
    perturb_ours(ours)
    ours.save_to_preset(tmp_path / "ours", verbose=False)
    loaded, report = load_theirs(tmp_path / "ours")
    assert not any(report.values()), report
    batch = draw_batch(loaded.config.vocab_size, None)
    with torch.no_grad():
        expected = call_theirs(loaded.eval(), batch)[0].numpy()
    error = relative_error(ops.convert_to_numpy(ours(batch)), expected)
    record_property("errors", f"way back {error:.1e}  {family}, {case}")
    assert error < LOGITS


@pytest.mark.parametrize(("family", "case"), CASES)
def test_greedy_generation_is_that_of_transformers(family, case, tmp_path, record_property):
    theirs = make_theirs(FAMILIES[family], case)
    write_theirs(theirs, tmp_path)
    # With padding on the left, which transformers' V4 takes for tokens.
    side = "left" if "left" in FAMILIES[family].sides else None
    batch = draw_batch(theirs.config.vocab_size, side)
    tokens, mask = (torch.from_numpy(array).long() for array in batch.values())
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
    )[:, tokens.shape[1] :].tolist()
    ours = make_ours(FAMILIES[family], tmp_path)
    prompts = [row[is_real > 0].tolist() for row, is_real in zip(*batch.values(), strict=True)]
    actual = ours.generate(
        prompts, max_new_tokens=NEW_TOKENS, stop_token_ids=None, strip_prompt=True
    )
    record_property("errors", f"{NEW_TOKENS} tokens of {len(actual)} rows  {family}, {case}")
    assert [list(map(int, row)) for row in actual] == expected


def draw_batches(vocabulary_size):
    """Three batches again and again, so that there is something to learn."""
    return [draw_batch(vocabulary_size, None, seed=step % 3) for step in range(STEPS)]


def shift(token_ids, padding_mask):
    """Inputs and the tokens that follow them."""
    return (
        {"token_ids": token_ids[:, :-1], "padding_mask": padding_mask[:, :-1]},
        token_ids[:, 1:],
    )


@pytest.mark.parametrize("family", list(FAMILIES))
def test_twenty_steps_of_training_have_the_losses_of_transformers(
    family, tmp_path, record_property
):
    case = next(iter(FAMILIES[family].cases))
    theirs = make_theirs(FAMILIES[family], case)
    write_theirs(theirs, tmp_path)
    ours = make_ours(FAMILIES[family], tmp_path)
    batches = draw_batches(theirs.config.vocab_size)
    expected = train_theirs(theirs, lambda batch: call_theirs(theirs, batch)[1], batches)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = train_ours(ours, loss, [shift(**batch) for batch in batches])
    errors = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
    record_property("errors", f"20 losses {max(errors):.1e}  {family}, {expected[-1]:.4f} at last")
    assert max(errors) < LOSSES
    assert expected[-1] < 0.9 * expected[1]  # Of the same batch, six rounds before.
