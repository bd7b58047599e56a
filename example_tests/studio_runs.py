"""Small trainings of real models, healthy and with a fault, for the findings of Studio.

Each function trains one, and writes its run record to the path that it is given.
"""

import contextlib
import time
from pydoc_data import topics

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_diabetes, load_digits

from keras_deepseek.callbacks import ExpertBalancing, RunRecorder
from keras_deepseek.errors import TrainingDivergedError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
from keras_deepseek.models import (
    BertBackbone,
    BertConfig,
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
    SequentialRecommender,
    SequentialRecommenderConfig,
    SyntheticInteractions,
)
from keras_deepseek.training import Trainer, WarmupDecay

X, Y = load_digits(return_X_y=True)
X, Y = (X / 16).astype("float32"), Y.astype("int32")
SHUFFLED = np.random.default_rng(0).permutation(len(X))
X, Y = X[SHUFFLED], Y[SHUFFLED]
SPLIT = 1500
HELD_OUT = (X[SPLIT:], Y[SPLIT:])


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def perceptron(*inner, hidden=32):
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(hidden, activation="relu", name="first"),
            *inner,
            layers.Dense(10, name="head"),
        ]
    )


def convolutional(dropout=0.2):
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(16, 3, name="convolution_1"),
            layers.BatchNormalization(name="norm_1"),
            layers.Activation("relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="convolution_2"),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(dropout),
            layers.Dense(10, name="head"),
        ]
    )


def train(path, model, optimizer, *, x=X[:SPLIT], y=Y[:SPLIT], loss=None, fit=None, **options):
    """Trains by a `Trainer`, which it returns. An error that ends the training is recorded."""
    trainer = Trainer(
        model,
        optimizer=optimizer,
        loss=crossentropy() if loss is None else loss,
        layer_statistics=True,
        run_record=path,
        seed=0,
        **options,
    )
    with contextlib.suppress(TrainingDivergedError):
        trainer.fit(x, y, **{"verbose": 0, "batch_size": 32, "epochs": 8, **(fit or {})})
    return trainer


# -- Healthy ------------------------------------------------------------------------------------


def digits_network(path):
    train(
        *(path, convolutional, keras.optimizers.Adam(3e-3)),
        fit={"epochs": 12, "validation_data": HELD_OUT},
    )


def many_epochs(path):
    train(
        *(path, convolutional, keras.optimizers.Adam(3e-3)),
        fit={"epochs": 60, "batch_size": 128, "validation_data": HELD_OUT},
    )


def one_epoch(path):
    train(path, perceptron, keras.optimizers.Adam(3e-3), fit={"epochs": 1})


def small_batches(path):
    train(
        *(path, perceptron, keras.optimizers.Adam(1e-3)),
        fit={"epochs": 2, "batch_size": 2, "validation_data": HELD_OUT},
    )


def single_rows(path):
    train(path, perceptron, keras.optimizers.SGD(0.01), fit={"epochs": 2, "batch_size": 1})


def dropout_noise(path):
    train(
        path,
        lambda: perceptron(layers.Dropout(0.6), hidden=64),
        keras.optimizers.Adam(2e-3),
        fit={"epochs": 20, "validation_data": HELD_OUT},
    )


def warm_up(path):
    rate = WarmupDecay(1e-2, total_steps=470, warmup_steps=60)
    train(
        *(path, convolutional, keras.optimizers.AdamW(rate)),
        fit={"epochs": 10, "validation_data": HELD_OUT},
    )


def half_precision(path):
    train(
        *(path, convolutional, keras.optimizers.Adam(3e-3)),
        precision="bfloat16",
        fit={"validation_data": HELD_OUT},
    )


def accumulated(path):
    train(
        *(path, convolutional, keras.optimizers.Adam(3e-3)),
        micro_batches=4,
        gradient_clip=("global_norm", 1.0),
        fit={"batch_size": 64, "epochs": 15, "validation_data": HELD_OUT},
    )


def momentum(path):
    train(
        *(path, perceptron, keras.optimizers.SGD(0.1, momentum=0.9)),
        fit={"epochs": 15, "validation_data": HELD_OUT},
    )


def noisy_labels(path):
    labels = Y[:SPLIT].copy()
    random = np.random.default_rng(1)
    wrong = random.random(SPLIT) < 0.5
    labels[wrong] = random.integers(0, 10, wrong.sum())
    train(path, perceptron, keras.optimizers.Adam(3e-3), y=labels, fit={"epochs": 15})


def regression(path):
    x, y = load_diabetes(return_X_y=True)
    x, y = (20 * x).astype("float32"), ((y - y.mean()) / y.std())[:, None].astype("float32")
    model = keras.Sequential([keras.Input((10,)), layers.Dense(1)])
    train(
        *(path, model, keras.optimizers.Adam(1e-2)),
        x=x[:350],
        y=y[:350],
        loss="mse",
        fit={"epochs": 60, "batch_size": 16, "validation_data": (x[350:], y[350:])},
    )


