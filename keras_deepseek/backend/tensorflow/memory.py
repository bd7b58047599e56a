"""Memory on TensorFlow: what a step keeps of it, and that it ran out."""

import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_deepseek.backend.tensorflow.gradients import differentiate


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of a device, or the machine's, ran out."""
    return isinstance(error, MemoryError | tf.errors.ResourceExhaustedError) or (
        isinstance(error, tf.errors.InternalError) and "out of memory" in str(error).lower()
    )


def release_memory() -> None:
    """Gives back the memory that nothing uses and that the framework holds in reserve."""
    gc.collect()  # TensorFlow keeps what it has once taken, for what comes next.


def count_kept_bytes(
    compute: Callable[[], tuple[Any, Any]],
    variables: Sequence[keras.Variable],
    states: Sequence[keras.Variable],
    batch: Any,
) -> int:
    """Returns the bytes that `differentiate` keeps from its forward for its backward pass."""
    forward: set[str] = set()

    def compute_and_look() -> tuple[Any, Any]:
        result = compute()
        forward.update(each.name for each in tf.compat.v1.get_default_graph().get_operations())
        return result

    @tf.function(autograph=False)
    def run() -> Any:
        _, backward = differentiate(compute_and_look, variables, states)
        return backward()

    operations = run.get_concrete_function().graph.get_operations()
    kept = {
        tensor.ref(): tensor
        for operation in operations
        if operation.name not in forward
        for tensor in operation.inputs
        if tensor.op.name in forward and _is_computed(tensor.op)
    }
    return sum(map(_count_bytes, kept.values()))


def _is_computed(operation: Any) -> bool:
    """Whether an operation computes its output, in place of reading what is there."""
    return operation.type not in ("Const", "Placeholder", "ReadVariableOp")


def _count_bytes(tensor: Any) -> int:
    if tensor.dtype == tf.resource:
        return 0
    if tensor.dtype == tf.variant:
        return _count_list_of_loop(tensor)
    return int(math.prod(size or 0 for size in tensor.shape.as_list()) * tensor.dtype.size)


def _count_list_of_loop(tensor: Any) -> int:
    """Returns the bytes of a list to which each round of a loop adds a tensor."""
    loop = tensor.op
    if loop.type not in ("While", "StatelessWhile"):
        return 0
    body = loop.graph._get_function(loop.get_attr("body").name).graph
    added = body.outputs[tensor.value_index].op
    if added.type not in ("TensorListPushBack", "TensorListSetItem"):
        return 0
    return _count_rounds(loop) * _count_bytes(added.inputs[-1])


def _count_rounds(loop: Any) -> int:
    """Returns how often a loop runs at the most; 1 where its data decide."""
    most = loop.inputs[1]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        definition = loop.graph.as_graph_def()
        (again,) = tf.graph_util.import_graph_def(definition, return_elements=[most.name])
        try:
            return max(int(session.run(again)), 1)
        except tf.errors.InvalidArgumentError:  # It asks for the data.
            return 1
