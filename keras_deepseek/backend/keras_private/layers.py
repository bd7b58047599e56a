"""Layers: their names, their states, and the parts of attention layers."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.models.functional import Functional

from keras_deepseek.backend.keras_private.temporary_attributes import own_attributes
from keras_deepseek.backend.tensor_values import read_values


def flatten_layers(model: keras.Layer) -> list[keras.Layer]:
    """Returns the model and every layer inside it, at any depth.

    `model.layers` stops at the first level: it lacks the projections inside an attention layer and
    the cell inside a recurrent one.
    """
    return list(model._flatten_layers())


def inner_layers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers that a layer holds directly."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the variables of a layer, such as weights and seeds, not of inner layers."""
    inner = {id(variable) for sublayer in inner_layers(layer) for variable in sublayer.variables}
    return [variable for variable in layer.variables if id(variable) not in inner]


def is_container(layer: keras.Layer) -> bool:
    """Returns True if a layer only passes tensors through its layers.

    Functional models and `Sequential`s do, unless their class overrides `call`.
    """
    return type(layer).call in (keras.Sequential.call, Functional.call)


def delete_variables(layer: keras.Layer, names: Iterable[str]) -> None:
    """Deletes attributes of a layer that are variables.

    `del` collects garbage for each, which takes a tenth of a second or more in a large model.
    """
    for name in names:
        layer._untrack_variable(getattr(layer, name))
        object.__delattr__(layer, name)


def functional_graph(model: keras.Layer) -> Any:
    """Returns the object that holds `inputs` and `operations` of a graph model, or `None`."""
    graph = getattr(model, "_functional", None) or model  # A Sequential holds a Functional model.
    return graph if hasattr(graph, "operations") and hasattr(graph, "inputs") else None


def producing_operation(tensor: Any) -> keras.Operation | None:
    """Returns the layer or operation of a graph that makes a symbolic tensor, else `None`."""
    history = getattr(tensor, "_keras_history", None)
    return None if history is None else history.operation


def output_layers(model: keras.Layer) -> list[keras.Layer]:
    """Returns the layers with weights that make the outputs of a graph, also before activations."""
    graph = functional_graph(model)
    waiting = list(keras.tree.flatten(graph.outputs)) if graph else []
    layers = []
    while waiting:
        operation, node_index, tensor_index = waiting.pop()._keras_history
        if isinstance(operation, keras.layers.Wrapper):
            operation = operation.layer
        if not isinstance(operation, keras.Layer) or not operation.weights:
            inputs = operation._inbound_nodes[node_index].input_tensors
            waiting += inputs if len(inputs) == 1 else []
        elif (inner_graph := functional_graph(operation)) is not None:
            waiting.append(keras.tree.flatten(inner_graph.outputs)[tensor_index])
        else:
            layers.append(operation)
    return layers


@contextmanager
def unique_paths(model: keras.Layer) -> Iterator[dict[str, tuple[keras.Layer, str]]]:
    """Context manager in which no two layers of a model have the same path.

    Layers that were built apart may share a path, such as those of two functions that make a model.
    It yields each layer by its path, with the path of the layer that holds it; `""` for the model.
    """
    layers_by_path: dict[str, tuple[keras.Layer, str]] = {}
    visited: set[int] = set()
    with contextlib.ExitStack() as stack:
        waiting = [(model, "")]
        while waiting:
            layer, outer = waiting.pop()
            if id(layer) in visited:
                continue
            visited.add(id(layer))
            path = unique = str(layer.path or layer.name)
            number = 1
            while unique in layers_by_path:
                number += 1
                unique = f"{path}#{number}"
            stack.enter_context(own_attributes(layer, _path=unique))
            layers_by_path[unique] = layer, outer
            waiting += [(inner, unique) for inner in reversed(inner_layers(layer))]
        yield layers_by_path


