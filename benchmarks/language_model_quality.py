"""How well a small language model learns real text: bits a character on text that it has not seen.

A DeepSeek-V3 of 0.4 million parameters, with experts that are balanced by their biases and a module
that predicts one token further, reads the reference that ships with Python, `pydoc_data.topics`,
byte by byte. Beside it stand counts of bytes, alone and behind the last few, and two compressors,
which are given the same text to learn from. Greedy text of the trained model is made with the
drafts of its module and without them, and the process times are compared.

Then the model learns another kind of text by a LoRA: the source of a module of Python's. The base
stays in float32, or it is quantized to int8 or int4 before (QLoRA), with the same data and seeds.
Claim: the loss on the source of another module is at most 1 % over that of the float32 base.

Each seed is a process of its own:

    KERAS_BACKEND=jax python benchmarks/language_model_quality.py --seeds 0 1 2
"""

import argparse
import dataclasses
import gzip
import inspect
import json
import lzma
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from pydoc_data import topics

from processes import make_parser
from result import Figure, report

LENGTH, BATCH_SIZE, EPOCHS = 128, 16, 4
DRAFT_ROUNDS = 5
HELD_OUT = 0.1
ORDERS = (0, 1, 2, 3, 4, 5)
BASES = ("float32", "int8", "int4")
LORA_EPOCHS, LORA_RANK, BLOCK_SIZE = 3, 8, 16
LEAST_LORA = 1 / 1.01


def read_text():
    """Returns the bytes to learn from, and those that are held out: topics of their own."""
    names = sorted(topics.topics)
    held_names = set(names[:: round(1 / HELD_OUT)])
    parts = [
        "\n\n".join(topics.topics[name] for name in names if (name in held_names) == is_held)
        for is_held in (False, True)
    ]
    return [part.encode() for part in parts]


def count_bits(learned, unseen_text, order):
    """Returns bits a byte of counts behind the last `order` bytes (interpolated Witten-Bell)."""
    counts = [{} for _ in range(order + 1)]
    for n in range(order + 1):
        for at in range(n, len(learned)):
            counts[n].setdefault(learned[at - n : at], Counter())[learned[at]] += 1
    totals = [{key: sum(x.values()) for key, x in table.items()} for table in counts]
    bits = 0.0
    for at in range(len(unseen_text)):
        probability = 1 / 256
        for n in range(min(order, at) + 1):
            context = unseen_text[at - n : at]
            next_counts = counts[n].get(context)
            if next_counts is None:
                break
            share = len(next_counts) + totals[n][context]
            probability = (next_counts[unseen_text[at]] + len(next_counts) * probability) / share
        bits -= math.log2(probability)
    return bits / len(unseen_text)


def compressed_bits(learned, unseen_text, compress):
    """Returns bits a byte that the held-out text adds to a compressed file."""
    return 8 * (len(compress(learned + unseen_text)) - len(compress(learned))) / len(unseen_text)


def cut_rows(text, length=LENGTH):
    """Returns inputs and targets: rows of bytes, and of the byte behind each."""
    import numpy as np

    values = np.frombuffer(text, "u1").astype("int32")
    count = (len(values) - 1) // length
    inputs = values[: count * length].reshape(count, length)
    targets = values[1 : count * length + 1].reshape(count, length)
    return {"token_ids": inputs, "padding_mask": np.ones_like(inputs)}, targets


def make_model():
    from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config

    return DeepSeekV3CausalLM(
        DeepSeekV3Config(
            vocabulary_size=256,
            hidden_dim=96,
            intermediate_dim=256,
            num_layers=2,
            num_heads=4,
            nope_head_dim=24,
            rope_head_dim=12,
            value_head_dim=24,
            key_value_lora_rank=48,
            num_experts=8,
            num_experts_per_token=2,
            moe_intermediate_dim=48,
            num_dense_layers=1,
            num_prediction_layers=1,
            tie_word_embeddings=True,
            initializer_range=0.08,
        )
    )


