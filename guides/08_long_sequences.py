"""
Title: Long sequences: sparse attention beside dense attention
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: A question about a long sequence, and what the answer costs as the sequence grows.
Time: 1 minute on two cores, 2 minutes with JAX
Install: "keras_deepseek[pictures]"
"""

"""
In dense attention each token looks at each other token, so twice the length costs four times as
much. Sparse attention looks at a few blocks of tokens only. Is what it skips missed? This guide
asks models for something that stands anywhere in a long sequence, and then measures how the time
grows.
"""

import time

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek import layers

NUM_KEYS, NUM_VALUES, NUM_NOISE, DIM = 8, 8, 16, 32
FIRST_PAIR, FIRST_NOISE = NUM_KEYS, NUM_KEYS + NUM_KEYS * NUM_VALUES
VOCABULARY_SIZE = FIRST_NOISE + NUM_NOISE
rng = np.random.default_rng(0)

"""
## A small retrieval task

A sequence is noise, in which eight pairs of a key and a value are hidden, one token each. The last
token is a question: one of the keys. The answer is the value that stands with this key. Who guesses
is right once in eight times.
"""


def draw(num_sequences, length):
    token_ids = rng.integers(FIRST_NOISE, VOCABULARY_SIZE, (num_sequences, length))
    positions = rng.permuted(np.tile(np.arange(length - 1), (num_sequences, 1)), axis=1)[
        :, :NUM_KEYS
    ]
    values = rng.integers(0, NUM_VALUES, (num_sequences, NUM_KEYS))
    pairs = FIRST_PAIR + NUM_VALUES * np.arange(NUM_KEYS) + values
    np.put_along_axis(token_ids, positions, pairs, axis=1)
    questions = rng.integers(0, NUM_KEYS, num_sequences)
    token_ids[:, -1] = questions
    return token_ids, values[np.arange(num_sequences), questions]


"""
## One model, three kinds of attention

- **Dense:** Keras's `MultiHeadAttention`. Every token sees all tokens.
- **Window:** `BlockSparseAttention` in which a token sees those nearby. The question can't see a
  pair that is far away.
- **Window and global block:** the same, and one block of tokens that sees everything and is seen by
  all. Here it is the last block, which holds the question.

Each is called with the same tensor as query and value, so that one replaces another.
"""

attentions = {
    "dense": lambda: layers.MultiHeadAttention(2, 16),
    "window": lambda: layers.BlockSparseAttention(2, head_dim=16, block_size=16, sliding_window=16),
    "window and global block": lambda: layers.BlockSparseAttention(
        2, head_dim=16, block_size=16, sliding_window=16, global_blocks=[-1]
    ),
}


def build(make_attention, length):
    token_ids = keras.Input((length,), dtype="int32")
    hidden = layers.Embedding(VOCABULARY_SIZE, DIM)(token_ids)
    normal = layers.LayerNorm()(hidden)
    hidden += make_attention()(normal, normal)
    hidden += layers.SwiGLU(2 * DIM)(layers.LayerNorm()(hidden))
    return keras.Model(token_ids, layers.Dense(NUM_VALUES)(layers.LayerNorm()(hidden)[:, -1]))


"""
## Does it find the answer?
"""

LENGTH = 256
train_data, (test_ids, test_answers) = draw(4096, LENGTH), draw(512, LENGTH)
accuracies = {}
for name, make_attention in attentions.items():
    keras.utils.set_random_seed(0)
    model = build(make_attention, LENGTH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    model.fit(*train_data, epochs=3, batch_size=32, verbose=0)
    accuracies[name] = model.evaluate(test_ids, test_answers, verbose=0)[1]
    print(f"{name}: {accuracies[name]:.1%} of the answers are right")

"""
## What does it cost?

One sequence at a time, with random weights, since the time does not depend on them. The first calls
compile the model, so they don't count. The layers take turns, and the median of several calls
leaves out those that something else on the machine has disturbed.
"""

lengths, times = (512, 1024, 2048, 4096, 8192), {name: [] for name in attentions}
for length in lengths:
    token_ids, _ = draw(1, length)
    models = {name: build(make_attention, length) for name, make_attention in attentions.items()}
    seconds = {name: [] for name in models}
    for _ in range(7):
        for name, model in models.items():
            start = time.perf_counter()
            model.predict_on_batch(token_ids)
            seconds[name].append(time.perf_counter() - start)
    for name, measured in seconds.items():
        times[name].append(1000 * np.median(measured[2:]))
    print(length, {name: f"{milliseconds[-1]:.1f} ms" for name, milliseconds in times.items()})

"""
## Look

On the right both axes are logarithmic. Dense attention gets steeper as its scores, a number for
each pair of tokens, outgrow all other work. Below about a thousand tokens the difference is small,
and dense attention is the simpler choice.
"""

_, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
colors = [f"C{number}" for number in range(len(attentions))]
bars = left_axis.barh(list(accuracies), list(accuracies.values()), color=colors)
left_axis.bar_label(bars, fmt="%.2f", label_type="center")
left_axis.axvline(1 / NUM_VALUES, color="black", linestyle="--", label="a guess")
left_axis.set(xlim=(0, 1), title=f"Right answers, {LENGTH} tokens")
left_axis.invert_yaxis()
left_axis.legend()
for color, (name, milliseconds) in zip(colors, times.items(), strict=True):
    right_axis.loglog(lengths, milliseconds, "o-", color=color, label=name)
right_axis.set_xticks(lengths, lengths)
right_axis.minorticks_off()
right_axis.set(xlabel="tokens", ylabel="milliseconds", title="Time of one sequence")
plt.savefig("long_sequences.png")

print(
    f"{keras.backend.backend()}: {times['dense'][-1] / times['window and global block'][-1]:.0f}x"
)
assert accuracies["dense"] > 0.7
assert accuracies["window and global block"] > 0.7
assert accuracies["window"] < 0.3
assert times["window and global block"][-1] < times["dense"][-1]

"""
`BlockSparseAttention` takes the weights of a trained `MultiHeadAttention`, so that a model can be
changed after training. The page on layers has a table of all attentions with the work that each
does and what its cache holds.
"""
