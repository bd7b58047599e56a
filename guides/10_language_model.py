"""
Title: Train a small language model
Author: The keras_deepseek authors
Date created: 2026/11/27
Last modified: 2026/11/30
Description: A DeepSeek-V3 with balanced experts learns real text, and is tuned by a LoRA.
Time: 1 minute on two cores
Install: "keras_deepseek[pictures]"
"""

"""
You train a small language model, let it write, and tune it to another style by a LoRA. It reads the
reference that ships with Python, byte by byte, so nothing is downloaded.
`benchmarks/language_model_quality.py` trains it for longer and compares it with compressors.
"""

import math
import tempfile
from pydoc_data import topics

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek.artifacts import RunRecord
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

Each byte is a token. The target at a position is the next byte. The last tenth is held out: it
tells how well the model does on text that it has not seen.
"""

text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
values = np.frombuffer(text, "u1").astype("int32")
count = (len(values) - 1) // LENGTH
token_ids = values[: count * LENGTH].reshape(count, LENGTH)
targets = values[1 : count * LENGTH + 1].reshape(count, LENGTH)
inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
num_unseen = count // 10
learned = {name: array[:-num_unseen] for name, array in inputs.items()}
unseen = {name: array[-num_unseen:] for name, array in inputs.items()}

"""
## The model

The blocks are those of DeepSeek-V3, at a small size. Latent attention keeps one short vector a
token in its cache, where others keep keys and values of every head. The second block has eight
experts, and sends each token to two of them. A further module predicts the byte after the next one:
its loss helps in training, and the model's outputs stay the logits of the next byte.
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

`ExpertBalancing` keeps the experts evenly loaded without a loss of its own, and logs how even they
are. The learning rate warms up over 20 steps and falls from then on.
"""

steps = 200
folder = tempfile.mkdtemp(prefix="language_model_")
trainer = Trainer(
    model,
    optimizer=keras.optimizers.AdamW(WarmupDecay(6e-3, total_steps=steps, warmup_steps=20)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    gradient_clip=("global_norm", 1.0),
    seed=0,
    callbacks=[ExpertBalancing(0.001)],
)
rows = np.random.default_rng(0).integers(0, count - num_unseen, steps * BATCH_SIZE)
record = trainer.record_run(f"{folder}/run.sqlite")
drawn = {name: array[rows] for name, array in learned.items()}
trainer.fit(drawn, targets[rows], batch_size=BATCH_SIZE, epochs=1, verbose=2)

bits = model.evaluate(unseen, targets[-num_unseen:], batch_size=64, verbose=0) / math.log(2)
shares = np.bincount(values) / len(values)
shares = shares[shares > 0]
bits_of_counts = -np.sum(shares * np.log2(shares))
print(f"{bits:.2f} bits a character; {bits_of_counts:.2f} where each byte's share is all one knows")

"""
## Generation

`generate` reads the prompt once. Each further byte is drawn from the probabilities, and only its
own keys and values are computed.
"""


def write(prompt):
    rows = model.generate(
        [list(prompt.encode())], max_new_tokens=60, sampler=Sampler(temperature=0.7), seed=0
    )
    return bytes(np.asarray(rows[0], "u1")).decode(errors="replace")


print(write("The function "))

"""
## Tune it by a LoRA

Now the text is to be all capitals. A LoRA adds two small matrices to each kernel. They alone are
trained and saved. After `merge_lora` they are part of the kernels, and the model is a plain one
again, to export or serve.
"""

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

"""
## The picture

The run record has the loss of each step; `04_studio` shows such a record while it grows. It holds
the loss of the further module too, and so lies above that of unseen text. 8 bits would mean that
every byte is equally likely.
"""

with RunRecord(record, read_only=True) as run:
    numbers, losses_of_steps = zip(*run.scalars("step_loss"), strict=True)
figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
axis.plot(numbers, np.array(losses_of_steps) / math.log(2), label="training, each batch")
axis.axhline(bits, color="tab:green", label="unseen text")
axis.axhline(bits_of_counts, color="grey", linestyle="--", label="shares of the bytes")
axis.set(xlabel="step", ylabel="bits a character", ylim=(0, 12))
axis.legend()
figure.savefig("language_model.png")
print(f"{keras.backend.backend()}: loaded within {difference:.1e}, loss {losses}")
assert bits < bits_of_counts - 0.5
assert losses[-1] < losses[0]
assert difference < 1e-3
