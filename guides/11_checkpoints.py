"""
Title: Read, tune and write a Hugging Face checkpoint
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: A folder in Hugging Face's format becomes a Keras model, gets a LoRA, and goes back.
Time: 1 minute on two cores
Install: "keras_deepseek[pictures]"
"""

"""
Language models are shared as folders: a `config.json` with the sizes and safetensors files with the
weights. Here such a folder becomes a Keras model. You tune it, and write it back, so that
`transformers` or vLLM can load it.

With a network, `from_preset("hf://organization/name")` reads a checkpoint from the hub. This guide
needs none: it writes a tiny one first.
"""

import json
import struct
import tempfile
from pathlib import Path
from pydoc_data import topics

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek.errors import KerasDeepSeekError
from keras_deepseek.models import (
    DeepSeekV2CausalLM,
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    enable_lora,
    load_lora_weights,
    merge_lora,
    save_lora_weights,
)
from keras_deepseek.training import Trainer, WarmupDecay

keras.utils.set_random_seed(0)
folder = Path(tempfile.mkdtemp(prefix="checkpoints_"))

"""
## A tiny model that has learnt something

One byte is one token. The text is the reference that ships with Python. A few
hundred steps are enough to learn which letters are frequent, and what follows them.
"""

text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
LENGTH = 64
values = np.frombuffer(text, "u1").astype("int32")
rows = values[: len(values) // LENGTH * LENGTH].reshape(-1, LENGTH)
rows = rows[np.random.default_rng(0).permutation(len(rows))]


def train(model, token_ids, epochs, rate):
    """Trains on rows of bytes, and returns the loss of each epoch."""
    inputs, batch_size = token_ids[:, :-1], 16
    steps = epochs * -(-len(inputs) // batch_size)
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(WarmupDecay(rate, total_steps=steps, warmup_steps=10)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        gradient_clip=("global_norm", 1.0),
        seed=0,
    )
    data = {"token_ids": inputs, "padding_mask": np.ones_like(inputs)}
    history = trainer.fit(data, token_ids[:, 1:], batch_size, epochs, verbose=2)
    return history.history["loss"]


config = DeepSeekV3Config(
    vocabulary_size=256,
    hidden_dim=48,
    intermediate_dim=128,
    num_layers=2,
    num_heads=4,
    nope_head_dim=12,
    rope_head_dim=8,
    value_head_dim=12,
    key_value_lora_rank=24,
    num_experts=4,
    num_experts_per_token=2,
    moe_intermediate_dim=32,
    num_dense_layers=1,
)
model = DeepSeekV3CausalLM(config)
first_losses = train(model, rows[:640], epochs=6, rate=5e-3)

"""
## The folder

`save_to_preset` writes Hugging Face's names and layouts, not Keras's: `transformers` reads this
folder with `AutoModelForCausalLM.from_pretrained`. A folder appears whole or not at all, even if
the process is killed while it writes.
"""

model.save_to_preset(folder / "base")
with (folder / "base" / "model.safetensors").open("rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    tensors = json.loads(file.read(size))
for name in sorted(tensors)[:4]:
    print(name, tensors[name].get("dtype"), tensors[name].get("shape"))
print(json.loads((folder / "base" / "config.json").read_text())["architectures"])

"""
## Read it

`from_preset` compares every tensor with the model before it changes a weight. A checkpoint that
does not fit is an error that lists all that is wrong; the model is never half filled.
"""

base = DeepSeekV3CausalLM.from_preset(folder / "base")
inputs = {"token_ids": rows[:4], "padding_mask": np.ones_like(rows[:4])}
logits = model.predict(inputs, verbose=0)
read_difference = np.abs(base.predict(inputs, verbose=0) - logits).max()
refused = []
for task, changes in ((DeepSeekV2CausalLM, {}), (DeepSeekV3CausalLM, {"num_layers": 3})):
    try:
        task.from_preset(folder / "base", **changes)
    except KerasDeepSeekError as error:
        refused.append(str(error))
        print(refused[-1][:300], "\n")

"""
## Tune it

The new text is all capitals. A LoRA adds two small matrices beside each kernel. Only they are
trained, so the file that you keep of each tuning is small.
"""

capitals = np.where((rows >= ord("a")) & (rows <= ord("z")), rows - 32, rows)
enable_lora(base, rank=4)
losses = train(base, capitals[640:960], epochs=4, rate=1e-2)
save_lora_weights(base, folder / "capitals.safetensors")
whole, small = (
    (folder / name).stat().st_size for name in ("base/model.safetensors", "capitals.safetensors")
)
print(f"the model {whole:,} bytes, its LoRA {small:,} bytes")

"""
## Hand it on

Merged, the LoRA is part of the kernels. The model goes back into a folder, here in bfloat16 to
halve it. Whoever has the base needs only the LoRA's file, and gets the same model.
"""

merge_lora(base)
base.save_to_preset(folder / "tuned", dtype="bfloat16")
tuned = base.predict(inputs, verbose=0)
again = DeepSeekV3CausalLM.from_preset(folder / "base")
load_lora_weights(again, folder / "capitals.safetensors")
lora_difference = np.abs(again.predict(inputs, verbose=0) - tuned).max()
print(bytes(base.generate([list(b"THE ")], max_new_tokens=40)[0]).decode(errors="replace"))

"""
## The picture

The first training ends where the tuning begins to differ: capitals surprise the model at first.
"""

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
epochs = np.arange(1, len(first_losses) + len(losses) + 1)
axis.plot(epochs[: len(first_losses)], first_losses, "o-", label="all weights, the text")
axis.plot(epochs[len(first_losses) :], losses, "o-", label="a LoRA, the text in capitals")
axis.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
axis.legend()
figure.savefig("checkpoints.png")
print(f"{keras.backend.backend()}: {read_difference:.1e}, {lora_difference:.1e}, see {folder}")
assert read_difference == 0
assert lora_difference < 1e-4
assert len(refused) == 2
assert losses[-1] < losses[0] - 0.2
assert small < whole / 4
