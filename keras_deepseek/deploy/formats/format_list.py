"""The list of this package's export formats, with their command-line flags.

A format is added by its own file in this folder and one entry in `FORMATS`. This module imports the
standard library alone, and a format's own module only when it is used: `--help` reads this list.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_deepseek.deploy.formats.export_format import ExportFormat


def _keep(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Flag:
    """A flag of `keras-deepseek export` that some formats have.

    Args:
        option: The argument of the format's class.
        settings: Further arguments of `ArgumentParser.add_argument`. The command writes the formats
            that have the flag before its `help`.
        read: Turns the parsed value into that of `option`, or raises an `InvalidInputError`.
    """

    option: str
    flag: str
    settings: Mapping[str, Any] = field(hash=False)
    read: Callable[[Any], Any] = _keep


@dataclass(frozen=True)
class FormatEntry:
    """An entry of the format list, whose module is imported only when it is needed.

    `path` is its module in this folder and its class, as in `"onnx:OnnxFormat"`.
    """

    name: str
    path: str
    suffix: str = ""
    has_int8: bool = False
    flags: tuple[Flag, ...] = ()

    def load(self) -> "type[ExportFormat]":
        """Imports and returns the class of the export format."""
        module, _, name = self.path.partition(":")
        imported_module = importlib.import_module(f"{__package__}.{module}")
        loaded: type[ExportFormat] = getattr(imported_module, name)
        return loaded


def _read_opset(opset: int) -> int:
    from keras_deepseek.artifacts.export_arguments import check_opset

    return check_opset(opset)


def _read_classes(labels: list[str]) -> bool | tuple[str, ...]:
    """Reads class names from a flag; `True`, for numbered classes, if the flag has no values."""
    from keras_deepseek.artifacts.export_arguments import check_classes

    return check_classes(labels or True)


def _read_profile(words: list[str]) -> dict[str, tuple[int, ...]]:
    from keras_deepseek.errors import InvalidInputError

    profile = {}
    for word in words:
        axis, _, sizes = word.rpartition("=")
        try:
            profile[axis] = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise InvalidInputError(
                f"Expected --profile AXIS=SMALLEST,USUAL,LARGEST, as in batch=1,4,32; "
                f"received {word!r}."
            ) from error
    return profile


_OPSET = Flag(
    "opset",
    "--opset",
    {"type": int, "help": "the version of the ONNX operator set, from 18 to 25 (default: 18)"},
    _read_opset,
)
_CLASSIFY = Flag(
    "classify",
    "--classify",
    {
        "nargs": "*",
        "metavar": "LABEL",
        "help": "add a signature for the call Classify of TF Serving, with the names of the "
        "classes in the order of the output; without names they are numbered. Put it behind "
        "MODEL.keras",
    },
    _read_classes,
)
_REGRESS = Flag(
    "regress",
    "--regress",
    {
        "action": "store_true",
        "default": None,
        "help": "add a signature for the call Regress of TF Serving, if the output has one value "
        "for each row",
    },
)
_FLAVOR = Flag(
    "flavor",
    "--flavor",
    {
        "choices": ["auto", "tensorrt", "rtx"],
        "help": "the library that builds the engine: plain TensorRT or TensorRT-RTX (default: "
        "auto, plain TensorRT if it is installed and a GPU is visible, else TensorRT-RTX)",
    },
)
_CAPABILITIES = Flag(
    "compute_capabilities",
    "--compute-capability",
    {
        "action": "append",
        "metavar": "CAPABILITY",
        "help": "the compute capability of a GPU that a TensorRT-RTX engine is for, as 89; give it "
        "again for each other GPU (default: all from 80)",
    },
)
_PROFILES = Flag(
    "profiles",
    "--profile",
    {
        "action": "append",
        "metavar": "AXIS=SMALLEST,USUAL,LARGEST",
        "help": "the sizes of a free axis, as batch=1,4,32; give it again for each other axis "
        "(default: 1,4,32 for the batch, 1,16,64 for other axes)",
    },
    _read_profile,
)

_ENTRIES = (
    FormatEntry("onnx", "onnx:OnnxFormat", ".onnx", has_int8=True, flags=(_OPSET,)),
    FormatEntry("savedmodel", "saved_model:SavedModelFormat", flags=(_CLASSIFY, _REGRESS)),
    FormatEntry("openvino", "openvino:OpenVINOFormat", flags=(_OPSET,)),
    FormatEntry(
        "tensorrt",
        "tensorrt:TensorRTFormat",
        ".trt",
        has_int8=True,
        flags=(_OPSET, _FLAVOR, _CAPABILITIES, _PROFILES),
    ),
    FormatEntry("litert", "litert:LiteRTFormat", ".tflite", has_int8=True),
)
FORMATS = {entry.name: entry for entry in _ENTRIES}
"""The formats of this package, by name."""
INT8_FORMATS = tuple(entry.name for entry in _ENTRIES if entry.has_int8)
FLAGS = tuple(dict.fromkeys(flag for entry in _ENTRIES for flag in entry.flags))
"""All flags, each once, in the order of `--help`."""
