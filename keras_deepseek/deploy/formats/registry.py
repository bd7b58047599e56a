"""The registry of export formats by name: built-in ones and those that users registered."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.export_arguments import INT8, check_format
from keras_deepseek.artifacts.signature import Batch
from keras_deepseek.backend import DISPLAY_NAMES
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.format_list import FORMATS
from keras_deepseek.errors import InvalidInputError, unknown_name_message

_REQUIRED = ("name", "suffix", "entry", "write", "run")
_registered: dict[str, ExportFormat] = {}


@dataclass(frozen=True)
class ChosenFormat:
    """An export format, the format it is built from if any, and its options.

    The options exclude calibration. The options of a registered format are `None`: another process
    can't make it by its name.
    """

    export_format: ExportFormat
    options: dict[str, Any] | None
    source: "ChosenFormat | None" = None


def choose_format(
    name: str,
    options: Mapping[str, Any],
    calibration: Sequence[Batch] | None = None,
    *,
    common_options: Iterable[str] = (),
) -> ChosenFormat:
    """Creates an export format by name, and the format that it is built from if any.

    The options may be those of either. A registered format takes none. The int8 calibration goes to
    the format that makes int8: the one that a backend writes, unless the other makes it itself. The
    error for an unknown option also suggests one of `common_options`, the caller's own.
    """
    check_format(name, known_formats())
    is_plain = not options and calibration is None
    if name in _registered and (is_plain or name not in FORMATS):
        check_no_options(name, options)
        return _with_source(_registered[name], None, {}, calibration)
    made_by = FORMATS[name].load()
    known_options = _options_of(name)
    for option in options:
        if option not in known_options:
            raise InvalidInputError(
                unknown_name_message(f"option of {name}", option, {*known_options, *common_options})
            )
    names = _parameters(made_by)
    format_options = {option: value for option, value in options.items() if option in names}
    remaining = {option: value for option, value in options.items() if option not in names}
    if made_by.source:  # A wrong value is named before a missing library is.
        choose_format(made_by.source, remaining)
    makes_int8 = not made_by.source or INT8 in made_by.own_precisions
    data = {"calibration": calibration} if makes_int8 and calibration is not None else {}
    return _with_source(made_by(**format_options, **data), format_options, remaining, calibration)


def _with_source(
    export_format: ExportFormat,
    options: dict[str, Any] | None,
    source_options: Mapping[str, Any],
    calibration: Sequence[Batch] | None,
) -> ChosenFormat:
    source = None
    if export_format.source:
        all_options = {**source_options, **export_format.source_options}
        makes_int8 = INT8 in export_format.own_precisions
        source = choose_format(
            export_format.source, all_options, None if makes_int8 else calibration
        )
    return ChosenFormat(export_format, options, source)


def known_formats() -> list[str]:
    """Returns the names of all export formats, registered ones included."""
    return list(dict.fromkeys([*FORMATS, *_registered]))


def check_no_options(name: str, options: Mapping[str, Any]) -> None:
    """Rejects options for a registered format, since the user has constructed it already."""
    if options:
        raise InvalidInputError(
            f"The format {name!r} takes no options; received {', '.join(options)}. Pass them to a "
            "registered format when you make it, as in "
            f"register_exporter(MyFormat({', '.join(f'{key}=...' for key in options)}))."
        )


def _parameters(made_by: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(made_by).parameters)


def _options_of(name: str) -> list[str]:
    """Returns the options of an export format and of the formats that it is built from."""
    made_by = FORMATS[name].load()
    return _parameters(made_by) + (_options_of(made_by.source) if made_by.source else [])


def register_exporter(export_format: ExportFormat) -> None:
    """Makes a format of your own known to `Exporter`.

    It is then reached by its name, `Exporter(model, backend="pt2")`, and by the suffix of a path,
    `Exporter(model, backend="custom").export("model.pt2")`.

    Args:
        export_format: `ExportFormat`, or an object with its five required members: `name`,
            `suffix`, `entry`, `write` and `run`. A registered format of the same name is replaced.

    Raises:
        InvalidInputError: A required member is missing or has a wrong type, or the name is that of
            a format of this package.

    Example:

    >>> class WeightCount:
    ...     name, suffix, entry = "weight_count", ".txt", "weights.txt"
    ...
    ...     def write(self, model, folder):
    ...         (folder / self.entry).write_text(str(model.model.count_params()))
    ...         return "counting"
    ...
    ...     def run(self, folder, samples):
    ...         raise NotSupportedError("A number can't be run.")
    >>> register_exporter(WeightCount())
    """
    if isinstance(export_format, type):
        name = export_format.__name__
        raise InvalidInputError(
            f"`register_exporter` expects an instance, and received the class {name}. Pass an "
            f"object of it, as in register_exporter({name}())."
        )
    if missing := [member for member in _REQUIRED if not hasattr(export_format, member)]:
        raise InvalidInputError(
            f"`register_exporter` expects an ExportFormat, or an object with {', '.join(_REQUIRED)}"
            f"; received {export_format!r}, which has no {', no '.join(missing)}."
        )
    _check_members(export_format)
    name = export_format.name
    # An instance of the package's own class for the name may stand for it, made with other options.
    is_own = name in FORMATS and isinstance(export_format, FORMATS[name].load())
    if name == "custom" or (name in FORMATS and not is_own):
        raise InvalidInputError(
            f"{name!r} is the name of a built-in format. Give yours another `name`."
        )
    is_complete = isinstance(export_format, ExportFormat)
    _registered[name] = export_format if is_complete else DuckTypedFormat(export_format)


def _check_members(export_format: ExportFormat) -> None:
    for member in ("name", "suffix", "entry"):
        value = getattr(export_format, member)
        if not isinstance(value, str) or not (value or member == "suffix"):
            raise InvalidInputError(
                f"`{member}` of an export format must be a string"
                f"{'' if member == 'suffix' else ' that is not empty'}; received {value!r}."
            )
    backends = getattr(export_format, "backends", ())
    if isinstance(backends, str) or not set(backends) <= DISPLAY_NAMES.keys():
        raise InvalidInputError(
            f"`backends` of an export format must be a tuple of {', '.join(DISPLAY_NAMES)}; "
            f"received {backends!r}."
        )


class DuckTypedFormat(ExportFormat):
    """An adapter for a user's export format that does not subclass `ExportFormat`.

    Members that it lacks are inherited.
    """

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped
        optional = [member for member in dir(ExportFormat) if not member.startswith("_")]
        for member in {*_REQUIRED, *optional} - {"write", "run"}:
            if hasattr(wrapped, member):
                setattr(self, member, getattr(wrapped, member))

    def write(self, model: NamedModel, folder: Path) -> str:
        how: str = self._wrapped.write(model, folder)
        return how

    def run(self, folder: Path, samples: list[Batch]) -> list[Batch]:
        outputs: list[Batch] = self._wrapped.run(folder, samples)
        return outputs


def check_suffix(path: Path, export_format: ExportFormat) -> None:
    """Raises an error if a path has the suffix of another format, as `"model.tflite"` for ONNX."""
    for name, entry in FORMATS.items():
        if entry.suffix not in ("", export_format.suffix) and path.name.endswith(entry.suffix):
            raise InvalidInputError(
                f"{path.name!r} has the suffix of {name!r}, and the format is "
                f"{export_format.name!r}. Pass {name!r} as the format, or another path."
            )


def format_for_suffix(path: Path) -> ExportFormat:
    """Returns the registered export format whose file suffix a path has."""
    for export_format in _registered.values():
        if export_format.suffix and path.name.endswith(export_format.suffix):
            return export_format
    suffixes = {entry.suffix: name for name, entry in _registered.items() if entry.suffix}
    folders = [name for name, entry in _registered.items() if not entry.suffix]
    without = (
        f" Without a suffix there is {', '.join(folders)}: pass that name in place of 'custom'."
        if folders
        else ""
    )
    raise InvalidInputError(
        f"'custom' means the registered format whose suffix the path has, and no registered format "
        f"writes {path.name!r}: with a suffix there are {suffixes or 'none'}.{without} Register "
        "one with keras_deepseek.deploy.register_exporter, or pass the name of a format "
        "in place of 'custom'."
    )
