"""A training by several processes that a strategy object of the script has joined: FOLDER.

Each rank writes its weights; without `TF_CONFIG` the one process does.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(49, 6)).astype("float32")
Y = RNG.integers(0, 3, 49)


def build() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])


def main() -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    try:
        Trainer(build, optimizer="sgd", loss="mse", distributed_strategy=strategy, world_size=7)
    except InvalidInputError as error:
        refused = str(error)
    trainer = Trainer(
        build,
        optimizer=keras.optimizers.AdamW(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        distributed_strategy=strategy,
        seed=1,
    )
    trainer.fit(X, Y, batch_size=16, epochs=5, shuffle=False, verbose=0)
    size_and_rank = [trainer.cluster.world_size, trainer.cluster.rank]
    weights = np.concatenate([weight.ravel() for weight in trainer.model.get_weights()])
    path = Path(sys.argv[1]) / f"{size_and_rank[0]}-{size_and_rank[1]}.npz"
    np.savez(path, weights=weights, place=size_and_rank, refused=refused)


if __name__ == "__main__":
    main()
