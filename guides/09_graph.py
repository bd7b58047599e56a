"""
Title: Compute less: rewrite the graph of a Keras model
Author: The keras_deepseek authors
Date created: 2026/11/29
Last modified: 2026/11/30
Description: A classifier by the first token and a LoRA training, before and after.
Time: 30 seconds on two cores
Install: "keras_deepseek[pictures]"
"""

"""
A compiler makes each operation of a model faster, but it computes all of them. `graph.optimize`
removes work: rows that nobody reads, and products in an expensive order. It returns a Keras model
with the same weights, and compares it with the original before you get it.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek import graph
from keras_deepseek.layers import Dense, Embedding, MultiHeadAttention
from keras_deepseek.training import Trainer

"""
## A classifier that reads its first token

Nobody reads the other rows of the last block, but every framework computes them. The report says
what was rewritten, in which layer, and how much faster it is here: each rewrite was timed, and only
those that pay are kept.
"""

keras.utils.set_random_seed(0)
tokens = np.random.default_rng(0).integers(0, 1000, (64, 128))
labels = tokens[:, :1] % 2
inputs = keras.Input((128,), dtype="int32")
x = Embedding(1000, 128)(inputs)
x += MultiHeadAttention(4, 32)(x, x)
x += Dense(128)(Dense(512, activation="gelu", name="hidden")(x))
model = keras.Model(inputs, Dense(1)(x[:, 0]))
fast = graph.optimize(model, tokens[:8])
print(fast.report)
expected, received = (network.predict(tokens, verbose=0) for network in (model, fast))
np.testing.assert_allclose(expected, received, atol=1e-4)

"""
## A LoRA training

This model reads all rows. A LoRA adds the product of two thin matrices, `A B`, to a frozen weight
`W`. Keras computes `W + A B` and its gradient in each step; `x W + (x A) B` is cheaper. With
`mode="train"` the training step is rewritten too. Without `measure`, the number of multiplications
decides, which is the same on every machine. `Trainer(model, optimize_graph=True)` does the same
within its step alone.
"""

model = keras.Model(inputs, Dense(1)(keras.ops.mean(x, axis=1)))
model.get_layer("hidden").enable_lora(4)  # After it, a model is optimized again.
fast_training = graph.optimize(model, tokens[:8], mode="train", measure=False)
print(fast_training.report)
trainer = Trainer(fast_training, optimizer="adam", loss="mse")
losses = trainer.fit(tokens, labels, epochs=4, verbose=2).history["loss"]

"""
## Look

The bars count the multiply-adds of one batch, those of the gradients included in training. How much
time that saves depends on the framework and the machine.
"""

reports = {"first token": fast.report, "LoRA training": fast_training.report}
work = np.array([report.multiply_adds for report in reports.values()]) / 1e6
_, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for shift, column, label in ((-0.2, 0, "original"), (0.2, 1, "optimized")):
    bars = axes.bar(np.arange(2) + shift, work[:, column], 0.4, label=label)
    axes.bar_label(bars, fmt="%.0f")
axes.set_xticks(range(2), list(reports))
axes.set(ylabel="millions of multiply-adds", title="The same outputs with less work")
axes.margins(y=0.15)
axes.legend(loc="upper left")
plt.savefig("multiply_adds.png")

print(f"{keras.backend.backend()}: {fast.report.speed_up:.2f} times as fast")
assert fast.report.passes is None or work[0, 1] < 0.8 * work[0, 0]  # None where nothing pays.
assert work[1, 1] < work[1, 0]
assert losses[-1] < losses[0]
