"""
Title: Pretrain an encoder on real text
Author: The keras_deepseek authors
Date created: 2026/11/25
Last modified: 2026/11/28
Description: Packed rows, half precision, a schedule, checkpoints, and a training that is resumed.
Time: 4 minutes on two cores
Install: "keras_deepseek[pictures,tensorboard]"
"""

"""
A small encoder learns to fill in masked words of Python's own reference, which ships with Python.
The text is the same on all three backends: set `KERAS_BACKEND` to `tensorflow`, `jax` or `torch`.
"""

import re
import tempfile
from collections import Counter
from pydoc_data import topics

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

from keras_deepseek.callbacks import MetricsLog, TensorBoardEvents, ThroughputMeter
from keras_deepseek.layers import (
    Dense,
    Embedding,
    LayerNorm,
    MaskedPositionHead,
    MultiHeadAttention,
)
from keras_deepseek.training import (
    Trainer,
    WarmupDecay,
    gather_masked_positions,
    pack_sequences,
)

LENGTH, VOCABULARY_SIZE, DIM = 64, 2_000, 64
PADDING, MASK, UNKNOWN, IGNORED = 0, 1, 2, -100

"""
## Documents of many lengths

Every second paragraph is a document, and a word or a sign a token. One in seven is masked.
"""

text = " \n\n".join(topics.topics[name].lower() for name in sorted(topics.topics))
documents = [re.findall(r"\w+|[^\w\s]", each)[:LENGTH] for each in re.split(r"\n\s*\n", text)]
documents = [document for document in documents[::2] if len(document) > 7]
counts = Counter(word for document in documents for word in document)
words = [word for word, _ in counts.most_common(VOCABULARY_SIZE - 3)]
ids = {word: number for number, word in enumerate(words, start=3)}

rng = np.random.default_rng(0)
token_ids, targets = [], []
for document in documents:
    whole = np.array([ids.get(word, UNKNOWN) for word in document])
    is_masked = rng.random(len(whole)) < 0.15
    token_ids.append(np.where(is_masked, MASK, whole))
    targets.append(np.where(is_masked, whole, IGNORED))

"""
## Rows without padding

`pack_sequences` puts several documents into one row, and says of each token to which of them it
belongs. The head needs the masked positions alone.
"""

packed = pack_sequences(
    {"token_ids": token_ids, "targets": targets}, LENGTH, padding={"targets": IGNORED}, seed=0
)
positions, labels = gather_masked_positions(packed.pop("targets"), masks_per_sequence=24)
inputs = {**packed, "mask_positions": positions}
share = np.mean(packed["token_ids"] != PADDING)
print(f"{len(documents)} documents in {len(labels)} rows, {share:.1%} of them tokens")

"""
## A model of plain layers

A token sees those of its own document, by the mask that `segment_ids` give.
"""


def build_model():
    tensors = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "segment_ids", "positions", "mask_positions")
    }
    table = Embedding(VOCABULARY_SIZE, DIM, name="table")
    hidden = table(tensors["token_ids"]) + Embedding(LENGTH, DIM)(tensors["positions"])
    segments = tensors["segment_ids"]
    sees = ops.equal(ops.expand_dims(segments, 2), ops.expand_dims(segments, 1))
    for _ in range(2):
        normal = LayerNorm()(hidden)
        hidden = hidden + MultiHeadAttention(4, DIM // 4)(normal, normal, attention_mask=sees)
        inner = Dense(4 * DIM, activation="gelu")(LayerNorm()(hidden))
        hidden = hidden + Dense(DIM)(inner)
    head = MaskedPositionHead(VOCABULARY_SIZE, intermediate_activation="gelu")
    return keras.Model(tensors, head(LayerNorm()(hidden), tensors["mask_positions"]))


"""
## A training that may be killed

The rate warms up and decays, gradients are clipped by their global norm, a step that is not finite
is left out, and there is a checkpoint every 25 steps. The same function starts the training and
goes on with it. Events for TensorBoard, lines of JSON and the throughput are plain callbacks.
"""

BATCH_SIZE, EPOCHS = 16, 3
NUM_STEPS = EPOCHS * -(-len(labels) // BATCH_SIZE)
folder = tempfile.mkdtemp(prefix="pretraining_")


def make_trainer(name, *callbacks):
    return Trainer(
        build_model,
        optimizer=keras.optimizers.AdamW(
            WarmupDecay(5e-3, total_steps=NUM_STEPS, warmup_steps=NUM_STEPS // 10)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED),
        fp16_enabled=True,
        gradient_clip=("global_norm", 1.0),
        guard="skip",
        checkpoint_dir=f"{folder}/{name}",
        checkpoint_every=25,
        seed=1,
        callbacks=[
            ThroughputMeter(tokens_per_sample=LENGTH),
            TensorBoardEvents(f"{folder}/{name}_events"),
            MetricsLog(f"{folder}/{name}.jsonl", every=0),
            *callbacks,
        ],
    )


def fit(trainer):
    history = trainer.fit(
        inputs, labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=2, resume=True
    )
    return history.history["loss"]


"""
What does a step hold in memory? Weights, gradients and the optimizer's variables, and what the
forward pass keeps for the backward pass.
"""

trainer = make_trainer("left_alone")
print(trainer.measure_memory(inputs, labels, BATCH_SIZE))
losses = fit(trainer)

"""
## Killed, and resumed

What is raised in the 60th step stands for the end of the process. A trainer that is made anew, as
the next process would, goes on from the checkpoint of step 50, and ends with the very same losses.
"""


class Failure(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == 60:
            raise KeyboardInterrupt


try:
    fit(make_trainer("killed", Failure()))
except KeyboardInterrupt:
    resumed = fit(make_trainer("killed"))

print(f"{keras.backend.backend()}: loss {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
plt.plot(range(1, EPOCHS + 1), losses, label="left alone")
plt.plot(range(1, EPOCHS + 1), resumed, "o", label="killed and resumed")
plt.xlabel("epoch")
plt.ylabel("loss")
plt.legend()
plt.savefig("losses.png")
assert resumed == losses
assert losses[-1] < 0.85 * losses[0]
