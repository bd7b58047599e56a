"""Temporary dtype policies of built layers.

Setting `layer.dtype_policy` would work too, but it is slow at each step, and writes into a
`DTypePolicyMap`.
"""

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from keras_deepseek.backend.keras_private.layers import (
    flatten_layers,
    functional_graph,
    producing_operation,
)
from keras_deepseek.backend.keras_private.sample_values import RENUMBERING

_EXACT = (keras.layers.Normalization, *RENUMBERING)
_read_policy = operator.attrgetter("_dtype_policy")
_TAKES_EXACT = (keras.layers.Embedding, *_EXACT)
"""Layers to which a rounded number is another one; those of the first compute in float32."""


@contextmanager
def temporary_policy(
    layers: Sequence[keras.Layer],
    policy: keras.DTypePolicy,
    *,
    exact_inputs: Collection[keras.Layer] = (),
    casts_embedding_tables: bool = False,
) -> Iterator[None]:
    """Context manager in which built layers compute by another dtype policy.

    The inputs of `exact_inputs` are not cast: see `find_exact_inputs`. `casts_embedding_tables`
    casts the whole table of an embedding instead of the rows that it looks up; a constant table is
    then half as large.
    """
    # `vars` avoids setting attributes, which is slow: Keras and PyTorch inspect each.
    own_policies = [vars(layer)["_dtype_policy"] for layer in layers]
    tables = [layer for layer in layers if looks_rows_up(layer) and not casts_embedding_tables]
    own_calls = [vars(layer).get("call") for layer in tables]
    exact_ids = {id(layer) for layer in exact_inputs}
    for layer, own_policy in zip(layers, own_policies, strict=True):
        switched = _quantized_as(layer, own_policy, policy)
        vars(layer)["_dtype_policy"] = (
            _ExactInputs(switched.name) if id(layer) in exact_ids else switched
        )
    for layer in tables:
        vars(layer)["call"] = _call_without_autocast(layer.call)
    try:
        yield
    finally:
        for layer, own_call in zip(tables, own_calls, strict=True):
            if own_call is None:
                del vars(layer)["call"]
            else:
                vars(layer)["call"] = own_call
        for layer, own_policy in zip(layers, own_policies, strict=True):
            vars(layer)["_dtype_policy"] = own_policy


class PolicyKey:
    """The dtype policies of layers, for dictionaries: Keras's policies have no hash.

    Each call of an optimized model makes one, so this must be fast.
    """

    def __init__(self, layers: Iterable[keras.Layer]) -> None:
        self._policies = tuple(map(_read_policy, layers))

    def __hash__(self) -> int:
        return len(self._policies)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PolicyKey) and self._policies == other._policies


def layers_to_switch(model: keras.Model, *, includes_quantized: bool = False) -> list[keras.Layer]:
    """Returns the layers of a built model that may use another dtype policy than their own.

    An output layer that ends in softmax or sigmoid keeps its own: in half precision a probability
    rounds to 1 and its loss to 0. So does a `Normalization`, whose inputs may exceed float16, and a
    layer that tells whole numbers apart, such as `CategoryEncoding`.
    """
    probabilities = (keras.activations.softmax, keras.activations.sigmoid)
    keep = {
        id(layer)
        for layer in _output_layers(model)
        if isinstance(layer, keras.layers.Softmax)
        or getattr(layer, "activation", None) in probabilities
    }
    return [
        layer
        for layer in flatten_layers(model)
        if (includes_quantized or layer.quantization_mode is None)
        and id(layer) not in keep
        and not isinstance(layer, _EXACT)
    ]


def find_exact_inputs(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers whose inputs may be whole numbers that a later layer needs exactly.

    Token ids may be floats, and half precision would round them: bfloat16 has no 257. The result
    has each layer that contains an embedding or a preprocessing layer. It also has the layers
    inside that may compute the ids, if they have no weights: in a Functional graph those that come
    before such a layer, in another layer all of its direct sublayers.
    """
    holders = [
        layer
        for layer in flatten_layers(model)
        if not isinstance(layer, _TAKES_EXACT)
        and any(isinstance(sublayer, _TAKES_EXACT) for sublayer in flatten_layers(layer))
    ]
    exact_layers = {id(layer): layer for layer in holders}
    for holder in holders:
        graph = functional_graph(holder)
        if graph is None:
            inner = holder._flatten_layers(recursive=False, include_self=False)
            exact_layers.update({id(layer): layer for layer in inner if not layer.weights})
            continue
        # From the layers that take whole numbers back to those that compute them.
        to_visit = [
            layer
            for layer in graph.operations
            if id(layer) in exact_layers or isinstance(layer, _TAKES_EXACT)
        ]
        while to_visit:
            for predecessor in _operations_before(to_visit.pop()):
                is_new = (
                    isinstance(predecessor, keras.Layer) and id(predecessor) not in exact_layers
                )
                if is_new and not predecessor.weights:
                    exact_layers[id(predecessor)] = predecessor
                    to_visit.append(predecessor)
    return list(exact_layers.values())


def _operations_before(operation: Any) -> list[Any]:
    return [
        producing_operation(tensor)
        for node in operation._inbound_nodes
        for tensor in node.input_tensors
    ]


class _ExactInputs(keras.DTypePolicy):
    """A dtype policy that does not cast the inputs of a layer."""

    def convert_input(self, x: Any, autocast: bool, dtype: str) -> Any:
        return super().convert_input(x, autocast=False, dtype=dtype)


def _quantized_as(
    layer: keras.Layer, own_policy: keras.DTypePolicy, policy: keras.DTypePolicy
) -> keras.DTypePolicy:
    """Returns a layer's variant of a dtype policy, which keeps the layer's quantization mode."""
    if isinstance(own_policy, keras.dtype_policies.DTypePolicyMap):
        own_policy = own_policy[layer.path]
    if own_policy.quantization_mode is None:
        return policy
    mode = own_policy.name.partition("_from_")[0]
    return keras.dtype_policies.get(f"{mode}_from_{policy.name}")


def _output_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers that make a model's outputs, including those of models inside it.

    In a subclassed model, each of its own layers may make an output.
    """
    if isinstance(model, keras.Sequential):
        last = list(model.layers[-1:])
    else:
        names = getattr(model, "output_names", None)
        last = [layer for layer in model.layers if names is None or layer.name in names]
    inner = [layer for layer in last if isinstance(layer, keras.Model)]
    return [*last, *(layer for nested in inner for layer in _output_layers(nested))]


def looks_rows_up(layer: keras.Layer) -> bool:
    """Returns True if a layer looks up rows of a table, as a Keras `Embedding` does."""
    call = inspect.unwrap(layer.call)  # A layer that is placed on a device has a wrapped `call`.
    return getattr(call, "__func__", None) is keras.layers.Embedding.call


def _call_without_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the `call` of an embedding that casts the rows that it looks up, not its table.

    The rows are the same, and their gradients are added in the precision of the table.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            return call(*args, **kwargs)

    return run


def autocast_to(dtype: str) -> AbstractContextManager[object]:
    """Returns a context manager in which layers read all float variables in a dtype."""
    scope: AbstractContextManager[object] = keras.src.backend.AutocastScope(dtype)
    return scope


def without_autocast() -> AbstractContextManager[object]:
    """Returns a context manager in which variables have the dtype that they are stored in."""
    scope: AbstractContextManager[object] = keras.src.backend.AutocastScope(None)
    return scope
