"""Trainings by several processes, to be compared with those of one.

    python tests/oracles/all_reduce.py FOLDER first|further

trains in each of these ways, alone or as one of the processes that `keras-deepseek launch` has
started, and leaves weights, losses and metrics in a file of FOLDER for each rank. After the first
ways each rank says what it has heard of the others, and rank 0 goes on when they have ended.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.backend.processes.gradient_compression import LowRank
from keras_deepseek.backend.processes.processes import Processes
from keras_deepseek.errors import PeerLostError
from keras_deepseek.training import Muon, Trainer, join_cluster
from keras_deepseek.training.cluster.start_processes import start_processes
from keras_deepseek.training.step.gradients.batch_part import BatchPart

if keras.backend.backend() == "torch":  # Even these small weights are cut into buckets.
    from keras_deepseek.backend.torch import part_sums

    part_sums.BUCKET_BYTES = 128

RNG = np.random.default_rng(0)
X = RNG.normal(size=(49, 6)).astype("float32")  # Of four batches of 16 the last has one row.
Y = RNG.integers(0, 3, 49)
BAD = X.copy()
BAD[20] = np.inf  # In one row, so on one rank.
LENGTHS = RNG.integers(1, 8, 49)[:, None]
TOKENS = np.where(np.arange(7) < LENGTHS, RNG.integers(1, 9, (49, 7)), 0)


def scaled() -> keras.optimizers.Optimizer:
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.01, use_ema=True))


def plain() -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(0.01, use_ema=True)


def descent() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9)


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": plain},
    "scaled loss": {"optimizer": scaled},
    "clip": {"optimizer": plain, "gradient_clip": ("global_norm", 0.5)},
    "micro-batches": {"optimizer": scaled, "micro_batches": 3, "guard": "skip", "x": BAD},
    "guard": {"optimizer": scaled, "guard": "skip", "x": BAD},
    "sum": {"optimizer": plain, "reduction": "sum"},
    "masked tokens": {"optimizer": plain, "micro_batches": 2, "x": TOKENS, "y": TOKENS % 3},
    "checkpoints": {"optimizer": plain, "checkpoint_dir": tempfile.mkdtemp},
    "half precision": {"optimizer": plain, "precision": "float16"},
    "sharded": {
        "optimizer": scaled,
        "shard_optimizer": True,
        "gradient_clip": ("global_norm", 0.5),
        "micro_batches": 2,
        "guard": "skip",
        "x": BAD,
        "layer_statistics": True,
    },
    "sharded by weight": {
        "optimizer": lambda: keras.optimizers.Muon(0.01, use_ema=True),
        "shard_optimizer": True,
        "gradient_clip": ("adaptive", 0.1),
    },
    "sharded matrices": {
        "optimizer": lambda: Muon.for_model(build(), 0.01),
        "shard_optimizer": True,
    },
    "reduced in bfloat16": {"optimizer": descent, "gradient_compression": "bfloat16"},
    "reduced in float16": {
        "optimizer": lambda: keras.optimizers.LossScaleOptimizer(descent()),
        "gradient_compression": "float16",
        "guard": "skip",
        "micro_batches": 2,
        "x": BAD,
    },
    "in low rank": {
        "optimizer": lambda: keras.optimizers.LossScaleOptimizer(descent()),
        "gradient_compression": LowRank(1),
        "guard": "skip",
        "x": BAD,
    },
}
FIRST = ("plain", "micro-batches", "masked tokens", "sharded", "reduced in bfloat16")


def build() -> keras.Model:  # By the seed of the trainer: however many processes there are.
    hidden = keras.layers.Dense(16, activation="tanh", kernel_regularizer="l2")
    outputs = keras.layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(0.8))
    return keras.Sequential([keras.Input((6,)), hidden, outputs])


def build_for_tokens() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Embedding(9, 8, mask_zero=True),  # Whose gradient is sparse on TensorFlow.
        keras.layers.GRU(8, return_sequences=True),
        keras.layers.Dense(3),
    ]
    return keras.Sequential([keras.Input((7,), dtype="int32"), *layers])


def make(way: str) -> Trainer:
    arguments = dict(WAYS[way])
    if "checkpoint_dir" in arguments:
        arguments["checkpoint_dir"] = arguments["checkpoint_dir"]()  # Rank 0 alone uses its own.
    reduction = arguments.pop("reduction", "sum_over_batch_size")
    arguments.pop("x", None)
    if "WORLD_SIZE" not in os.environ:  # To whom it could send gradients.
        arguments.pop("gradient_compression", None)
        arguments.pop("shard_optimizer", None)
    return Trainer(
        build_for_tokens if arguments.pop("y", None) is not None else build,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction),
        metrics=["accuracy"],
        seed=3,
        distributed_strategy="allreduce" if "WORLD_SIZE" in os.environ else None,
        **{**arguments, "optimizer": arguments["optimizer"]()},
    )


def train(way: str) -> dict[str, Any]:
    """Returns the weights, losses and metrics of twenty steps."""
    trainer = make(way)
    x, y = WAYS[way].get("x", X), WAYS[way].get("y", Y)
    valid = X if x is BAD else x
    record = Path(tempfile.mkdtemp()) / "run.sqlite"
    if "layer_statistics" in WAYS[way]:
        trainer.record_run(record)
    if way in ("plain", "clip"):
        logs = [step.logs for step in trainer.steps(x, y, batch_size=16, epochs=5)]
    else:
        history = trainer.fit(
            x, y, batch_size=16, epochs=5, shuffle=False, verbose=0, validation_data=(valid, y)
        )
        logs = [history.history]
    weights = trainer.model.get_weights()
    results = {f"{way}/{index}": weight for index, weight in enumerate(weights)}
    for name in logs[0]:
        results[f"{way}/{name}"] = np.array([log[name] for log in logs])
    if "layer_statistics" in WAYS[way]:
        results |= read_statistics(way, record)
    if WAYS[way].get("shard_optimizer") and "WORLD_SIZE" in os.environ:
        results[f"{way} state"] = np.array(count_state(trainer.model.optimizer))
    results[f"{way}/outputs"] = trainer.predict(valid, batch_size=16, verbose=0)
    evaluation = trainer.evaluate(valid, y, verbose=0, return_dict=True)
    results[f"{way}/evaluation"] = np.array([evaluation[name] for name in sorted(evaluation)])
    return results


def read_statistics(way: str, path: Path) -> dict[str, Any]:
    """Returns the statistics of each layer in each step, which rank 0 has recorded."""
    statistics = {}
    if os.environ.get("RANK", "0") == "0":
        with RunRecord(path, read_only=True) as record:
            for name in ("layer_gradient_norms", "layer_update_ratios"):
                vectors = [vector for _, vector in record.vectors(name)]
                statistics[f"{way}/{name}"] = np.nan_to_num(np.array(vectors))
    if "WORLD_SIZE" in os.environ:
        statistics = start_processes(join_cluster()).broadcast(statistics)
    return statistics


def count_state(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns how many numbers of an optimizer's state this process has."""
    values = [variable.value for variable in optimizer.variables]
    if keras.backend.backend() == "jax":
        return sum(shard.data.size for value in values for shard in value.addressable_shards)
    return sum(int(np.prod(value.shape)) for value in values)


