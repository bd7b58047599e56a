"""Pads requests to a few lengths, so that requests of different lengths share batches.

`model_version` pads the inputs and cuts the outputs. In between, `batch_queue` holds requests of
equal shapes.
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
    """The padding of free axes: the lengths, the values, and how the model recognizes padding.

    `values` and `masks` have no default, because a model that reads padding as data gives wrong
    answers. The warm-up runs rows with and without padding, and refuses a model whose answers
    differ.

    Args:
        lengths: sequence of integers. A free axis is padded to the next of these lengths. Longer
            ones are refused.
        values: mapping from input to the number that it is padded with. Each input with a free axis
            beside the batch axis has one, except masks.
        masks: `"by_value"` if the model recognizes padding by its value, as after
            `Embedding(mask_zero=True)` or `Masking`. Or a mapping from an input that is a mask to
            the input whose first free axis it masks: the server makes the mask, true for data, and
            clients don't send it.
        outputs: mapping from output to the input whose length its first free axis has. Defaults to
            an empty one: the only padded input gives the length.

    Raises:
        InvalidInputError: `lengths` are no rising integers of at least 1, or another argument has
            the wrong type.

    Example:

    >>> Padding(lengths=(16, 32, 64), values={"tokens": 0}, masks="by_value").lengths
    (16, 32, 64)
    """

    lengths: Sequence[int]
    values: Mapping[str, float]
    masks: Literal["by_value"] | Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = list(self.lengths) if isinstance(self.lengths, Sequence) else []
        are_whole = all(
            isinstance(length, int) and not isinstance(length, bool) for length in lengths
        )
        if not (lengths and are_whole and lengths[0] >= 1 and lengths == sorted(set(lengths))):
            raise InvalidInputError(
                "`lengths` must be a list of rising integers of at least 1, as in (16, 32, 64); "
                f"received {self.lengths!r}."
            )
        if not isinstance(self.values, Mapping):
            raise InvalidInputError(
                "`values` must map each input with a free axis to the number that pads it, as in "
                f"{{'tokens': 0}}; received {self.values!r}."
            )
        if self.masks != BY_VALUE and not isinstance(self.masks, Mapping):
            raise InvalidInputError(
                "`masks` must be 'by_value', or map each input that is a mask to the input that it "
                f"masks, as in {{'mask': 'tokens'}}; received {self.masks!r}."
            )
        if not isinstance(self.outputs, Mapping):
            raise InvalidInputError(
                "`outputs` must map an output to the input whose length it has, as in "
                f"{{'tags': 'tokens'}}; received {self.outputs!r}."
            )

    @property
    def mask_inputs(self) -> Mapping[str, str]:
        """The inputs that are masks, and the inputs that they mask."""
        return {} if isinstance(self.masks, str) else self.masks


class Padder:
    """Pads the inputs of one model to a few lengths, and cuts its outputs back."""

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
        self._masks = {inputs[mask]: masked for mask, masked in masks.items()}
        """The input that each mask masks, by the mask's spec."""
        self._free = {
            name: _free_axes(spec)
            for name, spec in inputs.items()
            if _free_axes(spec) and name not in masks
        }
        """The axes of unknown size of each input that is padded."""
        fixed = [masked for masked in masks.values() if masked not in self._free]
        if fixed:
            raise InvalidInputError(
                f"`padding.masks`: the inputs {fixed} have no free axis to pad. Remove their masks."
            )
        missing = [name for name in self._free if name not in padding.values]
        if missing:
            raise InvalidInputError(
                f"`padding.values`: the inputs {missing} are missing. Give each a number that the "
                "model recognizes as padding."
            )
        self._sources = {
            name: self._source_of(spec) for name, spec in outputs.items() if _free_axes(spec)
        }
        """The axis to cut of each output, with the input and the axis that give its length."""
        input_specs = tuple(spec for spec in signature.inputs if spec.name not in masks)
        self.signature = Signature(input_specs, signature.outputs)
        """The signature for clients: without the masks."""

    def fill(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns a request's inputs after padding, together with their masks.

        Raises `InvalidInputError` if an axis is longer than the largest length.
        """
        filled = dict(inputs)
        for name, axes in self._free.items():
            array = inputs[name]
            width = [(0, 0)] * array.ndim
            for axis in axes:
                width[axis] = (0, self._padded_length(name, array.shape[axis]) - array.shape[axis])
            if any(after for _, after in width):
                filled[name] = np.pad(array, width, constant_values=self._padding.values[name])
        for spec, masked in self._masks.items():
            axis = self._free[masked][0]
            is_data = np.arange(filled[masked].shape[axis]) < inputs[masked].shape[axis]
            rows = len(inputs[masked])
            filled[spec.name] = np.broadcast_to(is_data, (rows, len(is_data))).astype(
                find_dtype(spec.dtype)
            )
        return filled

    def cut(self, outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns a request's outputs without the padding.

        The `inputs` are those before padding.
        """
        cut = dict(outputs)
        for name, (axis, source, input_axis) in self._sources.items():
            array, length = outputs[name], inputs[source].shape[input_axis]
            slices = (slice(None),) * axis + (slice(length),)
            cut[name] = array[slices]
        return cut

    def _padded_length(self, name: str, size: int) -> int:
        for length in self._padding.lengths:
            if size <= length:
                return length
        raise InvalidInputError(
            f"Input {name!r} has a length of {size}. Expected at most "
            f"{max(self._padding.lengths)}, the largest of the padded lengths."
        )

    def _source_of(self, spec: TensorSpec) -> tuple[int, str, int]:
        """Returns an output's free axis, and the input and input axis that determine its length."""
        source = self._padding.outputs.get(spec.name)
        if source is None and len(self._free) == 1:
            source = next(iter(self._free))
        if source not in self._free:
            raise InvalidInputError(
                f"The length of output {spec} may be that of several inputs. Name one in "
                f"`padding.outputs`: map {spec.name!r} to one of {list(self._free)}."
            )
        return _free_axes(spec)[0], source, self._free[source][0]


def _free_axes(spec: TensorSpec) -> list[int]:
    """Returns the axes of unknown size, except for the axis of the rows."""
    return [axis for axis, size in enumerate(spec.shape) if size is None and axis > 0]


def _check_names(argument: str, names: Iterable[str], specs: Mapping[str, TensorSpec]) -> None:
    for name in names:
        if name not in specs:
            raise InvalidInputError(
                f"`padding.{argument}`: {unknown_name_message('tensor', name, specs)}"
            )
