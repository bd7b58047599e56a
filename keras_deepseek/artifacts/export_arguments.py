"""What a user gives to an `Exporter`, checked before any work is done for it.

It stands here, where no framework is loaded, so that the command line refuses at once what is wrong
in itself, by the rules of the formats.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_deepseek.artifacts.signature import Array, Signature
from keras_deepseek.checks import check_path, check_sources
from keras_deepseek.errors import (
    BundleError,
    ExportError,
    InvalidInputError,
    unknown_name_message,
)

INT8 = "int8"
PRECISIONS = ("float16", "bfloat16", INT8)
"""What an artifact may be asked to compute in."""
OPSETS = range(13, 26)
"""The versions of ONNX's default operator set that are written."""


def check_backend(name: Any, known: Iterable[str]) -> None:
    """Says that there is no format of a name.

    Args:
        name: What was given.
        known: The names of the formats that there are.

    Raises:
        InvalidInputError: It is none of them; the message has the nearest.
    """
    if name not in (names := [*known, "custom"]):
        raise InvalidInputError(unknown_name_message("export backend", name, names))


def check_opset(opset: Any) -> int:
    """Returns the version of ONNX's default operator set, or says which there are.

    Args:
        opset: What was given.

    Raises:
        InvalidInputError: It is none of them.
    """
    if type(opset) is not int or opset not in OPSETS:
        raise InvalidInputError(
            f"`opset` must be an integer from {OPSETS[0]} to {OPSETS[-1]}; received {opset!r}."
        )
    return opset


def check_classes(classify: Any) -> bool | tuple[str, ...]:
    """Returns whether, or by what names, a SavedModel classifies; or says that this tells neither.

    Args:
        classify: What was given.

    Raises:
        InvalidInputError: It is no boolean and no list of names, or a name comes twice.
    """
    if isinstance(classify, bool):
        return classify
    is_list = isinstance(classify, list | tuple) and all(isinstance(one, str) for one in classify)
    if not is_list or not classify:
        raise InvalidInputError(
            f"`classify` must be a boolean, or a list of the classes' names; received {classify!r}."
        )
    if len(set(classify)) < len(classify):
        raise InvalidInputError(
            f"`classify` names a class twice: {[*classify]}. By its name a client tells it."
        )
    return tuple(classify)


def check_model_name(name: Any) -> str:
    """Returns the name of a model in a bundle, or says that it can't be one.

    Args:
        name: What was given.

    Raises:
        InvalidInputError: It is no text, or not one part of a path, as which it is served.
    """
    if (
        not isinstance(name, str)
        or not name.strip()
        or name in (".", "..")
        or not name.isprintable()
        or any(sign in name for sign in "/\\")
    ):
        raise InvalidInputError(
            f"`name` must be a text without slashes, a part of the URL that it is served at; "
            f"received {name!r}."
        )
    return name


def check_artifact_path(path: Any) -> Path:
    """Returns the place of an artifact, or says that there can be none.

    Args:
        path: What was given.

    Raises:
        InvalidInputError: It is no path.
        BundleError: The system can't reach such a path.
    """
    place = Path(check_path("path", path))
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # A folder that is missing is made; a file in its place is named later.
    except OSError as error:
        raise BundleError(
            f"No artifact can stand at {str(place)!r}: {error.strerror}. Name another place."
        ) from error
    return place


def check_target_file(target: Path) -> None:
    """Says that an artifact of one file can't be written at a place.

    Args:
        target: The place.

    Raises:
        ExportError: A folder stands there.
    """
    if target.is_dir():
        raise ExportError(f"{str(target)!r} is a folder, where a file is to be written.")


def check_samples(samples: Any) -> Sequence[Any]:
    """Returns batches to verify on, or says that these are none.

    Args:
        samples: What was given.

    Raises:
        InvalidInputError: It is no list, or an empty one.
    """
    if not isinstance(samples, list | tuple):
        raise InvalidInputError(
            "`samples` must be a list of batches, each as `model.predict` takes them, as in "
            f"samples=[x[:3], x[3:4]]; received {type(samples).__name__}."
        )
    if not samples:
        raise InvalidInputError("`samples` is empty: expected at least one batch to verify on.")
    return samples


def bind_rows(name: str, signature: Signature, values: Any) -> dict[str, Array]:
    """Returns rows by input name, or says what is wrong with them and where they were given.

    Args:
        name: string. The argument, as in `"samples[0]"`.
        signature: `Signature` of the model.
        values: What was given, as `model.predict` takes it.

    Raises:
        InvalidInputError: It does not fit the model's inputs, or has no rows.
    """
    try:
        arrays = signature.bind(values)
    except InvalidInputError as error:
        raise InvalidInputError(f"`{name}`: {error}") from error
    empty = [each for each, array in arrays.items() if array.ndim and not len(array)]
    if empty:
        raise InvalidInputError(
            f"`{name}` has no rows for input {', '.join(map(repr, empty))}: nothing is seen by it. "
            "Leave it out."
        )
    return arrays


def check_custom_sources(given: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Returns the modules and files that define a model's custom layers.

    Args:
        given: What was given.

    Raises:
        InvalidInputError: They are no such list, or a file is missing.
    """
    sources = check_sources("custom_objects_from", given)
    for path in map(Path, sources):
        if path.suffix == ".py" and not path.is_file():
            raise InvalidInputError(f"`custom_objects_from` names {str(path)!r}, where no file is.")
    return sources


def check_precision(
    backend: str,
    precision: str | None,
    *,
    has_calibration: bool,
    int8_formats: Sequence[str],
) -> None:
    """Rejects a precision that is unknown, or not one of the format, and int8 without calibration.

    Args:
        backend: string. The format.
        precision: string, or `None`.
        has_calibration: boolean. Whether there are rows for int8.
        int8_formats: The formats that can be written in int8.
    """
    if precision is not None and precision not in PRECISIONS:
        raise InvalidInputError(unknown_name_message("precision", precision, PRECISIONS))
    if precision == INT8 and backend not in int8_formats:
        raise InvalidInputError(
            f"Only {' and '.join(int8_formats)} can be written in int8; received "
            f"backend={backend!r}."
        )
    if (precision == INT8) != has_calibration:
        raise InvalidInputError(
            "precision='int8' and calibration= go together: int8 is made for the ranges that data "
            "have. Pass calibration=x_train[:256], on the command line --calibrate FILE, or "
            "another precision."
        )


def check_calibration(arrays: dict[str, Array]) -> dict[str, Array]:
    """Returns the rows that int8 is made for, or says what in them no range can be made of.

    Args:
        arrays: The rows by input name.

    Raises:
        InvalidInputError: They hold NaN or infinity.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(
                f"`calibration` holds NaN or infinity in input {name!r}: int8 is made for the "
                "ranges that the rows have. Leave such rows out."
            )
    return arrays
