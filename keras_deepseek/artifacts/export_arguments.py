"""Checks of an `Exporter`'s arguments, before any work is done.

They load no framework, so that the command line can refuse wrong arguments at once.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.checks import check_path, check_sources
from keras_deepseek.errors import BundleError, ExportError, InvalidInputError, unknown_name_message

INT8 = "int8"
PRECISIONS = ("float16", "bfloat16", INT8)
"""The precisions that an artifact may compute in."""
OPSETS = range(18, 26)
"""The supported versions of ONNX's default operator set."""


def check_format(name: Any, formats: Iterable[str]) -> None:
    """Rejects the name of an unknown format; the message has the nearest known one."""
    names = [*formats, "custom"]
    if not isinstance(name, str) or name not in names:
        raise InvalidInputError(unknown_name_message("export format", name, names))


def check_opset(opset: Any) -> int:
    """Checks and returns a version of ONNX's default operator set."""
    if type(opset) is not int or opset not in OPSETS:
        raise InvalidInputError(
            f"`opset` must be an integer from {OPSETS[0]} to {OPSETS[-1]}; received {opset!r}."
        )
    return opset


def check_classes(classify: Any) -> bool | tuple[str, ...]:
    """Checks and returns the argument `classify`: a boolean, or a list of class names."""
    if isinstance(classify, bool):
        return classify
    is_list = isinstance(classify, list | tuple) and all(
        isinstance(label, str) for label in classify
    )
    if not is_list or not classify:
        raise InvalidInputError(
            f"`classify` must be a boolean, or a list of class names; received {classify!r}."
        )
    if len(set(classify)) < len(classify):
        raise InvalidInputError(
            f"`classify` names a class twice: {[*classify]}. Clients need distinct names."
        )
    return tuple(classify)


def check_model_name(name: Any) -> str:
    """Checks and returns the name of a model in a bundle, which is a part of its URL."""
    if (
        not isinstance(name, str)
        or not name.strip()
        or name in (".", "..")
        or not name.isprintable()
        or any(sign in name for sign in "/\\")
    ):
        raise InvalidInputError(
            "`name` must be a text without slashes and line ends that is not empty, since it is a "
            f"part of the URL of the model; received {name!r}."
        )
    return name


def check_artifact_path(path: Any) -> Path:
    """Returns the path of an artifact. Refuses one that the system can't look up."""
    target = Path(check_path("path", path))
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # A missing folder is made; a file in its place is an error later.
    except OSError as error:
        raise BundleError(
            f"No artifact can be written to {str(target)!r}: {error.strerror}. Name another place."
        ) from error
    return target


def check_target_file(target: Path) -> None:
    """Rejects a folder as the path of an artifact that is one file."""
    if target.is_dir():
        raise ExportError(
            f"{str(target)!r} is a folder; expected a path for a file, by its suffix. Name another "
            "path, or remove the folder."
        )


def check_samples(samples: Any) -> Sequence[Any]:
    """Checks and returns the list of batches on which an export is verified."""
    if not isinstance(samples, list | tuple):
        raise InvalidInputError(
            "`samples` must be a list of batches, each as `model.predict` takes them, as in "
            f"samples=[x[:3], x[3:4]]; received {type(samples).__name__}."
        )
    if not samples:
        raise InvalidInputError("`samples` is empty: expected at least one batch to verify on.")
    return samples


def bind_rows(name: str, signature: Signature, values: Any) -> dict[str, Array]:
    """Checks rows of input data for a model, and returns them as arrays by input name.

    `name` is the argument for the error message.
    """
    try:
        arrays = signature.bind(values)
    except InvalidInputError as error:
        raise InvalidInputError(f"`{name}`: {error}") from error
    empty = [input_name for input_name, array in arrays.items() if array.ndim and not len(array)]
    if empty:
        raise InvalidInputError(
            f"`{name}` has no rows for input {', '.join(map(repr, empty))}; expected at least one. "
            "Leave it out."
        )
    return arrays


def check_custom_sources(custom_objects_from: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Checks and returns the modules and files that define a model's custom layers."""
    sources = check_sources("custom_objects_from", custom_objects_from)
    for path in map(Path, sources):
        if path.suffix == ".py" and not path.is_file():
            raise InvalidInputError(
                f"`custom_objects_from` names {str(path)!r}, but there is no such file."
            )
    return sources


def check_precision(
    format_name: str,
    precision: str | None,
    *,
    has_calibration: bool,
    int8_formats: Sequence[str],
) -> None:
    """Rejects an unknown or unsupported precision, and int8 without calibration data."""
    if precision == "float32":
        raise InvalidInputError(
            "Received precision='float32'. Leave `precision` out for the model's own precision, "
            f"which is float32 unless a policy says otherwise; or pass {', '.join(PRECISIONS)}."
        )
    if precision is not None and precision not in PRECISIONS:
        raise InvalidInputError(unknown_name_message("precision", precision, PRECISIONS))
    if precision == INT8 and format_name not in int8_formats:
        raise InvalidInputError(
            f"int8 is for {', '.join(int8_formats)}; received the format {format_name!r}."
        )
    if precision == INT8 and not has_calibration:
        raise InvalidInputError(
            "precision='int8' needs calibration=, rows of real use, for whose ranges it is made. "
            "Pass calibration=x_train[:256], on the command line --calibrate FILE."
        )
    if has_calibration and precision != INT8:
        raise InvalidInputError(
            f"calibration= is for precision='int8' alone; received precision={precision!r}. Pass "
            "precision='int8', or leave calibration= out."
        )


def check_calibration(arrays: dict[str, Array]) -> dict[str, Array]:
    """Rejects calibration rows that contain NaN or infinity, since they have no value range."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(
                f"`calibration` holds NaN or infinity in input {name!r}, but int8 is made for the "
                "ranges of the rows. Leave such rows out."
            )
    return arrays