def frozen_backbone(path):
    model = convolutional()
    for layer in model.layers[:-1]:
        layer.trainable = False
    train(path, model, keras.optimizers.Adam(1e-2), fit={"epochs": 10})


def autoencoder(path):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(8),
            layers.Dense(32, activation="relu"),
            layers.Dense(64),
        ]
    )
    train(
        *(path, model, keras.optimizers.Adam(2e-3)),
        y=X[:SPLIT],
        loss="mse",
        fit={"epochs": 15, "validation_data": (HELD_OUT[0], HELD_OUT[0])},
    )


def recurrent(path):
    model = keras.Sequential(
        [keras.Input((64,)), layers.Reshape((8, 8)), layers.GRU(24), layers.Dense(10)]
    )
    train(
        *(path, model, keras.optimizers.Adam(5e-3)), fit={"epochs": 8, "validation_data": HELD_OUT}
    )


def text(length, rows, seed=0):
    values = np.frombuffer("\n".join(topics.topics.values()).encode(), "u1").astype("int32")
    starts = np.random.default_rng(seed).integers(0, len(values) - length - 1, rows)
    indices = starts[:, None] + np.arange(length)
    return values[indices], values[indices + 1]


def language_model(path):
    config = DeepSeekV3Config(
        vocabulary_size=256,
        hidden_dim=32,
        intermediate_dim=96,
        num_layers=2,
        num_heads=2,
        nope_head_dim=16,
        rope_head_dim=8,
        value_head_dim=16,
        key_value_lora_rank=16,
        num_experts=4,
        num_experts_per_token=2,
        moe_intermediate_dim=32,
        num_dense_layers=1,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    tokens, targets = text(32, 16 * 150)
    rate = WarmupDecay(6e-3, total_steps=150, warmup_steps=15)
    train(
        *(path, lambda: DeepSeekV3CausalLM(config), keras.optimizers.AdamW(rate)),
        x={"token_ids": tokens, "padding_mask": np.ones_like(tokens)},
        y=targets,
        gradient_clip=("global_norm", 1.0),
        callbacks=[ExpertBalancing(0.001)],
        fit={"epochs": 1, "batch_size": 16},
    )


def classifier_of_text(path):
    """BERT tells text from text in which each letter is the next one of the alphabet."""
    tokens, _ = text(24, 1600)
    is_shifted = np.random.default_rng(0).random(len(tokens)) < 0.5
    tokens[is_shifted] += 1
    config = BertConfig(
        vocabulary_size=256,
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        intermediate_dim=64,
        max_length=24,
    )

    backbone = BertBackbone(config)
    model = keras.Model(backbone.input, layers.Dense(2)(backbone.output[:, 0]))
    batch = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    batch |= {name: np.zeros_like(tokens) for name in model.input if name not in batch}
    train(
        *(path, model, keras.optimizers.Adam(1e-3)),
        x={name: array[:1400] for name, array in batch.items()},
        y=is_shifted[:1400].astype("int32"),
        fit={
            "epochs": 6,
            "validation_data": (
                {name: array[1400:] for name, array in batch.items()},
                is_shifted[1400:].astype("int32"),
            ),
        },
    )


def recommender(path):
    data = SyntheticInteractions(num_users=400, num_categories=6, num_styles=2, seed=1).draw()
    split = data.leave_last_out()
    config = SequentialRecommenderConfig(
        num_items=data.num_items,
        max_length=20,
        hidden_dim=32,
        num_layers=1,
        num_heads=2,
        intermediate_dim=32,
    )
    model = SequentialRecommender(config).make_training_model(
        32, item_weights=(split.item_counts() + 1.0) ** 0.75, seed=0
    )
    model.compile(keras.optimizers.Adam(5e-3))
    trainer = Trainer(model, layer_statistics=True, run_record=path)
    trainer.fit(split.train_inputs(20), batch_size=32, epochs=20, verbose=0)


def bare_fit(path):
    model = convolutional()
    model.compile(keras.optimizers.Adam(3e-3), crossentropy())
    model.fit(
        *(X[:SPLIT], Y[:SPLIT]),
        verbose=0,
        epochs=6,
        validation_data=HELD_OUT,
        callbacks=[RunRecorder(path)],
    )


# -- With a fault -------------------------------------------------------------------------------


def rate_too_high(path):
    train(path, convolutional, keras.optimizers.Adam(3.0))


def rate_too_high_for_plain_descent(path):
    train(path, perceptron, keras.optimizers.SGD(20.0))


def rate_a_little_too_high(path):
    train(path, perceptron, keras.optimizers.Adam(0.5))


def rate_that_grows(path):
    rate = keras.optimizers.schedules.ExponentialDecay(1e-3, 40, 2.0)
    train(path, perceptron, keras.optimizers.Adam(rate), fit={"epochs": 12})


def rate_too_low(path):
    train(path, perceptron, keras.optimizers.SGD(1e-6), fit={"epochs": 10})


def labels_of_other_rows(path):
    labels = np.random.default_rng(0).permutation(Y[:SPLIT])
    train(path, lambda: perceptron(hidden=8), keras.optimizers.Adam(1e-3), y=labels)


def nan_labels(path):
    y = np.eye(10, dtype="float32")[Y[:SPLIT]]
    y[::7] = np.nan
    train(path, perceptron, keras.optimizers.Adam(1e-3), y=y, loss="mse")


def nan_label_of_one_row(path):
    y = np.eye(10, dtype="float32")[Y[:SPLIT]]
    y[700] = np.nan
    train(
        *(path, perceptron, keras.optimizers.Adam(1e-3)),
        y=y,
        loss="mse",
        guard="skip",
        fit={"epochs": 3},
    )


def nan_labels_in_a_bare_fit(path):
    y = np.eye(10, dtype="float32")[Y[:SPLIT]]
    y[::7] = np.nan
    model = perceptron()
    model.compile("adam", "mse")
    model.fit(X[:SPLIT], y, verbose=0, callbacks=[RunRecorder(path)])


def sleeping_generator(path):
    def batches():
        while True:
            for start in range(0, 1400, 32):
                time.sleep(0.02)
                yield X[start : start + 32], Y[start : start + 32]

    train(
        *(path, perceptron, keras.optimizers.Adam(1e-3)),
        x=batches(),
        y=None,
        fit={"epochs": 2, "steps_per_epoch": 60, "batch_size": None},
    )


class SleepingDataset(keras.utils.PyDataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        time.sleep(0.02)
        return X[32 * (index % 40) :][:32], Y[32 * (index % 40) :][:32]


def sleeping_dataset(path):
    trainer = train(
        *(path, perceptron, keras.optimizers.Adam(1e-3)),
        x=SleepingDataset(),
        y=None,
        fit={"epochs": 2, "batch_size": None},
    )
    if keras.backend.backend() == "tensorflow":  # Its step waits where only a profile sees it.
        trainer.profile(SleepingDataset())


@keras.saving.register_keras_serializable("studio_runs")
class StopsGradient(layers.Layer):
    def call(self, x):
        return ops.stop_gradient(x)


def frozen_block(path):
    inputs = keras.Input((64,))
    side = layers.Dense(16, activation="relu", name="side_1")(inputs)
    side = StopsGradient()(layers.Dense(16, activation="relu", name="side_2")(side))
    hidden = layers.Dense(32, activation="relu", name="hidden")(inputs)
    outputs = layers.Dense(10, name="head")(layers.Concatenate()([hidden, side]))
    train(path, keras.Model(inputs, outputs), keras.optimizers.Adam(3e-3))


def frozen_block_with_decay(path):
    inputs = keras.Input((64,))
    side = StopsGradient()(layers.Dense(16, activation="relu", name="side")(inputs))
    hidden = layers.Dense(32, activation="relu", name="hidden")(inputs)
    outputs = layers.Dense(10, name="head")(layers.Concatenate()([hidden, side]))
    train(path, keras.Model(inputs, outputs), keras.optimizers.AdamW(3e-3))


def mixture(path, bias=None, callbacks=()):
    router = ExpertRouter(6, 2, use_expert_bias=True, name="router")
    inputs = keras.Input((64,))
    hidden = layers.Dense(32, activation="relu", name="first")(inputs)
    hidden = layers.Reshape((1, 32))(hidden)
    hidden = layers.Add()([hidden, DeepSeekMoE(router, intermediate_dim=16, name="moe")(hidden)])
    outputs = layers.Dense(10, name="head")(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    if bias is not None:
        router.expert_bias.assign(bias)
    train(path, model, keras.optimizers.Adam(3e-3), callbacks=list(callbacks))


def starved_expert(path):
    mixture(path, bias=[0.0, 0.0, 0.0, -5.0, 0.0, 0.0])


def balanced_experts(path):
    mixture(path, callbacks=[ExpertBalancing(0.01)])


def overfitting(path):
    train(
        *(path, lambda: perceptron(hidden=128), keras.optimizers.Adam(3e-3)),
        x=X[:60],
        y=Y[:60],
        fit={"epochs": 120, "batch_size": 20, "validation_data": HELD_OUT},
    )


def overfitting_noisy_labels(path):
    y = Y.copy()
    random = np.random.default_rng(1)
    wrong = random.random(len(y)) < 0.3
    y[wrong] = random.integers(0, 10, wrong.sum())
    train(
        *(path, lambda: perceptron(hidden=256), keras.optimizers.Adam(3e-3)),
        x=X[:400],
        y=y[:400],
        fit={"epochs": 40, "validation_data": (X[SPLIT:], y[SPLIT:])},
    )


def deep_sigmoids(path):
    """Gradients vanish in the first of many sigmoids."""
    inner = [layers.Dense(16, activation="sigmoid", name=f"inner_{n}") for n in range(10)]
    train(path, lambda: perceptron(*inner), keras.optimizers.SGD(0.05), fit={"epochs": 8})
