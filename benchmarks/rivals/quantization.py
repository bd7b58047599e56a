"""The process that trains a LoRA on a quantized model, or decodes with it: see `quantization.py`.

python benchmarks/rivals/quantization.py step '{"mode": "int8", "rounds": 5, ...}'
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from peak_memory import measure_peak

from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config, enable_lora
from keras_deepseek.training import Trainer

WIDTHS = {"float32": 4, "int8": 1, "int32": 4, "uint32": 4}
MIB = 2**20


def make_model(mode: str, sizes: dict[str, Any]) -> DeepSeekV3CausalLM:
    """Returns the same model each time, in float32 or quantized."""
    keras.utils.set_random_seed(0)
    model = DeepSeekV3CausalLM(DeepSeekV3Config(**sizes))
    if mode != "float32":
        model.quantize(mode)
    return model


def measure_step(
    mode: str, rounds: int, sizes: dict[str, Any], length: dict[str, int]
) -> dict[str, Any]:
    """Returns the bytes of the weights, and the peak and seconds of a step of LoRA."""
    facts: dict[str, Any] = {}
    small = {**sizes, "hidden_dim": 128, "moe_intermediate_dim": 128, "num_experts": 8}
    make_step(mode, small, length, {})()  # What a framework loads for its first step is no weight.
    numbers = measure_peak(lambda: make_step(mode, sizes, length, facts), rounds, counts_model=True)
    return {**facts, **numbers, "seconds": numbers["seconds"] / 2}


def make_step(
    mode: str, sizes: dict[str, Any], length: dict[str, int], facts: dict[str, Any]
) -> Callable[[], Any]:
    """Returns a function that trains a LoRA for two steps, and adds facts on the model."""
    model = make_model(mode, sizes)
    facts["weight_megabytes"] = (
        sum(math.prod(weight.shape) * WIDTHS[weight.dtype] for weight in model.weights) / MIB
    )
    enable_lora(model, 1)
    facts["lora"] = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    trainer = Trainer(
        model,
        optimizer=keras.optimizers.AdamW(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rows = np.random.default_rng(0).integers(1, sizes["vocabulary_size"], (1, length["row"]))
    inputs = {"token_ids": rows, "padding_mask": np.ones_like(rows)}
    return lambda: trainer.fit(inputs, rows, batch_size=1, epochs=2, verbose=0)


def measure_decoding(
    mode: str, rounds: int, sizes: dict[str, Any], length: dict[str, int]
) -> dict[str, Any]:
    """Returns seconds of process time of the tokens behind the first, by mode, of each round."""
    modes = ("float32", "int8", "int4") if mode == "all" else (mode,)
    models = {name: make_model(name, sizes) for name in modes}
    prompt = np.random.default_rng(0).integers(1, sizes["vocabulary_size"], (1, length["prompt"]))
    seconds: dict[str, list[float]] = {name: [] for name in modes}
    for number in range(rounds + 2):  # The first compile, or are recorded.
        for name, model in models.items():
            stream = model.stream(
                prompt, max_new_tokens=length["new_tokens"] + 1, stop_token_ids=None
            )
            next(stream)
            start = time.process_time()
            list(stream)
            if number > 1:
                seconds[name].append(time.process_time() - start)
    return {"seconds": seconds}


def main() -> int:
    kind, setting = sys.argv[1], json.loads(sys.argv[2])
    measure = {"step": measure_step, "decode": measure_decoding}[kind]
    print(json.dumps(measure(**setting)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
