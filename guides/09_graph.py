"""
Title: Compute less: rewrite the graph of a Keras model
Author: The keras_deepseek authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: A classifier by the first token and a LoRA training, before and after.
Time: 1 minute on two cores
Install: "keras_deepseek[pictures]"
"""

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek import graph
from keras_deepseek.layers import Dense, Embedding, MultiHeadAttention
from keras_deepseek.training import Trainer

"""
## A classifier that reads its first token

Nobody reads the other rows of the last block, but every framework computes them.
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
print(fast.report)  # What was rewritten, in which layer, and how much faster it is here.
before, after = (each.predict(tokens, verbose=0) for each in (model, fast))
np.testing.assert_allclose(before, after, atol=1e-4)

"""
## A LoRA training

This model reads all rows. Keras computes `W + A B` and its gradient in each step; `x W + (x A) B`
is cheaper. `mode="train"` has programs for training too, and without `measure` costs decide.
`Trainer(model, optimize_graph=True)` does the same within its step alone.
"""

model = keras.Model(inputs, Dense(1)(keras.ops.mean(x, axis=1)))
model.get_layer("hidden").enable_lora(4)  # After it, a model is optimized again.
fast = graph.optimize(model, tokens[:8], mode="train", measure=False)
print(fast.report)
history = Trainer(fast, optimizer="adam", loss="mse").fit(tokens, labels, epochs=4)
losses = history.history["loss"]
plt.plot(losses)
plt.savefig("losses.png")
assert losses[-1] < losses[0]
