"""One process of `muon.py`: times updates and steps, or trains the small language model."""

import json
import math
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from language_model_quality import BATCH_SIZE, cut_rows, make_model, read_text

from keras_deepseek.callbacks import ExpertBalancing
from keras_deepseek.training import Muon, Trainer, WarmupDecay

WARM_UP_STEPS = 3
DECAY = 0.05


def make_optimizer(name, model, rate):
    """Returns an optimizer, all with AdamW's numbers of Moonlight where they use AdamW."""
    if name == "AdamW":
        return keras.optimizers.AdamW(rate, weight_decay=DECAY, beta_2=0.95)
    if name == "Keras's Muon":
        options = {"weight_decay": DECAY, "adam_weight_decay": DECAY, "adam_beta_2": 0.95}
        return keras.optimizers.Muon(rate, **options)
    return Muon.for_model(model, rate, DECAY, split_heads=name != "joint heads")


class StepTimes(keras.callbacks.Callback):
    """Notes the processor time of each step but the first ones."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_begin(self, logs=None):
        self.step, self.begin = 0, time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        end = time.process_time()
        self.step += 1
        if self.step > WARM_UP_STEPS:
            self.seconds.append(end - self.begin)
        self.begin = end


def make_trainer(name, rate, seed, *callbacks):
    keras.utils.set_random_seed(seed)
    model = make_model()
    return Trainer(
        model,
        optimizer=make_optimizer(name, model, rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        gradient_clip=("global_norm", 1.0),
        seed=seed,
        callbacks=[ExpertBalancing(0.001), *callbacks],
    )


def time_steps(names, rounds):
    """Returns the processor time of a step by each optimizer; they take turns."""
    x, y = cut_rows(read_text()[0])
    times = {name: StepTimes() for name in names}
    trainers = {name: make_trainer(name, 1e-3, 0, times[name]) for name in names}
    for _ in range(rounds):
        for trainer in trainers.values():
            trainer.fit(x, y, batch_size=BATCH_SIZE, steps_per_epoch=12, epochs=1, verbose=0)
    return {name: statistics.median(steps.seconds) for name, steps in times.items()}


def train(name, seed, rate, steps):
    """Trains for a number of steps, and returns bits a character on unseen text."""
    learned, unseen = map(cut_rows, read_text())
    times = StepTimes()
    schedule = WarmupDecay(rate, total_steps=steps, warmup_steps=max(1, steps // 20))
    trainer = make_trainer(name, schedule, seed, times)
    epoch = -(-len(learned[1]) // BATCH_SIZE)
    epochs, rest = divmod(steps, epoch)
    if epochs:
        trainer.fit(*learned, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    if rest:
        trainer.fit(*learned, batch_size=BATCH_SIZE, steps_per_epoch=rest, epochs=1, verbose=0)
    loss = trainer.model.evaluate(*unseen, batch_size=BATCH_SIZE, verbose=0)
    return {
        "optimizer": name,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "step_seconds": statistics.median(times.seconds),
        "bits": loss / math.log(2),
    }


class Bank(keras.Layer):
    """A layer whose gradients cost nothing: its matrices are one stack, or single weights."""

    def __init__(self, number, shape, *, is_stack):
        super().__init__()
        self.number, self.matrix_shape, self.is_stack = number, shape, is_stack

    def build(self, input_shape):
        shapes = [(self.number, *self.matrix_shape)] if self.is_stack else []
        shapes = shapes or [self.matrix_shape] * self.number
        self.matrices = [
            self.add_weight(name=f"matrix{index}", shape=shape)
            for index, shape in enumerate(shapes)
        ]

    def call(self, x):
        sums = [keras.ops.sum(keras.ops.sin(matrix)) for matrix in self.matrices]
        return x + sum(sums)


def time_updates(number, rows, columns, rounds):
    """Returns the processor time of a step that updates as many matrices, in one stack or not."""
    x = np.ones((12, 1), "float32")
    times = {}
    kinds = {"ours, stacked": True, "ours, single": False, "Keras's Muon, single": False}
    models = {}
    for kind, is_stack in kinds.items():
        inputs = keras.Input((1,))
        model = keras.Model(inputs, Bank(number, (rows, columns), is_stack=is_stack)(inputs))
        optimizer = keras.optimizers.Muon(1e-3)
        if kind.startswith("ours"):
            axes = {"*matrix*": "src" if is_stack else "rc"}
            optimizer = Muon.for_model(model, 1e-3, matrices=axes)
        model.compile(optimizer, "mse")
        models[kind], times[kind] = model, StepTimes()
    for _ in range(rounds):
        for kind, model in models.items():
            model.fit(x, x, batch_size=1, verbose=0, callbacks=[times[kind]])
    return {kind: statistics.median(steps.seconds) for kind, steps in times.items()}


if __name__ == "__main__":
    job = {"steps": time_steps, "train": train, "updates": time_updates}[sys.argv[1]]
    print(json.dumps(job(*map(json.loads, sys.argv[2:]))))