@contextmanager
def without_new_nodes(model: keras.Model) -> Iterator[None]:
    """Context manager that removes the graph nodes added by calls on symbolic tensors.

    A graph that is made of the layers later would find those calls, and fail. Operations between
    the layers of a graph get nodes too.
    """
    owners = {
        id(operation): operation
        for layer in flatten_layers(model)
        for operation in (layer, *getattr(layer, "operations", ()))
    }
    nodes = [
        (nodes, len(nodes))
        for owner in owners.values()
        for nodes in (owner._inbound_nodes, owner._outbound_nodes)
    ]
    try:
        yield
    finally:
        for node_list, number in nodes:
            del node_list[number:]


def infers_shapes() -> bool:
    """Returns True while Keras calls layers to infer the shapes of their outputs.

    On PyTorch it may call them on ones, in tensors that look like any other.
    """
    return bool(in_symbolic_scope())


def first_call_shapes(model: keras.Model) -> dict[str, Any]:
    """Returns the shapes with which a subclassed model was built, by argument of `call`."""
    return dict(_untracked(model._build_shapes_dict or {}))


def example_inputs(model: keras.Model) -> Any:
    """Returns one sample of zeros for a model, or `None` if its input shapes are unknown."""
    functional = getattr(model, "_functional", model)  # A `Sequential` holds one.
    structure = getattr(functional, "_inputs_struct", None)
    if structure is None or any(
        None in tuple(tensor.shape)[1:] for tensor in keras.tree.flatten(structure)
    ):
        return None
    return keras.tree.map_structure(
        lambda tensor: keras.ops.zeros((1, *tuple(tensor.shape)[1:]), tensor.dtype),
        _untracked(structure),
    )


def _untracked(structure: Any) -> Any:
    """Converts Keras's tracked containers to plain ones, which JAX needs."""
    if isinstance(structure, dict):
        return {name: _untracked(value) for name, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(_untracked(value) for value in structure)
    return structure


def batch_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the layer variables that training on a batch changes, such as moving statistics.

    Frozen weights are not among them, nor the states of random number generators.
    """
    return [
        variable for layer in model._flatten_layers() for variable in layer._non_trainable_variables
    ]


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the random number generators in the layers of a model."""
    states = [
        generator.state
        for layer in model._flatten_layers()
        for generator in getattr(layer, "_seed_generators", ())
    ]
    return list({id(state): state for state in states}.values())


def block_states(layer: keras.Layer) -> list[keras.Variable]:
    """Returns the variables that a layer's call may assign, such as statistics and seeds.

    Frozen weights are not among them.
    """
    weights = {
        id(variable) for inner in layer._flatten_layers() for variable in inner._trainable_variables
    }
    return [variable for variable in layer.non_trainable_variables if id(variable) not in weights]


def attention_projections(attention: keras.Layer) -> dict[str, keras.Layer]:
    """Returns the projections of a built attention layer of Keras by name.

    The names are "query", "key", "value", "output", and "gate" if there is one.
    """
    names = ("query", "key", "value", "gate", "output")
    projections = {name: getattr(attention, f"_{name}_dense", None) for name in names}
    return {name: projection for name, projection in projections.items() if projection is not None}


def attend(
    attention: keras.Layer, query: Any, key: Any, value: Any, mask: Any, training: bool | None
) -> Any:
    """Computes a Keras attention layer's output per head from projected queries, keys and values.

    The tensors have the shape `(batch_size, length, num_heads, dim)`. The boolean mask broadcasts
    to `(batch_size, query_length, key_length)`.
    """
    return attention._compute_attention(query, key, value, attention_mask=mask, training=training)[
        0
    ]


def uses_flash_attention(attention: keras.Layer) -> bool:
    """Returns True if a Keras attention layer must use flash attention."""
    return bool(attention._flash_attention)


@contextlib.contextmanager
def unchanged_state(model: keras.Model) -> Iterator[None]:
    """Context manager that restores a model's counters, seeds and other states at the end."""
    variables = block_states(model)
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:  # Keras lists them nowhere.
            variables += [state for state in keras.tree.flatten(layer.states) if state is not None]
    old_values = read_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, old_values, strict=True):
            variable.assign(value)
