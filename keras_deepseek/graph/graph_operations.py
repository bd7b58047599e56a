"""Operations that run graphs: a branch, and two kinds of loops."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_deepseek.graph.ir import Graph, GraphOperation, Shape
from keras_deepseek.graph.program import Program


class Branch(GraphOperation):
    """Runs the first of two graphs if a condition is true, else the second.

    Call arguments:
        condition: A boolean scalar.
        captured: For each graph, the tensors that it reads.
    """

    def compute_output_spec(self, condition: Any, *captured: Any) -> list[keras.KerasTensor]:
        """Returns the symbols of the outputs."""
        return [keras.KerasTensor(value.shape, value.dtype) for value in self.graphs[0].outputs]

    def call(self, condition: Any, *captured: Any) -> Any:
        """Returns the outputs of a graph."""
        then, otherwise = map(Program, self.graphs)
        return ops.cond(condition, lambda: then(captured[0]), lambda: otherwise(captured[1]))


class ForEach(GraphOperation):
    """Runs a graph for each element of sequences, along their first axis.

    The graph has the inputs `[*carry, *elements, *captured]` and the outputs `[*carry, *results]`.
    The outputs of the operation are the last carry, and the results of all elements in sequences.

    Args:
        graph: The graph.
        shapes: The shapes of the results of all elements.
        is_backwards: True to begin with the last element.

    Call arguments:
        carry: The first carry.
        sequences: The sequences.
        captured: The tensors from outside.
    """

    def __init__(self, graph: Graph, shapes: Sequence[Shape], is_backwards: bool) -> None:
        super().__init__([graph])
        self.shapes, self.is_backwards = tuple(shapes), is_backwards

    def compute_output_spec(
        self, carry: Any, sequences: Any, captured: Any
    ) -> list[keras.KerasTensor]:
        """Returns the symbols of the outputs."""
        values = self.graphs[0].outputs
        shapes = [*(value.shape for value in values[: len(carry)]), *self.shapes]
        return [
            keras.KerasTensor(shape, value.dtype)
            for shape, value in zip(shapes, values, strict=True)
        ]

    def call(self, carry: Any, sequences: Any, captured: Any) -> list[Any]:
        """Returns the outputs, by one step after another.

        `ops.scan` on TensorFlow demands results like the carry.
        """
        run, results = Program(self.graphs[0]), []
        indices = range(sequences[0].shape[0])
        for index in reversed(indices) if self.is_backwards else indices:
            outputs = run([*carry, *(sequence[index] for sequence in sequences), *captured])
            carry, result = outputs[: len(carry)], outputs[len(carry) :]
            results.append(result)
        if self.is_backwards:
            results.reverse()
        return [*carry, *map(ops.stack, zip(*results, strict=True))]


class While(GraphOperation):
    """Runs a graph while a condition is true.

    The graph has the inputs `[*variables, *captured]` and the outputs `[condition, *variables]`.

    Call arguments:
        condition: The condition of the first run, a boolean scalar.
        limit: The most runs, an integer scalar, or `None`.
        variables: The first variables.
        captured: The tensors from outside.
    """

    def compute_output_spec(
        self, condition: Any, limit: Any, variables: Any, captured: Any
    ) -> list[keras.KerasTensor]:
        """Returns the symbols of the outputs."""
        return [keras.KerasTensor(value.shape, value.dtype) for value in self.graphs[0].outputs[1:]]

    def call(self, condition: Any, limit: Any, variables: Any, captured: Any) -> Any:
        """Returns the last variables."""
        run = Program(self.graphs[0])

        def step(_: Any, *before: Any) -> Any:
            return run([*before, *captured])

        return ops.while_loop(lambda goes_on, *_: goes_on, step, (condition, *variables), limit)[1:]
