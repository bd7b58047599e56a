"""A training by workers and servers that a strategy object of the script has connected to.

    python tests/oracles/own_servers.py

It prints the losses, and what is said where the numbers of `ParameterServer` are others.
"""

import json

import numpy as np
import tensorflow as tf

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import ParameterServer, Trainer, join_cluster
from keras_deepseek.training.parameter_server.local_tasks import LocalTasks


def main() -> None:
    started = LocalTasks(2, 1, 120.0)  # They end with it.
    addresses = started.addresses
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({kind: list(hosts) for kind, hosts in addresses.items()}),
        task_type="chief",
        task_id=0,
        rpc_layer="grpc",
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    join_cluster(strategy)
    import keras

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype("float32")
    y = x[:, :1] - x[:, 1:2]

    def make(strategy: object) -> Trainer:
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        return Trainer(
            model,
            optimizer=keras.optimizers.SGD(0.05),
            loss="mse",
            seed=1,
            distributed_strategy=strategy,
        )

    trainer = make(strategy)
    losses = trainer.fit(x, y, batch_size=8, epochs=6, verbose=0).history["loss"]
    try:
        make(ParameterServer(num_workers=3))
        refused = ""
    except InvalidInputError as error:
        refused = str(error)
    print(json.dumps({"losses": losses, "refused": refused}))


if __name__ == "__main__":
    main()
