"""
Title: Train a small language model
Author: The keras_deepseek authors
Date created: 2026/11/27
Last modified: 2026/11/27
Description: A DeepSeek-V3 with balanced experts learns real text, and is tuned by a LoRA.
Time: 4 minutes on two cores
Install: "keras_deepseek[pictures]"
"""

"""
The model reads the reference that ships with Python, byte by byte. The text is the same on all
three backends: set `KERAS_BACKEND` to `tensorflow`, `jax` or `torch`. On two cores it takes a few
minutes; `benchmarks/language_model_quality.py` trains for longer, and compares.
"""

import math
import tempfile
from pydoc_data import topics

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek.callbacks import ExpertBalancing
from keras_deepseek.models import (
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    Sampler,
    enable_lora,
    load_lora_weights,
    merge_lora,
    save_lora_weights,
)
from keras_deepseek.training import Trainer, WarmupDecay

LENGTH, BATCH_SIZE = 96, 16
keras.utils.set_random_seed(0)

"""
## Rows of bytes

Each byte is a token, and its target is the byte behind it. The last tenth is held out.
"""

text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
values = np.frombuffer(text, "u1").astype("int32")
count = (len(values) - 1) // LENGTH
token_ids = values[: count * LENGTH].reshape(count, LENGTH)
targets = values[1 : count * LENGTH + 1].reshape(count, LENGTH)
inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
held = count // 10
learned = {name: array[:-held] for name, array in inputs.items()}
unseen = {name: array[-held:] for name, array in inputs.items()}

"""
## The model

Latent attention, a dense block and one of eight experts, two of which each token goes to. A module
that predicts one byte further adds its loss in training; the outputs are the logits of the next.
"""

model = DeepSeekV3CausalLM(
    DeepSeekV3Config(
        vocabulary_size=256,
        hidden_dim=64,
        intermediate_dim=192,
        num_layers=2,
        num_heads=4,
        nope_head_dim=16,
        rope_head_dim=8,
        value_head_dim=16,
        key_value_lora_rank=32,
        num_experts=8,
        num_experts_per_token=2,
        moe_intermediate_dim=32,
        num_dense_layers=1,
        num_prediction_layers=1,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
)

"""
## Training

`ExpertBalancing` keeps the experts evenly loaded without a loss, and logs how even they are.
"""

steps = 200
trainer = Trainer(
    model,
    optimizer=keras.optimizers.AdamW(WarmupDecay(6e-3, total_steps=steps, warmup_steps=20)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    gradient_clip=("global_norm", 1.0),
    seed=0,
    callbacks=[ExpertBalancing(0.001)],
)
rows = np.random.default_rng(0).integers(0, count - held, steps * BATCH_SIZE)
trainer.fit(
    {name: array[rows] for name, array in learned.items()},
    targets[rows],
    batch_size=BATCH_SIZE,
    epochs=1,
    verbose=2,
)


def measure_bits():
    return model.evaluate(unseen, targets[-held:], batch_size=64, verbose=0) / math.log(2)


bits = measure_bits()
shares = np.bincount(values) / len(values)
shares = shares[shares > 0]
bits_of_counts = -np.sum(shares * np.log2(shares))
print(f"{bits:.2f} bits a character; {bits_of_counts:.2f} where each byte's share is all one knows")

"""
## What it writes

Token after token from the cache of compressed keys and values, each drawn from the probabilities.
"""


def write(prompt):
    rows = model.generate(
        [list(prompt.encode())], max_new_tokens=60, sampler=Sampler(temperature=0.7), seed=0
    )
    return bytes(np.asarray(rows[0], "u1")).decode(errors="replace")


print(write("The function "))

"""
## Tuned by a LoRA

Here the text is to be all capitals. Small matrices beside the kernels are trained, and nothing
else; they alone are saved. Merged into the weights, the model is one as before.
"""

folder = tempfile.mkdtemp(prefix="language_model_")
model.save(f"{folder}/base.keras")
capitals = np.where((token_ids >= ord("a")) & (token_ids <= ord("z")), token_ids - 32, token_ids)
few = {"token_ids": capitals[:640, :-1], "padding_mask": np.ones_like(capitals[:640, :-1])}
enable_lora(model, rank=8)
tuning = Trainer(
    model,
    optimizer=keras.optimizers.Adam(1e-2),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    seed=0,
)
losses = tuning.fit(few, capitals[:640, 1:], batch_size=16, epochs=2, verbose=2).history["loss"]
save_lora_weights(model, f"{folder}/capitals.safetensors")
merge_lora(model)
print(write("THE FUNCTION "))

again = keras.saving.load_model(f"{folder}/base.keras", compile=False)
load_lora_weights(again, f"{folder}/capitals.safetensors")
batch = {name: array[:4] for name, array in few.items()}
difference = np.abs(again.predict(batch, verbose=0) - model.predict(batch, verbose=0)).max()
print(f"{keras.backend.backend()}: loaded within {difference:.1e}, loss {losses}")
plt.bar(["counts of bytes", "the model"], [bits_of_counts, bits])
plt.ylabel("bits a character")
plt.savefig("bits.png")
assert bits < bits_of_counts - 0.5
assert losses[-1] < losses[0]
assert difference < 1e-3
