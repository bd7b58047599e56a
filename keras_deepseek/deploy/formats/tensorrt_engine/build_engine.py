"""Building of a TensorRT engine from an ONNX file, for a range of input sizes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.signature import Signature, TensorSpec
from keras_deepseek.backend.export.random_batch import BATCH, name_axes
from keras_deepseek.backend.runtimes.tensorrt_engine.libraries import make_error_log
from keras_deepseek.errors import ExportError, InvalidInputError, unknown_name_message

Sizes = tuple[int, int, int]
"""The smallest, the usual and the largest size of an axis."""

Shape = tuple[int, ...]

_BOUNDS = ("smallest", "usual", "largest")
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
    return tuple(_resolve_profile(signature, profile) for profile in profile_dicts)


def _resolve_profile(signature: Signature, profile: Mapping[str, Any]) -> Profile:
    """Completes one of the user's dicts, whose keys name free axes or inputs, to a profile."""
    axes_of = name_axes(signature, are_shared=False)
    free = [axis for axes in axes_of.values() for axis in axes if isinstance(axis, str)]
    specs = {spec.name: spec for spec in signature.inputs}
    sizes: dict[str, Sizes] = {}
    for name, value in profile.items():
        # An axis and an input may have the same name: three shapes are those of the input.
        if name in specs and (name not in free or _are_shapes(value)):
            ranges = _sizes_of(specs[name], axes_of[name], value)
        elif name in free:
            ranges = {name: _check_sizes(f"axis {name!r}", value)}
        else:
            names = [*dict.fromkeys(free), *specs]
            raise InvalidInputError(unknown_name_message("axis or input of profiles=", name, names))
        for axis, triple in ranges.items():
            if sizes.setdefault(axis, triple) != triple:
                raise InvalidInputError(
                    f"Axis {axis!r} has two ranges in one profile: {sizes[axis]} and {triple}. "
                    "Pass one range, or two profiles."
                )
    all_sizes = {
        axis: sizes.get(axis, _BATCH_SIZES if axis == BATCH else _LENGTHS)
        for axis in dict.fromkeys(free)
    }
    shapes = {
        name: tuple(
            tuple(all_sizes[axis][bound] if isinstance(axis, str) else axis for axis in axes)
            for bound in range(len(_BOUNDS))
        )
        for name, axes in axes_of.items()
    }
    return Profile(all_sizes, shapes)


def _sizes_of(spec: TensorSpec, axes: tuple[int | str, ...], value: Any) -> dict[str, Sizes]:
    """Returns the sizes of an input's free axes, from the three shapes that the user passed."""
    if not _are_shapes(value) or any(
        len(shape) != len(axes)
        or any(axis not in (size, str(axis)) for axis, size in zip(axes, shape, strict=True))
        for shape in value
    ):
        raise InvalidInputError(
            f"Input {spec.name!r} in profiles= must have three shapes, the {', '.join(_BOUNDS)}, "
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
        and len(value) == len(_BOUNDS)
        and all(isinstance(shape, Sequence) and not isinstance(shape, str) for shape in value)
    )


def _check_sizes(axis: str, value: Any) -> Sizes:
    sizes = tuple(value) if isinstance(value, Sequence) else ()
    if len(sizes) != len(_BOUNDS) or not all(type(size) is int for size in sizes):
        raise InvalidInputError(
            f"The sizes of {axis} in profiles= must be three integers, the {', '.join(_BOUNDS)}; "
            f"received {value!r}."
        )
    smallest, usual, largest = sizes
    if not 1 <= smallest <= usual <= largest:
        raise InvalidInputError(
            f"The sizes of {axis} in profiles= must be at least 1 and ascending; received "
            f"{value!r}."
        )
    return smallest, usual, largest


def check_nodes(parser: Any, onnx_file: Path) -> None:
    """Raises an `ExportError` that names each node that TensorRT does not support, and why.

    The network of `parser`, an `OnnxParser` of either flavor, can't be used afterwards.
    """
    if parser.supports_model_v2(onnx_file.read_bytes(), str(onnx_file)):
        return
    raise ExportError(f"TensorRT can't take this model: {_describe_errors(parser)}")


def _describe_errors(parser: Any) -> str:
    return "; ".join(dict.fromkeys(_parser_errors(parser))) or "it gives no reason."


def _parser_errors(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # For an unsupported operator, the text is "false", and only the code tells the reason.
        code = error.code().name.lower().replace("_", " ")
        words = " ".join(error.desc().split())
        reason = code if words in ("", "false") else f"{code}: {words}"
        if error.node_operator():
            name = error.node_name() or f"number {error.node()}"
            yield f"node {name} ({error.node_operator()}): {reason}"
        else:
            yield f"the graph: {reason}"


def build_engine(
    tensorrt: Any, onnx_file: Path, profiles: Sequence[Profile], capabilities: Sequence[str]
) -> bytes:
    """Builds and serializes a TensorRT engine in the precision of the ONNX file's tensors.

    `tensorrt` is the module of either flavor. Without capabilities the library's default applies.
    """
    log = make_error_log(tensorrt)
    builder = tensorrt.Builder(log)
    # A parser for the check alone. Its network has a name, since a parser that outlives its network
    # crashes.
    checked_network = _make_network(tensorrt, builder)
    check_nodes(tensorrt.OnnxParser(checked_network, log), onnx_file)
    network = _make_network(tensorrt, builder)
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        raise ExportError(f"TensorRT can't take this model: {_describe_errors(parser)}")
    config = builder.create_builder_config()
    for profile in profiles:
        config.add_optimization_profile(_make_profile(builder, profile))
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            value = getattr(tensorrt.ComputeCapability, f"SM{capability}")
            config.set_compute_capability(value, index)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reasons = "; ".join(log.errors) or "it gives no reason"
        sizes = " and ".join(map(str, profiles))
        raise ExportError(
            f"TensorRT parsed the model but could not build an engine: {reasons}. If the model "
            f"does not take every size from the smallest to the largest ({sizes}), pass profiles=."
        )
    return bytes(engine)


def _make_network(tensorrt: Any, builder: Any) -> Any:
    # Release 10 keeps the file's types only with this flag; 11 and RTX always do.
    strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(strongly_typed)


def _make_profile(builder: Any, profile: Profile) -> Any:
    optimization_profile = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        optimization_profile.set_shape(name, *shapes)
    return optimization_profile