def train_by_python() -> dict[str, Any]:
    """Returns the weights of a training whose steps a hook keeps from being recorded on PyTorch.

    And the number of the batches that Keras's Python computed, with the hook and without it.
    """
    calls: list[None] = []
    compute = BatchPart.__call__

    def count(*arguments: Any) -> Any:
        calls.append(None)
        return compute(*arguments)

    BatchPart.__call__ = count  # type: ignore[method-assign]
    results = {}
    for name, is_hooked in {"hooked": True, "free": False}.items():
        trainer = make("plain")
        trainer.fit(X, Y, batch_size=16, epochs=1, verbose=0, shuffle=False)
        if is_hooked:
            trainer.model.layers[0].register_forward_hook(lambda *_: None)
        calls.clear()
        trainer.fit(X, Y, batch_size=16, epochs=5, verbose=0, shuffle=False)
        results[f"{name} weights"] = np.concatenate(
            [weight.ravel() for weight in trainer.model.get_weights()]
        )
        results[f"{name} calls"] = np.array([len(calls)])
    BatchPart.__call__ = compute  # type: ignore[method-assign]
    return results


def talk(processes: Processes) -> dict[str, Any]:
    """Returns what each rank hears of the others; it is the same on all."""
    rank = processes.rank
    variables = [
        keras.Variable(np.full(3, rank, dtype), trainable=False)
        for dtype in ("float32", "int32", "bool")
    ]
    processes.broadcast_variables(variables)
    return {
        "heard": np.array([processes.broadcast(f"from rank {rank}")]),
        "variables": np.concatenate(
            [keras.ops.convert_to_numpy(variable) for variable in variables]
        ),
        "gathered": np.concatenate(processes.gather(np.full((rank + 1, 2), rank, "float16"))),
        "wishes": np.array(
            [
                processes.all_reduce_flags([False, rank == 1]),  # Nobody was asked before.
                processes.all_reduce_flags([False, False]),
                processes.all_reduce_flags([False, False]),
                processes.all_reduce_flags_now([rank == 1, False]),
                processes.all_reduce_flags_now([False, False]),
            ]
        ),
    }


