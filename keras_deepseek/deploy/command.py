"""`keras-deepseek export`: from a `.keras` file to a bundle."""

import argparse
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

_OF_ENGINES = {
    "flavor": "--flavor",
    "compute_capabilities": "--compute-capability",
    "profiles": "--profile",
}
"""The flags of TensorRT alone, by the arguments that they fill."""
NAME = "export"
HELP = "write a Keras model as ONNX, SavedModel or TensorRT, and verify it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command.

    Args:
        parser: The parser of this command.
    """
    parser.add_argument("model", metavar="MODEL.keras", help="a model that `model.save` wrote")
    parser.add_argument("--backend", help="onnx, savedmodel, tensorrt, openvino, or custom")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="the folder of the bundle, or a file with the format's suffix (model.onnx)",
    )
    parser.add_argument("--name", help="the model's name in the bundle (default: its own)")
    parser.add_argument(
        "--precision", choices=["float16", "bfloat16", "int8"], help="(default: the model's own)"
    )
    parser.add_argument(
        "--calibrate",
        metavar="DATA.npz",
        help="rows like those of use, by the names of the inputs, that int8 is made for",
    )
    parser.add_argument(
        "--verify",
        choices=["raise", "warn"],
        default="raise",
        help="warn: write an artifact that computes something else all the same (default: raise)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing: verify the artifact that is at OUT"
    )
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="keep nothing: show what a batch takes in each format, or in that of --backend",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: 18)")
    _add_tensorrt_arguments(parser)
    parser.add_argument(
        "--custom-objects-from",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="a module or a .py file that defines custom layers; may be given several times",
    )


def _add_tensorrt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flavor",
        choices=["auto", "tensorrt", "rtx"],
        help="the library that builds an engine (default: plain TensorRT on a GPU, else RTX)",
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        dest="compute_capabilities",
        metavar="CAPABILITY",
        help="a GPU that a TensorRT-RTX engine is for, as in 89; may be given several times",
    )
    parser.add_argument(
        "--profile",
        action="append",
        dest="profiles",
        metavar="AXIS=SMALLEST,USUAL,LARGEST",
        help="sizes of a free axis of an engine, as in batch=1,4,32; may be given several times",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Args:
        arguments: What the parser of this command read.
    """
    _check(arguments)
    from keras_deepseek.backend.keras_file import load_keras_file
    from keras_deepseek.deploy.exporter import Exporter

    _register_openvino()
    if arguments.benchmark:
        _compare_latencies(arguments)
        return
    model = load_keras_file(arguments.model, arguments.custom_objects_from)
    given = {
        "opset": arguments.opset,
        "flavor": arguments.flavor,
        "compute_capabilities": arguments.compute_capabilities,
        "profiles": arguments.profiles and dict(map(_read_sizes, arguments.profiles)),
    }
    options = {name: value for name, value in given.items() if value is not None}
    exporter = Exporter(
        model,
        backend=arguments.backend,
        name=arguments.name,
        precision=arguments.precision,
        calibration=arguments.calibrate and _load_rows(arguments.calibrate),
        custom_objects_from=arguments.custom_objects_from,
        verify=arguments.verify,
        **options,
    )
    if arguments.check:
        exporter.check(arguments.output)
    else:
        exporter.export(arguments.output)


def _check(arguments: argparse.Namespace) -> None:
    """Raises for what is wrong in the arguments themselves, in no time: nothing loads Keras."""
    from keras_deepseek.artifacts.argument_check import KERAS_FILE, check_file_exists
    from keras_deepseek.artifacts.errors import InvalidInputError

    if arguments.benchmark:
        _check_benchmark(arguments)
    elif not (arguments.backend and arguments.output):
        raise InvalidInputError("Pass --backend and --output, or --benchmark to compare formats.")
    else:
        _check_engine_flags(arguments)
    check_file_exists(arguments.model, KERAS_FILE)
    if arguments.calibrate:
        check_file_exists(arguments.calibrate, "a file that numpy.savez or numpy.save wrote")


def _check_engine_flags(arguments: argparse.Namespace) -> None:
    """Raises where what is of an engine alone is asked of another format."""
    from keras_deepseek.artifacts.errors import InvalidInputError

    given = [flag for name, flag in _OF_ENGINES.items() if getattr(arguments, name) is not None]
    if given and arguments.backend != "tensorrt":
        raise InvalidInputError(
            f"{', '.join(given)}: of TensorRT engines alone, and --backend {arguments.backend} "
            f"takes none of {', '.join(_OF_ENGINES.values())}. Leave them out, or pass --backend "
            "tensorrt."
        )


def _check_benchmark(arguments: argparse.Namespace) -> None:
    """Raises where something is asked for that a comparison of formats would not heed."""
    from keras_deepseek.artifacts.errors import InvalidInputError

    unheeded = ("output", "name", "precision", "check", "opset")
    flags = {name: f"--{name}" for name in unheeded} | _OF_ENGINES
    given = [flag for name, flag in flags.items() if getattr(arguments, name) not in (None, False)]
    if given:
        raise InvalidInputError(
            f"--benchmark compares formats as they are by themselves: leave {', '.join(given)} out."
        )


def _compare_latencies(arguments: argparse.Namespace) -> None:
    from keras_deepseek.backend.keras_file import load_keras_file
    from keras_deepseek.deploy.latencies import compare_latencies

    table = compare_latencies(
        load_keras_file(arguments.model, arguments.custom_objects_from),
        arguments.backend and [arguments.backend],
        calibration=arguments.calibrate and _load_rows(arguments.calibrate),
        custom_objects_from=arguments.custom_objects_from,
    )
    print(table)


def _register_openvino() -> None:
    """Makes the format that this package has beside the built-in ones known to the command."""
    from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
    from keras_deepseek.deploy.registry import register_exporter

    register_exporter(OpenVINOFormat())


def _read_sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """Returns the axis and the sizes of `batch=1,4,32`."""
    from keras_deepseek.artifacts.errors import InvalidInputError

    axis, _, sizes = text.rpartition("=")
    try:
        return axis, tuple(int(size) for size in sizes.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"Expected --profile AXIS=SMALLEST,USUAL,LARGEST, as in batch=1,4,32; "
            f"received {text!r}."
        ) from error


def _load_rows(path: str) -> Any:
    """Returns the arrays of a `.npz` file by name; the one that has none, as in a `.npy` file."""
    import numpy as np

    from keras_deepseek.artifacts.errors import InvalidInputError

    try:
        with Path(path).open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            arrays = loaded if isinstance(loaded, np.ndarray) else dict(loaded.items())
    except (OSError, ValueError, BadZipFile, AttributeError, EOFError) as error:
        raise InvalidInputError(
            f"No arrays can be read from {str(path)!r}: {error}. Expected a file that numpy.savez "
            "or numpy.save wrote."
        ) from error
    if isinstance(arrays, np.ndarray):
        return arrays
    return arrays["arr_0"] if list(arrays) == ["arr_0"] else arrays