def train(seed, epochs):
    """Trains and returns what was measured, on the backend that Keras is set to."""
    import keras

    from keras_deepseek.callbacks import ExpertBalancing
    from keras_deepseek.training import Trainer, WarmupDecay

    keras.utils.set_random_seed(seed)
    learned, unseen_text = read_text()
    (x, y), held_rows = cut_rows(learned), cut_rows(unseen_text)
    model = make_model()
    steps = epochs * -(-len(y) // BATCH_SIZE)
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(
            WarmupDecay(4e-3, total_steps=steps, warmup_steps=steps // 20), weight_decay=0.05
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        gradient_clip=("global_norm", 1.0),
        seed=seed,
        callbacks=[ExpertBalancing(0.001)],
    )
    begin = time.perf_counter()
    history = trainer.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, verbose=2).history
    seconds = time.perf_counter() - begin
    loss = model.evaluate(*held_rows, batch_size=BATCH_SIZE, verbose=0)
    return {
        "backend": keras.backend.backend(),
        "seed": seed,
        "parameters": model.count_params(),
        "steps": steps,
        "seconds": round(seconds, 1),
        "bits_a_character": round(loss / math.log(2), 4),
        **measure_drafts(model, unseen_text),
        "lora_bits": {base: measure_lora(model, base, seed) for base in BASES},
        "largest_expert_load": round(history["largest_expert_load"][-1], 3),
        "idle_expert_share": round(history["idle_expert_share"][-1], 4),
    }


def measure_drafts(model, unseen_text):
    """Returns how many times as fast greedy text of one prompt comes with the module's drafts."""
    prompt = list(unseen_text[:LENGTH])
    seconds, texts = {False: [], True: []}, {}
    for number in range(DRAFT_ROUNDS + 1):
        for use_drafts, runs in seconds.items():
            start = time.process_time()
            texts[use_drafts] = model.generate(
                prompt, max_new_tokens=LENGTH, stop_token_ids=None, use_drafts=use_drafts
            )
            if number:  # The first compiles.
                runs.append(time.process_time() - start)
    plain, drafted = (statistics.median(seconds[use_drafts]) for use_drafts in (False, True))
    return {
        "tokens_a_second": round(LENGTH / plain, 1),
        "drafts_ratio": round(plain / drafted, 3),
        "drafts_same_text": texts[False] == texts[True],
    }


def measure_lora(trained, base, seed):
    """Returns bits a character of source code, of a LoRA on a copy of a model in a dtype."""
    import keras

    from keras_deepseek.models import enable_lora
    from keras_deepseek.training import Trainer

    keras.utils.set_random_seed(seed)
    model = make_model()
    model.set_weights(trained.get_weights())
    if base == "int4":  # A block has to divide the rows of the experts.
        model.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=BLOCK_SIZE))
    elif base != "float32":
        model.quantize(base)
    enable_lora(model, LORA_RANK)
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(2e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        gradient_clip=("global_norm", 1.0),
        seed=seed,
    )
    learned, unseen = (cut_rows(inspect.getsource(x).encode()) for x in (argparse, dataclasses))
    before = trainer.evaluate(*unseen, batch_size=BATCH_SIZE, verbose=0)
    trainer.fit(*learned, batch_size=BATCH_SIZE, epochs=LORA_EPOCHS, verbose=2)
    after = trainer.evaluate(*unseen, batch_size=BATCH_SIZE, verbose=0)
    return [round(loss / math.log(2), 4) for loss in (before, after)]


def measure_baselines():
    learned, unseen_text = read_text()
    bits = {f"order {order}": count_bits(learned, unseen_text, order) for order in ORDERS}
    bits["gzip -9"] = compressed_bits(learned, unseen_text, lambda text: gzip.compress(text, 9))
    bits["lzma"] = compressed_bits(learned, unseen_text, lambda text: lzma.compress(text, preset=9))
    return {"bytes": [len(learned), len(unseen_text)], "bits_a_character": bits}


def main():
    parser = make_parser(__doc__, has_quick=False, rounds=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--one", type=int, help="train with this seed in this process")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(train(arguments.one, arguments.epochs)))
        return
    baselines = measure_baselines()
    print("bytes learned from, held out:", *baselines["bytes"])
    for name, bits in baselines["bits_a_character"].items():
        print(f"{name:>10}  {bits:.3f} bits a character", flush=True)
    runs = []
    for seed in arguments.seeds:
        command = [sys.executable, __file__, "--one", str(seed), "--epochs", str(arguments.epochs)]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(ended.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), flush=True)
    reached, speed, ratio = (
        statistics.mean(run[key] for run in runs)
        for key in ("bits_a_character", "tokens_a_second", "drafts_ratio")
    )
    peer, best = min(baselines["bits_a_character"].items(), key=lambda entry: entry[1])
    backend = runs[0]["backend"]
    figures = [
        Figure("bits a character", reached, "bits", backend, peer, best),
        Figure(
            "greedy text with drafts",
            speed * ratio,
            "tokens/s",
            backend,
            "without drafts",
            speed,
            is_less_better=False,
        ),
    ]
    lora_bits = {base: statistics.mean(run["lora_bits"][base][1] for run in runs) for base in BASES}
    figures += [
        Figure(
            f"bits a character, LoRA on {base}",
            lora_bits[base],
            "bits",
            backend,
            "LoRA on float32",
            lora_bits["float32"],
            LEAST_LORA,
        )
        for base in BASES[1:]
    ]
    report(arguments.json, figures, {"baselines": baselines, "runs": runs})


if __name__ == "__main__":
    main()
