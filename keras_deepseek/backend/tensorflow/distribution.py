"""Training on several devices or processes with TensorFlow.

Processes communicate by collective operations: over gRPC, and NCCL on GPUs. The model is a plain
one in each, outside of any `tf.distribute` scope; the compiled step itself sums the gradients.
"""

import contextlib
import functools
import io
import itertools
import os
import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import ml_dtypes
import numpy as np
import tensorflow as tf
from tensorflow.python.eager.context import context, coordination_config_pb2

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.processes.device_shares import DeviceShares
from keras_deepseek.backend.processes.gradient_compression import Compression
from keras_deepseek.backend.processes.processes import (
    ComputePart,
    JoinedProcesses,
    PeerErrorTranslator,
    Processes,
    RemoteReplicas,
    Replicas,
    SingleReplica,
    check_rank,
    check_same_shapes,
)
from keras_deepseek.backend.processes.rendezvous import rendezvous
from keras_deepseek.backend.processes.task_cluster import TaskCluster
from keras_deepseek.backend.processes.weight_parts import Division
from keras_deepseek.backend.protocols.distribution import Distribution
from keras_deepseek.backend.tensorflow.gradient_sums import Collectives
from keras_deepseek.backend.tensorflow.replicas import DeviceReplicas
from keras_deepseek.backend.tensorflow.task_cluster import (
    adopt_tasks,
    connect_tasks,
    refuse_begun,
    serve_task,
)
from keras_deepseek.errors import InvalidInputError


class TensorFlowDistribution(Distribution):
    """Implements `Distribution` by TensorFlow's collective operations and parameter servers."""

    def replicate_over_devices(self, strategy: Any) -> Replicas | None:
        if isinstance(strategy, list):
            return DeviceReplicas(strategy, DeviceShares(len(strategy)))
        devices = _find_devices(strategy)
        return DeviceReplicas(devices) if len(devices) > 1 else None

    def count_replicas(self, model: keras.Model) -> int:
        return int(model.distribute_strategy.num_replicas_in_sync)

    def count_processes(self) -> int:
        position = read_place()
        return 1 if position is None else position[0]

    def process_rank(self) -> int:
        position = read_place()
        return 0 if position is None else position[1]

    def read_whole(self, value: Any) -> Array:
        tensor = tf.convert_to_tensor(value)
        if "CPU" not in tensor.device:
            return np.array(tensor)
        if tensor.dtype == tf.bfloat16:  # NumPy knows no other package's dtypes.
            return np.from_dlpack(tf.bitcast(tensor, tf.int16)).view(ml_dtypes.bfloat16)
        return np.from_dlpack(tensor)

    def read_strategy(self, strategy: Any) -> tuple[int, int, str] | None:
        is_one = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return read_place() if is_one else None

    def join_processes(
        self, coordinator: str, world_size: int, rank: int, *, join_timeout: float, timeout: float
    ) -> Processes:
        position = read_place()
        if position is not None:
            check_rank("TensorFlow", position[:2], (world_size, rank))
            if not _joined:  # The script's own strategy has joined.
                _joined.append(TensorFlowProcesses(rank, world_size, timeout))
        else:
            refuse_begun()
            addresses = rendezvous(coordinator, world_size, rank, join_timeout, _own_port())
            _bear_with_stalls(world_size, timeout)
            # Creating the strategy joins the processes: there is no other public way. It is not
            # used further.
            tf.distribute.MultiWorkerMirroredStrategy(
                tf.distribute.cluster_resolver.SimpleClusterResolver(
                    tf.train.ClusterSpec({"worker": addresses}),
                    task_type="worker",
                    task_id=rank,
                    rpc_layer="grpc",
                )
            )
            _joined.append(TensorFlowProcesses(rank, world_size, timeout))
        return _joined[0]

    def connect_tasks(
        self, find_addresses: Callable[[], Mapping[str, Sequence[str]]]
    ) -> TaskCluster:
        return connect_tasks(find_addresses)

    def adopt_tasks(self, strategy: Any) -> TaskCluster | None:
        return adopt_tasks(strategy)

    def serve_task(
        self,
        addresses: Mapping[str, Sequence[str]],
        task_type: str,
        index: int,
        on_ready: Callable[[], None],
    ) -> None:
        serve_task(addresses, task_type, index, on_ready)


def _find_devices(strategy: Any) -> list[str]:
    if strategy == "allreduce":
        for kind in ("TPU", "GPU", "CPU"):  # Only TPUs that the script has set up.
            devices = [device.name for device in tf.config.list_logical_devices(kind)]
            if devices:
                return devices
    # A strategy of one process: others have joined before.
    if isinstance(strategy, tf.distribute.Strategy):
        return list(strategy.extended.worker_devices)
    raise InvalidInputError(
        "distributed_strategy must be 'allreduce', 'parameter_server', or a strategy of "
        f"tf.distribute; received {strategy!r}."
    )


