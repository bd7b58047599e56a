"""How many different integers each input of a model may hold, by the tables it is looked up in."""

from collections.abc import Iterable, Iterator

import keras

from keras_deepseek.backend.keras_internals import flatten_layers, functional_graph


def input_vocabularies(model: keras.Model, num_inputs: int) -> list[int | None]:
    """Returns for each flat input the fewest rows of an `Embedding` that it is looked up in.

    An input is followed through the graph of a Functional model and of those inside it. Where a
    layer of another kind holds embeddings, each input that reaches it counts for all of them.

    Args:
        model: `keras.Model`.
        num_inputs: integer. The number of its flat inputs.

    Returns:
        A list in the order of the flat inputs; `None` for one that reaches no `Embedding`. Of a
        model that is not Functional, the fewest rows of all its embeddings for each.
    """
    graph = functional_graph(model)
    if graph is None:
        fewest = min(_rows(flatten_layers(model)), default=None)
        return [fewest] * num_inputs
    vocabularies: list[int | None] = [None] * num_inputs
    places = {id(tensor): index for index, tensor in enumerate(graph.inputs)}
    for operation in graph.operations:
        for given, rows in _looked_up(operation):
            for index in _sources(given, places):
                vocabularies[index] = min(rows, vocabularies[index] or rows)
    return vocabularies


def _looked_up(operation: keras.Operation) -> Iterator[tuple[keras.KerasTensor, int]]:
    """Yields the tensors that an operation looks up, each with the rows of the table."""
    for node in operation._inbound_nodes:
        if not isinstance(operation, keras.Layer):
            continue
        rows = input_vocabularies(operation, len(node.input_tensors))
        for tensor, number in zip(node.input_tensors, rows, strict=True):
            if number is not None:
                yield tensor, number


def _rows(layers: Iterable[keras.Layer]) -> Iterator[int]:
    for layer in layers:
        if isinstance(layer, keras.layers.Embedding):
            yield layer.input_dim


def _sources(tensor: keras.KerasTensor, places: dict[int, int]) -> Iterator[int]:
    """Yields the inputs that a tensor is made of, by their places."""
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        given = waiting.pop()
        if id(given) in seen:
            continue
        seen.add(id(given))
        if id(given) in places:
            yield places[id(given)]
        else:
            operation, node_index, _ = given._keras_history
            waiting.extend(operation._inbound_nodes[node_index].input_tensors)
