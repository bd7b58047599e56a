"""The dtype that layers compute in, by private names of Keras with a canary test each.

`layer.dtype_policy = ...` would do, but for its price at each step, and for a `DTypePolicyMap`,
which it writes into.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras


@contextmanager
def lent_policy(layers: Sequence[keras.Layer], policy: keras.DTypePolicy) -> Iterator[None]:
    """Makes layers compute by another dtype policy until the block ends.

    Args:
        layers: Layers, built and not quantized.
        policy: `keras.DTypePolicy`.
    """
    # Not by setting attributes: Keras and PyTorch look at each of them.
    own_policies = [vars(layer)["_dtype_policy"] for layer in layers]
    tables = [layer for layer in layers if _looks_rows_up(layer)]
    own_calls = [vars(layer).get("call") for layer in tables]
    for layer in layers:
        vars(layer)["_dtype_policy"] = policy
    for layer in tables:
        vars(layer)["call"] = _without_autocast(layer.call)
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


def _looks_rows_up(layer: keras.Layer) -> bool:
    call = inspect.unwrap(layer.call)  # Where it is placed on a device, another stands for it.
    return getattr(call, "__func__", None) is keras.layers.Embedding.call


def _without_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the `call` of an embedding that casts the rows that it looks up, and not its table.

    The rows are the same, and their gradients are added up in the table's own precision.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with keras.src.backend.AutocastScope(None):
            return call(*args, **kwargs)

    return run