_BETWEEN, _WISHES = range(20_101, 20_103)
"""Group keys of collective operations: between steps, and of `all_reduce_flags`."""

_joined: "list[TensorFlowProcesses]" = []  # TensorFlow joins once in a process.


class translate_peer_errors(PeerErrorTranslator):  # noqa: N801
    """A context manager that turns errors of collective operations into `PeerLostError`."""

    engine = "TensorFlow"

    @staticmethod
    def is_of_peer(error: BaseException) -> bool:
        """Returns True if another rank may have caused an error, such as a lost connection."""
        is_operation = bool(_joined) and isinstance(error, tf.errors.OpError)
        return is_operation and "ollective" in str(error)


class TensorFlowProcesses(SingleReplica, JoinedProcesses):
    """The processes of a cluster that TensorFlow has joined, with a timeout in seconds."""

    translate_peer_errors = translate_peer_errors

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.replicas: RemoteReplicas | None = self
        self.is_compilable = False
        self._collectives = Collectives(rank, world_size, timeout)
        self._known: dict[Any, int] = {}  # The shapes that all ranks have agreed on.
        self._number = itertools.count()
        self._thread = ThreadPoolExecutor(1, "agree")
        self._question = itertools.count(1)

    def add_up(self, scalar: Any) -> Any:
        return self._sum("add_up", [scalar], [])[0][0]

    def sum(
        self, compute: ComputePart, batch: Any, variables: Sequence[keras.Variable]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        scalars, finish = compute(self.rank, batch)
        scalar_sums, _ = self._sum("forward", scalars, [])
        return scalar_sums, *self._sum("backward", *finish(scalar_sums, None))

    def sum_compressed(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        compression: Compression,
    ) -> tuple[list[Any], list[Any], list[Any], Callable[[], None]]:
        scalars, finish = compute(self.rank, batch)
        scalar_sums, _ = self._sum("forward", scalars, [])
        more, gradients = finish(scalar_sums, None)
        counts, _ = self._sum("backward", more, [])
        shapes = [tuple(tensor.shape) for tensor in gradients]
        # The kind changes what is sent.
        key = self._check_shapes([*shapes, (str(compression.kind),)])
        sums, residual = self._collectives.sum_compressed(gradients, compression, key)
        return scalar_sums, counts, sums, lambda: compression.residual.assign(residual)

    def sum_parts(
        self,
        compute: ComputePart,
        batch: Any,
        variables: Sequence[keras.Variable],
        division: Division,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        scalars, finish = compute(self.rank, batch)
        scalar_sums, _ = self._sum("forward", scalars, [])
        more, gradients = finish(scalar_sums, None)
        counts, _ = self._sum("backward", more, [])
        vectors = [tf.reshape(gradient, (-1,)) for gradient in gradients]
        exchange = self._send_in_order(self._collectives.exchange, "sum parts", division)
        sums: dict[int, Any] = {}
        for bucket in division.buckets:
            bucket_vectors = [vectors[weight] for weight in bucket]
            ranks = range(self.world_size)
            rows = exchange(
                tf.stack([division.join(bucket, bucket_vectors, rank) for rank in ranks])
            )
            # One after another, as the sum of the whole gradients is made.
            total = functools.reduce(tf.add, [rows[rank] for rank in ranks])
            sums |= zip(bucket, division.split(bucket, total, self.rank), strict=True)
        return scalar_sums, counts, [sums[weight] for weight in range(len(vectors))]

    def share_parts(
        self, division: Division, parts: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> None:
        gather = self._send_in_order(self._collectives.gather, "share parts", division)
        for bucket in division.buckets:
            rows = gather(division.pad(bucket, [parts[weight] for weight in bucket]))
            ranks = range(self.world_size)
            by_rank = [division.split(bucket, rows[rank], rank) for rank in ranks]
            for weight, pieces in zip(bucket, zip(*by_rank, strict=True), strict=True):
                variable = variables[weight]
                variable.assign(tf.reshape(tf.concat(pieces, axis=0), variable.shape))

    def _send_in_order(
        self, send: Callable[[Any, int], Any], purpose: str, division: Division
    ) -> Callable[[Any], Any]:
        """Returns a function that sends a tensor, by the next of the keys for a division."""
        widths = [(division.width(bucket),) for bucket in division.buckets]
        keys = itertools.count(self._check_shapes([(purpose,), *widths]))
        sent: list[Any] = []

        def send_next(tensor: Any) -> Any:
            with tf.control_dependencies(sent[-1:]):  # NCCL needs the same order on all ranks.
                sent.append(received := send(tensor, next(keys)))
            return received

        return send_next

    def _sum(
        self, part: str, scalars: Sequence[Any], gradients: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Sums scalars, in float64, and gradients over all ranks."""
        shapes = [tuple(tensor.shape) for tensor in (*scalars, *gradients)]
        key = self._check_shapes([(part,), *shapes])
        exact = [tf.cast(tensor, tf.float64) for tensor in scalars]
        sums = self._collectives.sum(exact, gradients, key)
        scalar_sums = [tf.cast(tensor, tf.float32) for tensor in sums[: len(exact)]]
        return scalar_sums, sums[len(exact) :]

    def own_random_numbers(self) -> contextlib.AbstractContextManager[None]:
        """Does nothing, because Keras's layers draw random numbers by their own seeds."""
        return contextlib.nullcontext()

    def broadcast(self, value: Any) -> Any:
        with translate_peer_errors("send what rank 0 knows"):
            return pickle.loads(self._broadcast_bytes(b"" if self.rank else pickle.dumps(value)))

    def broadcast_variables(self, variables: Sequence[keras.Variable]) -> None:
        with translate_peer_errors("send the variables of rank 0"):
            self._check_shapes([tuple(variable.shape) for variable in variables])
            for variable in variables:
                value = keras.ops.convert_to_numpy(variable)
                sent = self._broadcast_bytes(b"" if self.rank else value.tobytes(), value.nbytes)
                variable.assign(np.frombuffer(sent, value.dtype).reshape(value.shape))

    def gather(self, array: Array) -> list[Array]:
        written = io.BytesIO()
        np.save(written, array, allow_pickle=False)
        with translate_peer_errors("gather the outputs"):
            return [
                np.load(io.BytesIO(data), allow_pickle=False)
                for data in self._gather_bytes(written.getvalue())
            ]

    def _ask(self, wishes: Sequence[bool]) -> Callable[[], list[bool]]:
        def reduce(key: int) -> list[bool]:
            with tf.device("CPU:0"):
                counts = self._collectives.reduce(tf.constant(list(wishes), tf.int32), _WISHES, key)
            return [bool(count > 0) for count in counts]

        return self._thread.submit(reduce, next(self._question)).result

    def _sum_now(self, numbers: Array) -> Array:
        """Sums an array over all ranks at once, even while a step is traced."""
        with tf.init_scope(), tf.device("CPU:0"):  # Eagerly, also while a step is traced.
            vector = tf.constant(numbers.reshape(-1))
            summed = self._collectives.reduce(vector, _BETWEEN, next(self._number)).numpy()
            return np.asarray(summed).reshape(numbers.shape)

    def _broadcast_bytes(self, data: bytes, size: int | None = None) -> bytes:
        if size is None:
            size = int(self._sum_now(np.array([len(data)], "int64"))[0])
        words = np.zeros(-(-size // 4), "int32")
        words.view("uint8")[: len(data)] = np.frombuffer(data, "uint8")
        return self._sum_now(words).tobytes()[:size]  # All ranks but 0 add zeros.

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        sizes = np.zeros(self.world_size, "int64")
        sizes[self.rank] = len(data)
        sizes = self._sum_now(sizes)
        words = np.zeros((self.world_size, -(-int(sizes.max()) // 4)), "int32")
        words[self.rank].view("uint8")[: len(data)] = np.frombuffer(data, "uint8")
        rows = self._sum_now(words)  # Each rank adds zeros to the rows of the others.
        return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def _check_shapes(self, shapes: Sequence[tuple[Any, ...]]) -> int:
        """Returns the first of the collective keys for tensors of these shapes, equal on all ranks.

        Raises an error if ranks are about to sum different tensors, which would hang.
        """
        if (key := self._known.get(tuple(shapes))) is not None:
            return key
        everywhere = [pickle.loads(data) for data in self._gather_bytes(pickle.dumps(shapes))]
        check_same_shapes(self.rank, everywhere)
        first = sum(map(len, self._known))
        self._known[tuple(shapes)] = first
        return first


def read_place() -> tuple[int, int, str] | None:
    """Returns world size, rank, and rank 0's address, or `None` if no collective operations run."""
    server = context()._collective_ops_server_def  # noqa: SLF001
    if server is None:
        return None
    jobs = {job.name: dict(job.tasks) for job in server.cluster.job}
    chiefs, workers = jobs.get("chief", {}), jobs.get("worker", {})
    is_worker = server.job_name == "worker"
    rank = server.task_index + (len(chiefs) if is_worker else 0)
    first = chiefs[0] if chiefs else workers[0]
    return len(chiefs) + len(workers), rank, str(first)


def _bear_with_stalls(world_size: int, timeout: float) -> None:
    """Makes TensorFlow's heartbeat timeout as long as its timeout for answers.

    By default TensorFlow gives up a process that stops for ten seconds, as on a busy machine.
    """
    context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        heartbeat_timeout_in_ms=int(1000 * timeout),
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=world_size)
        ],
    )


def _own_port() -> int:
    """Returns the port at which TensorFlow will listen, from `TF_CONFIG` or a free one."""
    if "TF_CONFIG" in os.environ:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        if resolver.cluster_spec():
            address = resolver.cluster_spec().task_address(resolver.task_type, resolver.task_id)
            return int(address.rpartition(":")[2])
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
