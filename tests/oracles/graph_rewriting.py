"""Rewritten models, what stands in their programs, and a comparison with the original."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_deepseek import backend
from keras_deepseek.graph import OptimizedModel
from keras_deepseek.graph.trace import as_symbols

RNG = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    """Returns random numbers."""
    return RNG.normal(size=shape).astype("float32")


def randomize(model: keras.Model) -> keras.Model:
    """Assigns random numbers to all weights, since zero biases hide faults."""
    for variable in model.weights:
        if "seed" not in variable.path:
            value = draw(*variable.shape) * 0.5
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    return model


def rewrite(model: keras.Model, example: Any, *passes: str, mode: str = "inference") -> Any:
    """Returns the model, rewritten by some passes for inputs like the example."""
    inputs = tree.map_structure(ops.convert_to_tensor, example)
    return OptimizedModel(model, as_symbols(inputs), mode, passes)


def kinds(optimized: OptimizedModel, *, training: bool = False) -> list[str]:
    """Returns the operations of a program, in order, and the classes of whole layers."""
    nodes = optimized.plan(training).program.graph.nodes()
    return [node.kind for node in nodes if node.operation is not None]


def shapes_of(optimized: OptimizedModel, *names: str, training: bool = False) -> list[Any]:
    """Returns the output shapes of the operations of some kinds, with `None` for free sizes."""
    graph = optimized.plan(training).program.graph
    return [
        tuple(None if size in graph.free_sizes else size for size in node.spec.shape)
        for node in graph.nodes()
        if node.kind in names
    ]


def check_equal(
    model: keras.Model, optimized: OptimizedModel, *batches: Any, gradients: bool = False
) -> None:
    """Compares outputs, or in training the gradients by inputs and weights, batch by batch."""
    for batch in batches:
        inputs = tree.map_structure(ops.convert_to_tensor, batch)
        if gradients:
            expected_tensors, received_tensors = (
                _gradients(network, tree.flatten(batch)) for network in (model, optimized)
            )
        else:
            expected_tensors, received_tensors = (
                tree.flatten(network(inputs, training=False)) for network in (model, optimized)
            )
        assert len(expected_tensors) == len(received_tensors)
        for expected, received in zip(
            map(_array, expected_tensors), map(_array, received_tensors), strict=True
        ):
            largest = max(1.0, np.abs(expected).max(initial=0.0))
            np.testing.assert_allclose(received, expected, rtol=0, atol=2e-5 * largest)


def _gradients(model: keras.Model, batch: Sequence[Any]) -> list[Any]:
    def loss(*inputs: Any) -> Any:
        outputs = model(inputs[0] if len(inputs) == 1 else list(inputs), training=True)
        return sum(ops.sum(ops.sin(output)) for output in tree.flatten(outputs))

    compute: Callable[..., Any] = backend.current().compute.compute_gradients
    by_inputs, by_weights = compute(loss, list(batch), model.trainable_variables)
    return [*by_inputs, *by_weights]


def _array(tensor: Any) -> Any:
    return np.asarray(ops.convert_to_numpy(tensor)).astype("float64")
