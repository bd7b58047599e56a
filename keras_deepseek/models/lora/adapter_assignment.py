"""Assignment of a loaded LoRA to a model: either all of it or nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import keras

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.lora.adapted_layers import (
    add_lora,
    find_adapted,
    find_candidates,
    kernel_of,
    lora_variables,
    path_of,
)

_MOST_NAMED = 5


@dataclass(frozen=True)
class LayerAdapter:
    """The LoRA of one layer: its matrices A and B, and its scale.

    `a` is `(*kernel_shape[:-1], rank)`, `b` `(rank, kernel_shape[-1])`. `lora_alpha` is the scale,
    before it is divided by the rank.
    """

    a: Array
    b: Array
    lora_alpha: float

    @property
    def rank(self) -> int:
        """The rank of the two matrices."""
        return int(self.a.shape[-1])


def assign_adapters(model: keras.Model, adapters: Mapping[str, LayerAdapter], source: str) -> None:
    """Assigns loaded LoRA matrices to a model; adds a LoRA first if the model has none.

    `adapters` are by path of a layer. `source` names the file or folder, for errors.
    """
    adapted = {path_of(layer): layer for layer in find_adapted(model)}
    layers = adapted or {path_of(layer): layer for layer in find_candidates(model)}
    unknown = [name for name in adapters if name not in layers]
    missing = [name for name in adapted if name not in adapters]
    wrong = [
        f"{name} ({x.a.shape} and {x.b.shape})"
        for name, x in adapters.items()
        if name in layers and not _fits(layers[name], x, is_there=bool(adapted))
    ]
    if unknown or missing or wrong:
        parts = {"not in the model": unknown, "not in the file": missing, "do not fit": wrong}
        raise InvalidInputError(
            f"{source!r} holds a LoRA that does not fit the model {model.name!r}: "
            + "; ".join(f"{_shorten(names)} {problem}" for problem, names in parts.items() if names)
            + ". Use the model that it was trained with, with the same LoRA or without one."
        )
    if not adapted:
        chosen = [layers[name] for name in adapters]
        ranks = {name: x.rank for name, x in adapters.items()}
        alphas = {name: x.lora_alpha for name, x in adapters.items()}
        add_lora(model, ranks, chosen, alphas)
    for name, x in adapters.items():
        for variable, value in zip(lora_variables(layers[name]), (x.a, x.b), strict=True):
            variable.assign(value.astype(variable.dtype))


def _fits(layer: keras.Layer, adapter: LayerAdapter, *, is_there: bool) -> bool:
    shape = tuple(kernel_of(layer).shape)
    rank = layer.lora_rank if is_there else adapter.rank
    if is_there and not math.isclose(layer.lora_alpha, adapter.lora_alpha, rel_tol=1e-6):
        return False
    fits = adapter.a.shape == (*shape[:-1], rank) and adapter.b.shape == (rank, shape[-1])
    return fits and rank > 0


def _shorten(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
