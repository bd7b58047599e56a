"""TensorRT's optimization profiles: the sizes of free axes that an engine accepts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.free_axes import BATCH, name_axes
from keras_deepseek.errors import InvalidInputError, unknown_name_message

Sizes = tuple[int, int, int]
"""The smallest, the usual and the largest size of an axis."""

Shape = tuple[int, ...]

BOUNDS = ("smallest", "usual", "largest")
_BATCH_SIZES: Sizes = (1, 4, 32)
_LENGTHS: Sizes = (1, 16, 64)


@dataclass(frozen=True)
class Profile:
    """A profile: the smallest, usual and largest size of each free axis, and shapes of inputs."""

    sizes: Mapping[str, Sizes]
    shapes: Mapping[str, tuple[Shape, ...]]

    def takes(self, shapes: Mapping[str, Shape]) -> bool:
        """Returns True if a batch, given as shapes by input name, is within the profile's range."""
        return all(
            smallest <= size <= largest
            for name, (lower, _, upper) in self.shapes.items()
            for smallest, size, largest in zip(lower, shapes[name], upper, strict=True)
        )

    def __str__(self) -> str:
        ranges = (f"{axis} {'/'.join(map(str, sizes))}" for axis, sizes in self.sizes.items())
        return ", ".join(ranges) or "fixed sizes"


def resolve_profiles(signature: Signature, profiles: Any) -> tuple[Profile, ...]:
    """Returns an engine's profiles, with default sizes for free axes that the user left out.

    A user's dict holds three sizes by the name of an axis, or three shapes by the name of an input.
    Other axes take 1, 4 and 32 for the batch, and 1, 16 and 64 otherwise.
    """
    profile_dicts = (
        [{}] if profiles is None else [profiles] if isinstance(profiles, Mapping) else profiles
    )
    is_sequence = isinstance(profile_dicts, Sequence) and not isinstance(profile_dicts, str)
    if (
        not is_sequence
        or not profile_dicts
        or not all(isinstance(profile, Mapping) for profile in profile_dicts)
    ):
        raise InvalidInputError(
            "`profiles` must be a dict, as in {'batch': (1, 4, 32)}, or a sequence of such; "
            f"received {profiles!r}."
        )
    return tuple(_resolve(signature, profile) for profile in profile_dicts)


def _resolve(signature: Signature, profile: Mapping[str, Any]) -> Profile:
    axes_of = name_axes(signature, are_shared=False)
    free = [axis for axes in axes_of.values() for axis in axes if isinstance(axis, str)]
    specs = {spec.name: spec for spec in signature.inputs}
    sizes: dict[str, Sizes] = {}
    for name, value in profile.items():
        if name in free and not (name in specs and _are_shapes(value)):
            ranges = {name: _check_sizes(f"axis {name!r}", value)}
        elif name in specs:
            ranges = _sizes_of(specs[name], axes_of[name], value)
        else:
            names = [*dict.fromkeys(free), *specs]
            raise InvalidInputError(unknown_name_message("axis or input of profiles=", name, names))
        for axis, triple in ranges.items():
            if sizes.setdefault(axis, triple) != triple:
                raise InvalidInputError(
                    f"Axis {axis!r} has two ranges in one profile: {sizes[axis]} and {triple}. "
                    "Pass one range, or two profiles."
                )
    complete = {
        axis: sizes.get(axis, _BATCH_SIZES if axis == BATCH else _LENGTHS)
        for axis in dict.fromkeys(free)
    }
    shapes = {
        name: tuple(
            tuple(complete[axis][bound] if isinstance(axis, str) else axis for axis in axes)
            for bound in range(len(BOUNDS))
        )
        for name, axes in axes_of.items()
    }
    return Profile(complete, shapes)


def _sizes_of(spec: TensorSpec, axes: tuple[int | str, ...], value: Any) -> dict[str, Sizes]:
    """Returns the sizes of an input's free axes, from the three shapes that a user gave."""
    if not _are_shapes(value) or any(
        len(shape) != len(axes)
        or any(axis not in (size, str(axis)) for axis, size in zip(axes, shape, strict=True))
        for shape in value
    ):
        raise InvalidInputError(
            f"Input {spec.name!r} in profiles= must have three shapes, the {', '.join(BOUNDS)}, "
            f"that fit {spec}; received {value!r}."
        )
    return {
        axis: _check_sizes(
            f"axis {index} of input {spec.name!r}", [shape[index] for shape in value]
        )
        for index, axis in enumerate(axes)
        if isinstance(axis, str)
    }


def _are_shapes(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == len(BOUNDS)
        and all(isinstance(shape, Sequence) and not isinstance(shape, str) for shape in value)
    )


def _check_sizes(axis: str, value: Any) -> Sizes:
    sizes = tuple(value) if isinstance(value, Sequence) else ()
    if len(sizes) != len(BOUNDS) or not all(type(size) is int for size in sizes):
        raise InvalidInputError(
            f"The sizes of {axis} in profiles= must be three integers, the {', '.join(BOUNDS)}; "
            f"received {value!r}."
        )
    smallest, usual, largest = sizes
    if not 1 <= smallest <= usual <= largest:
        raise InvalidInputError(
            f"The sizes of {axis} in profiles= must be at least 1 and ascending; received "
            f"{value!r}."
        )
    return smallest, usual, largest
