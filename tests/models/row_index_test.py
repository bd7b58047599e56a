"""Sequences that begin, wait and end by themselves in the rows of one cache."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek import backend, models
from keras_deepseek.testing import assert_close
from tests.oracles.language_models import perturb

CHUNK, SLOTS, ROWS = 8, 32, 3

FAMILIES = [
    pytest.param("DeepSeekV3", marks=pytest.mark.torch_alone),
    pytest.param("DeepSeekV2", marks=pytest.mark.nightly),
    "DeepSeekV32",
    "DeepSeekV4",
]


class Rows:
    """Greedy decoding of sequences in the rows of one cache, each with its own index."""

    def __init__(self, model):
        self.model, self.state = model, None
        compile_step = backend.current().inference.compile_with_state
        self._step = compile_step(self._compute, model.variables)
        self.texts, self.logits = {}, {}

    def _compute(self, state, tokens, index, mask):
        cache = self.model.make_cache(ROWS, SLOTS) if state is None else state
        logits, _, cache = self.model.call_with_cache(tokens, cache, index, padding_mask=mask)
        return ops.convert_to_tensor(logits), cache

    def _run(self, read):
        """Reads tokens of some rows; `read` has tokens and their slot by row."""
        length = CHUNK if any(len(tokens) > 1 for tokens, _ in read.values()) else 1
        tokens, index = np.ones((ROWS, length), "int32"), np.zeros(ROWS, "int32")
        mask = np.zeros((ROWS, length), bool)
        for row, text in self.texts.items():
            index[row] = len(text) - 1  # Of rows that wait.
        for row, (piece, slot) in read.items():
            tokens[row, : len(piece)], index[row] = piece, slot
            mask[row, : len(piece)] = True
        logits, self.state = self._step(self.state, tokens, index, mask)
        logits = ops.convert_to_numpy(logits)
        for row, (piece, _) in read.items():
            self.logits[row].append(logits[row, : len(piece)])
            self.texts[row].append(int(logits[row, len(piece) - 1].argmax()))

    def begin(self, row, prompt):
        self.texts[row], self.logits[row] = list(prompt), []
        self._run({row: (prompt, 0)})

    def go_on(self, rows, times):
        for _ in range(times):
            self._run({row: (self.texts[row][-1:], len(self.texts[row]) - 1) for row in rows})

    def end(self, row):
        """Returns the row's tokens, and the logits of all but the last of them."""
        return self.texts.pop(row), np.concatenate(self.logits.pop(row))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_is_as_alone_whatever_the_other_rows_do(family):
    keras.utils.set_random_seed(1)
    config = getattr(models, f"{family}Config").from_preset("tiny")
    model = perturb(getattr(models, f"{family}CausalLM")(config))
    prompts = [[5, 17, 3, 200, 9], [42, 7], [11, 30, 12, 60, 77, 100, 8, 1], [99, 4, 31]]
    rows = Rows(model)
    rows.begin(0, prompts[0])
    rows.go_on([0], 2)
    rows.begin(1, prompts[1])  # While the first is in the middle.
    rows.go_on([0, 1], 3)
    rows.begin(2, prompts[2])
    rows.go_on([1, 2], 2)  # The first waits.
    rows.go_on([0, 1, 2], 3)
    ended = [rows.end(1)]
    rows.go_on([0, 2], 2)
    rows.begin(1, prompts[3])  # In the place of the one that left.
    rows.go_on([0, 1, 2], 4)
    ended = [rows.end(0), *ended, rows.end(2), rows.end(1)]
    for prompt, (text, logits) in zip(prompts, ended, strict=True):
        assert text == model.generate(
            prompt, max_new_tokens=len(text) - len(prompt), stop_token_ids=None
        )
        ids = np.asarray([text[:-1]])
        whole = model({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        assert_close(logits, ops.convert_to_numpy(whole)[0], 2e-5)
