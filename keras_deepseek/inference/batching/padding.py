"""Fills requests up to a few lengths, so that those of unequal lengths share batches. Pure.

`model_version` fills what comes and cuts what goes; the lanes of `batch_queue` then hold requests
of equal shapes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature, TensorSpec, find_dtype
from keras_deepseek.errors import InvalidInputError, unknown_name_message

BY_VALUE = "by_value"


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Lengths that free axes are filled up to, with what, and how the model knows of it.

    There is no default for `values` and `masks`: padding that a model takes for data changes its
    answers. Where a model is warmed up, a row is run alone and filled, and answers that differ are
    refused.

    Args:
        lengths: sequence of integers. A free axis is filled up to the next of these; one that is
            longer than all is refused.
        values: mapping from input to number: what it is filled with. Each input with a free axis
            beside the batch, but for masks, has one.
        masks: `"by_value"` where the model itself tells padding by its value, as after
            `Embedding(mask_zero=True)` or `Masking`. Or a mapping from an input that is a mask to
            the input whose first free axis it is for: the server makes it, true where there is
            data, and clients don't send it.
        outputs: mapping from output to the input whose length its first free axis has. Defaults to
            none: the only one that is filled.

    Raises:
        InvalidInputError: `lengths` are no rising integers of at least 1.

    Example:

    >>> Padding(lengths=(16, 32, 64), values={"tokens": 0}, masks="by_value").lengths
    (16, 32, 64)
    """

    lengths: Sequence[int]
    values: Mapping[str, float]
    masks: Literal["by_value"] | Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = list(self.lengths)
        whole = all(isinstance(one, int) and not isinstance(one, bool) for one in numbers)
        if not (numbers and whole and numbers[0] >= 1 and numbers == sorted(set(numbers))):
            raise InvalidInputError(
                f"Received lengths={self.lengths!r}. Expected rising integers of at least 1."
            )
        if isinstance(self.masks, str) and self.masks != BY_VALUE:
            raise InvalidInputError(unknown_name_message("masks", self.masks, [BY_VALUE]))

    @property
    def mask_inputs(self) -> Mapping[str, str]:
        """The inputs that are masks, and the inputs that they are for."""
        return {} if isinstance(self.masks, str) else self.masks


class Padder:
    """Fills the inputs of one model, and cuts its outputs.

    Args:
        padding: `Padding`.
        signature: `Signature` of the model.

    Raises:
        InvalidInputError: The padding names what the model does not have, or leaves out an input.
    """

    def __init__(self, padding: Padding, signature: Signature) -> None:
        self._padding = padding
        inputs = {spec.name: spec for spec in signature.inputs}
        outputs = {spec.name: spec for spec in signature.outputs}
        masks = padding.mask_inputs
        _check_names("masks", masks, inputs)
        _check_names("masks", masks.values(), inputs)
        _check_names("values", padding.values, inputs)
        _check_names("outputs", padding.outputs, outputs)
        _check_names("outputs", padding.outputs.values(), inputs)
        self._masks = {inputs[name]: of for name, of in masks.items()}
        self._free = {
            name: _free_axes(spec)
            for name, spec in inputs.items()
            if _free_axes(spec) and name not in masks
        }
        fixed = [of for of in masks.values() if of not in self._free]
        if fixed:
            raise InvalidInputError(f"masks: the inputs {fixed} have no free axis to be filled.")
        missing = [name for name in self._free if name not in padding.values]
        if missing:
            raise InvalidInputError(
                f"There is no value to fill the inputs {missing} with: give one in `values`, that "
                "the model takes for padding."
            )
        self._sources = {
            name: self._source_of(spec) for name, spec in outputs.items() if _free_axes(spec)
        }
        kept = tuple(spec for spec in signature.inputs if spec.name not in masks)
        self.signature = Signature(kept, signature.outputs)
        """What clients send and get: the masks are not among it."""

    def fill(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the inputs, filled, and the masks.

        Args:
            inputs: dict of arrays by name, rows first.

        Raises:
            InvalidInputError: An axis is longer than the largest length.
        """
        filled = dict(inputs)
        for name, axes in self._free.items():
            array = inputs[name]
            width = [(0, 0)] * array.ndim
            for axis in axes:
                width[axis] = (0, self._length(name, array.shape[axis]) - array.shape[axis])
            if any(after for _, after in width):
                filled[name] = np.pad(array, width, constant_values=self._padding.values[name])
        for spec, of in self._masks.items():
            axis = self._free[of][0]
            is_data = np.arange(filled[of].shape[axis]) < inputs[of].shape[axis]
            rows = len(inputs[of])
            filled[spec.name] = np.broadcast_to(is_data, (rows, len(is_data))).astype(
                find_dtype(spec.dtype)
            )
        return filled

    def cut(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs for the data alone.

        Args:
            outputs: dict of arrays by name, for the filled inputs.
            inputs: dict of arrays by name, as they were before.
        """
        cut = dict(outputs)
        for name, (axis, of, input_axis) in self._sources.items():
            array, length = outputs[name], inputs[of].shape[input_axis]
            places = (slice(None),) * axis + (slice(length),)
            cut[name] = array[places]
        return cut

    def _length(self, name: str, size: int) -> int:
        for length in self._padding.lengths:
            if size <= length:
                return length
        raise InvalidInputError(
            f"Input {name!r} has a length of {size}; at most {max(self._padding.lengths)} are "
            "served."
        )

    def _source_of(self, spec: TensorSpec) -> tuple[int, str, int]:
        """Returns the free axis of an output, and the input and axis that it comes from."""
        of = self._padding.outputs.get(spec.name)
        if of is None and len(self._free) == 1:
            of = next(iter(self._free))
        if of not in self._free:
            raise InvalidInputError(
                f"Which input the length of output {spec} comes from can't be told: say it in "
                f"`outputs`, one of {list(self._free)}."
            )
        return _free_axes(spec)[0], of, self._free[of][0]


def _free_axes(spec: TensorSpec) -> list[int]:
    return [axis for axis, size in enumerate(spec.shape) if size is None and axis > 0]


def _check_names(argument: str, names: Iterable[str], known: Mapping[str, TensorSpec]) -> None:
    for name in names:
        if name not in known:
            raise InvalidInputError(f"{argument}: {unknown_name_message('tensor', name, known)}")