def resume(way: str) -> dict[str, Any]:
    """Returns the weights of a training that was left and resumed, and of one that was not."""
    folder = Path(sys.argv[1]) / f"checkpoints of {way}"
    WAYS["resumed"] = {**WAYS[way], "checkpoint_dir": lambda: folder}
    options = {"batch_size": 16, "epochs": 4, "shuffle": False}
    steps = make("resumed").steps(X, Y, **options)
    for _ in range(7):
        next(steps)
    steps.close()
    resumed, whole = make("resumed"), make(way)
    resumed.fit(X, Y, verbose=0, resume=True, **options)
    whole.fit(X, Y, verbose=0, **options)
    flat = [
        np.concatenate([weight.ravel() for weight in trainer.model.get_weights()])
        for trainer in (resumed, whole)
    ]
    return {f"resumed {way}": np.stack(flat)}


def be_left_alone(processes: Processes) -> dict[str, Any]:
    """Returns what rank 0 is told in a step, and after it, when the others have ended."""
    steps = make("plain").steps(X, Y, batch_size=16)
    next(steps)
    if processes.rank:
        return {}
    results = {}
    for name, go_on in {"in step": lambda: next(steps), "between": lambda: talk(processes)}.items():
        try:
            go_on()
        except PeerLostError as error:
            results[f"lost {name}"] = np.array([str(error)])
    return results


def main() -> None:
    cluster = join_cluster() if "WORLD_SIZE" in os.environ else None
    is_first = sys.argv[2] == "first"
    ways = [way for way in WAYS if (way in FIRST) == is_first]
    results = {name: value for way in ways for name, value in train(way).items()}
    if cluster is not None:
        processes = start_processes(cluster)
        if is_first:
            results |= talk(processes)
            if keras.backend.backend() == "torch":
                results |= train_by_python()
        results |= resume("sharded" if is_first else "sharded by weight")
        if processes.replicas is not None:
            results |= resume("reduced in bfloat16" if is_first else "in low rank")
        if is_first and keras.backend.backend() != "jax":  # It ends a process that is left alone.
            results |= be_left_alone(processes)
    np.savez(Path(sys.argv[1]) / f"{os.environ.get('RANK', 'alone')}.npz", **results)
    if "lost between" in results:
        # Whose peers are gone has gloo's threads left, and they may abort it as Python ends.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
