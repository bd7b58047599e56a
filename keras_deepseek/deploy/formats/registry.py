"""The formats by name: the built-in ones and those that users registered."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.export_arguments import check_backend
from keras_deepseek.artifacts.signature import Signature
from keras_deepseek.deploy.formats.export_format import ExportFormat
from keras_deepseek.deploy.formats.onnx import OnnxFormat
from keras_deepseek.deploy.formats.saved_model import SavedModelFormat
from keras_deepseek.deploy.formats.tensorrt import TensorRTFormat
from keras_deepseek.deploy.formats.tensorrt_engine.flavor import check_flavor
from keras_deepseek.errors import InvalidInputError

BUILT_IN: dict[str, Callable[..., ExportFormat]] = {
    "onnx": OnnxFormat,
    "savedmodel": SavedModelFormat,
}
_OF_THE_MODEL = ("signature", "precision")
_registered: dict[str, ExportFormat] = {}


def create_format(name: str, options: Mapping[str, Any]) -> ExportFormat:
    """Returns the format of a name.

    Args:
        name: string. The name of a built-in or a registered format.
        options: Arguments of a built-in format, as in `{"opset": 20}`.

    Raises:
        InvalidInputError: The name or an option is unknown.
    """
    if name in _registered:
        check_no_options(name, options)
        return _registered[name]
    if name not in BUILT_IN:
        check_backend(name, known_formats())
    _check_names(name, options, _parameters(BUILT_IN[name]))
    return BUILT_IN[name](**options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Says what is wrong with a format or its options whatever the model is.

    Args:
        name: string. The name of a format, or `"custom"`.
        options: Its arguments, as in `{"opset": 20}`.

    Raises:
        InvalidInputError: The name or an option is unknown, or an option has no such value.
    """
    if name == "custom":
        check_no_options(name, options)
    elif name == "tensorrt":
        _check_names(name, options, [*_of_engine(), *_parameters(OnnxFormat)])
        of_onnx = _parameters(OnnxFormat)
        create_format("onnx", {key: options[key] for key in options if key in of_onnx})
        check_flavor(options.get("flavor", "auto"))
    else:
        create_format(name, options)


def known_formats() -> list[str]:
    """Returns the names of all formats, the registered ones among them."""
    return [*BUILT_IN, *_registered, "tensorrt"]


def create_engine_format(
    signature: Signature, precision: str | None, options: Mapping[str, Any]
) -> tuple[TensorRTFormat, dict[str, Any]]:
    """Returns the format of an engine, and the options of the ONNX file that it is built from.

    Args:
        signature: The model's signature.
        precision: string. What the export was asked to compute in; `None` for the model's own.
        options: Arguments of both, as in `{"flavor": "rtx", "opset": 17}`.

    Raises:
        InvalidInputError: An option is unknown or does not fit the model.
        MissingExtraError: TensorRT is not installed.
        NotSupportedError: It can't build here what is asked for.
    """
    of_onnx = _parameters(OnnxFormat)
    _check_names("tensorrt", options, [*_of_engine(), *of_onnx])
    chosen = {name: value for name, value in options.items() if name in _of_engine()}
    engine = TensorRTFormat(signature, precision, **chosen)
    remaining = {name: value for name, value in options.items() if name in of_onnx}
    return engine, {**remaining, **engine.onnx_options}


def check_no_options(name: str, options: Mapping[str, Any]) -> None:
    """Raises where options are given for a format that was made before.

    Args:
        name: string. What the user calls the format.
        options: The options.

    Raises:
        InvalidInputError: There are some.
    """
    if options:
        raise InvalidInputError(
            f"{name!r} takes no options: a registered format is made with them, as in "
            f"register_exporter(MyFormat({', '.join(f'{key}=...' for key in options)}))."
        )


def _parameters(made_by: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(made_by).parameters)


def _of_engine() -> list[str]:
    return [name for name in _parameters(TensorRTFormat) if name not in _OF_THE_MODEL]


def _check_names(name: str, options: Mapping[str, Any], known: list[str]) -> None:
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InvalidInputError(f"{name!r} has no option {unknown}; it has {known}.")


def register_exporter(export_format: ExportFormat) -> None:
    """Makes a format of your own known to `Exporter`.

    It is then reached by its name, `Exporter(model, backend="pt2")`, and by the suffix of a path,
    `Exporter(model, backend="custom").export("model.pt2")`.

    Args:
        export_format: `ExportFormat`. A format of the same name is replaced.

    Raises:
        InvalidInputError: It lacks what a format must offer, or has the name of a built-in one.

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
    missing = [
        member
        for member in ("name", "suffix", "entry", "write", "run")
        if not hasattr(export_format, member)
    ]
    if missing or isinstance(export_format, type):
        raise InvalidInputError(
            f"{export_format!r} is no ExportFormat: it lacks {', '.join(missing) or 'an instance'}."
        )
    if export_format.name in (*BUILT_IN, "tensorrt", "custom"):
        raise InvalidInputError(f"{export_format.name!r} is the name of a built-in format.")
    _registered[export_format.name] = export_format


def format_for_suffix(path: Path) -> ExportFormat:
    """Returns the registered format that a path's suffix names.

    Raises:
        InvalidInputError: No registered format has that suffix, or the path has none.
    """
    for export_format in _registered.values():
        if export_format.suffix and path.name.endswith(export_format.suffix):
            return export_format
    known = {each.suffix: name for name, each in _registered.items() if each.suffix}
    folders = [name for name, each in _registered.items() if not each.suffix]
    by_name = f" Of no suffix is {', '.join(folders)}: pass that as the backend." if folders else ""
    raise InvalidInputError(
        f"'custom' means the registered format that a path's suffix names, and none writes "
        f"{path.name!r}: with a suffix there are {known or 'none'}.{by_name} "
        "Register one with keras_deepseek.deploy.register_exporter."
    )
