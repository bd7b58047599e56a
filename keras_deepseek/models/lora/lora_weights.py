"""Saving and loading of a LoRA without the model's own weights, for any Keras model.

The safetensors file has two matrices and the scale for each layer, named by the layer's path. A
loaded LoRA is assigned either whole or not at all.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.artifacts.staging_folder import flush_to_disk, staging_folder
from keras_deepseek.checks import check_path
from keras_deepseek.errors import BundleError, CheckpointError, InvalidInputError
from keras_deepseek.models.checkpoints.safetensors_file import MappedFiles, read_header
from keras_deepseek.models.checkpoints.weights_writer import write_tensors
from keras_deepseek.models.lora.adapted_layers import (
    add_lora,
    find_adapted,
    find_candidates,
    lora_shapes,
    lora_variables,
    path_of,
    read_matrices,
)
from keras_deepseek.models.lora.low_rank_adaptation import check_lora

_MOST_NAMED = 5


@dataclass(frozen=True)
class LayerAdapter:
    """The LoRA of one layer: its matrices A and B, and its scale.

    `a` is `(*kernel_shape[:-1], rank)`, `b` `(rank, kernel_shape[-1])`; for experts there is a `b`
    for each. `lora_alpha` is the scale, before it is divided by the rank.
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
        if name in layers and not _fits(layers[name], x, has_lora=bool(adapted))
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


def _fits(layer: keras.Layer, adapter: LayerAdapter, *, has_lora: bool) -> bool:
    """Returns true if an adapter fits a layer's kernel and, with `has_lora`, its present LoRA."""
    rank = layer.lora_rank if has_lora else adapter.rank
    if has_lora and not math.isclose(layer.lora_alpha, adapter.lora_alpha, rel_tol=1e-6):
        return False
    return rank > 0 and (adapter.a.shape, adapter.b.shape) == lora_shapes(layer, rank)


def _shorten(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


_PARTS = ("lora_a", "lora_b", "lora_alpha")
_SUFFIX = ".safetensors"


def save_lora_weights(model: keras.Model, filepath: str | os.PathLike[str]) -> None:
    """Writes the LoRA of a model to a file, without the model's own weights.

    Args:
        model: `keras.Model` that has a LoRA.
        filepath: Path of the file. It ends in `.safetensors`. An older file is replaced when the
            new one is complete.

    Raises:
        InvalidInputError: The model has no LoRA, or the file name has another suffix.
        CheckpointError: The file can't be written.
        PeerLostError: Another process has ended, or does not answer.

    Example:

    >>> import tempfile
    >>> import keras
    >>> from keras_deepseek.models import enable_lora, load_lora_weights, save_lora_weights
    >>> def make_model():
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="score")])
    >>> model, other = make_model(), make_model()
    >>> names = enable_lora(model, rank=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_lora_weights(model, f"{folder}/tuned.safetensors")
    ...     load_lora_weights(other, f"{folder}/tuned.safetensors")
    >>> len(other.trainable_variables)
    2
    """
    target = _check_name(filepath)
    arrays: dict[str, Array] = {}
    for layer in check_lora(model):
        values = (*read_matrices(layer), np.array([layer.lora_alpha], "float32"))
        arrays |= {
            f"{_path_within(model, layer)}/{part}": x
            for part, x in zip(_PARTS, values, strict=True)
        }
    if backend.current().distribution.process_rank() > 0:
        return
    with write_atomically(target) as path:
        write_tensors(path, arrays)


def load_lora_weights(model: keras.Model, filepath: str | os.PathLike[str]) -> None:
    """Reads a LoRA that `save_lora_weights` wrote.

    If the model has no LoRA, one is added as in the saved model, and everything else is frozen.
    Layers are found by their paths. Give your layers names if a model is built again in the same
    process.

    Args:
        model: `keras.Model`.
        filepath: Path of the file.

    Raises:
        InvalidInputError: The LoRA belongs to another model, or differs from the model's own LoRA.
        CheckpointError: The file is missing, damaged, or holds something else.

    Example:

    >>> import tempfile
    >>> import keras
    >>> from keras_deepseek.models import enable_lora, load_lora_weights, save_lora_weights
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="score")])
    >>> names = enable_lora(model, rank=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_lora_weights(model, f"{folder}/tuned.safetensors")
    ...     load_lora_weights(model, f"{folder}/tuned.safetensors")
    """
    path = _check_name(filepath)
    tensors = read_tensors(path)
    parts_by_layer: dict[str, dict[str, Array]] = {}
    for name, array in tensors.items():
        layer_path, _, part = name.rpartition("/")
        parts_by_layer.setdefault(layer_path, {})[part] = array
    if not parts_by_layer or any(set(parts) != set(_PARTS) for parts in parts_by_layer.values()):
        raise CheckpointError(
            f"{path.name!r} holds no LoRA: expected a file that save_lora_weights wrote."
        )
    paths = {_path_within(model, layer): path_of(layer) for layer in find_candidates(model)}
    adapters = {
        paths.get(name, name): _read_adapter(parts) for name, parts in parts_by_layer.items()
    }
    assign_adapters(model, adapters, path.name)


def _path_within(model: keras.Model, layer: keras.Layer) -> str:
    """Returns a layer's path without the model's name, which may differ between processes."""
    return path_of(layer).removeprefix(f"{model.name}/")


def _read_adapter(parts: Mapping[str, Array]) -> LayerAdapter:
    a, b, alpha = (parts[part] for part in _PARTS)
    return LayerAdapter(a, b, float(np.asarray(alpha, "float32").reshape(-1)[0]))


def _check_name(filepath: Any) -> Path:
    path = Path(check_path("filepath", filepath)).absolute()
    if path.suffix != _SUFFIX:
        raise InvalidInputError(
            f"`filepath` must end in {_SUFFIX!r}, received {os.fspath(filepath)!r}. For a `peft` "
            "folder use save_peft_adapter and load_peft_adapter."
        )
    return path


def read_tensors(path: Path) -> dict[str, Array]:
    """Reads copies of all tensors of a small safetensors file into memory."""
    header = read_header(path)
    with MappedFiles() as files:
        return {name: np.array(files.read(tensor)) for name, tensor in header.items()}


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """A context manager that yields a temporary file path, and moves it to `target` at the end."""
    try:
        with staging_folder(target) as work:
            path = work / target.name
            yield path
            flush_to_disk(path)
            path.replace(target)
            flush_to_disk(target.parent)
    except OSError as error:
        raise CheckpointError(f"{str(target)!r} can't be written: {error.strerror}.") from error
    except BundleError as error:
        raise CheckpointError(str(error)) from error
