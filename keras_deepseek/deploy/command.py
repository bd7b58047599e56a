"""`keras-deepseek export`: from a `.keras` file to a bundle."""

import argparse
from typing import Any

_OF_ENGINES = {
    "flavor": "--flavor",
    "compute_capabilities": "--compute-capability",
    "profiles": "--profile",
}
"""The flags of TensorRT alone, by the arguments that they fill."""
_OF_SAVED_MODELS = {"classify": "--classify", "regress": "--regress"}
_OF_FORMATS = (
    ("TensorRT engines", ("tensorrt",), _OF_ENGINES),
    ("a SavedModel", ("savedmodel",), _OF_SAVED_MODELS),
    ("ONNX and TensorRT", ("onnx", "tensorrt"), {"opset": "--opset"}),
)
"""Flags that not every format has: of what they are, its names, the flags."""
_OPTIONS = ("opset", "flavor", "compute_capabilities", "profiles", "classify", "regress")
_SUFFIXES = {"onnx": ".onnx", "savedmodel": "", "tensorrt": ".trt", "openvino": ""}
"""The suffix of a file alone, by the formats of this package. `--custom-objects-from` may bring
others."""
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
    _add_data_arguments(parser)
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
    _add_saved_model_arguments(parser)
    _add_tensorrt_arguments(parser)
    parser.add_argument(
        "--custom-objects-from",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="a module or a .py file that defines custom layers; may be given several times",
    )


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibrate",
        metavar="DATA.npz",
        help="rows like those of use, by the names of the inputs, that int8 is made for",
    )
    parser.add_argument(
        "--samples",
        action="append",
        metavar="FILE.npz",
        help="rows like those of use, by the names of the inputs, to verify on in place of random "
        "ones; may be given several times, as for several lengths",
    )


def _add_saved_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classify",
        nargs="*",
        metavar="LABEL",
        help="a SavedModel has serving_classify too: the names of its classes, in the order of the "
        "output, behind MODEL; none for their numbers",
    )
    parser.add_argument(
        "--regress",
        action="store_true",
        default=None,
        help="a SavedModel has serving_regress too, of one value a row",
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
    calibration, samples = _load_data(arguments)
    from keras_deepseek.backend.keras_private.keras_file import load_keras_file
    from keras_deepseek.deploy.exporter import Exporter

    _register_openvino()
    model = load_keras_file(arguments.model, arguments.custom_objects_from)
    if arguments.benchmark:
        _compare_latencies(model, calibration, arguments)
        return
    exporter = Exporter(
        model,
        backend=arguments.backend,
        name=arguments.name,
        precision=arguments.precision,
        calibration=calibration,
        samples=samples,
        custom_objects_from=arguments.custom_objects_from,
        verify=arguments.verify,
        **_options(arguments),
    )
    if arguments.check:
        exporter.check(arguments.output)
    else:
        exporter.export(arguments.output)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of the format that were given."""
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    given["profiles"] = arguments.profiles and dict(map(_read_sizes, arguments.profiles))
    if arguments.classify == []:
        given["classify"] = True  # Classes by their numbers.
    return {name: value for name, value in given.items() if value is not None}


def _load_data(arguments: argparse.Namespace) -> tuple[Any, list[Any] | None]:
    """Returns the rows to calibrate on, and the batches to verify on, as far as there are some."""
    from keras_deepseek.artifacts.rows_file import cut_batches, load_rows

    calibration = load_rows(arguments.calibrate) if arguments.calibrate else None
    if arguments.samples is None:
        return calibration, None
    samples: list[Any] = []
    for rows in map(load_rows, arguments.samples):
        if isinstance(rows, dict):
            samples += cut_batches(rows)
        else:
            samples += [batch[""] for batch in cut_batches({"": rows})]
    return calibration, samples


def _check(arguments: argparse.Namespace) -> None:
    """Raises for what is wrong in the arguments themselves, in no time: nothing loads Keras."""
    from keras_deepseek.artifacts.export_arguments import check_backend, check_custom_sources
    from keras_deepseek.checks import KERAS_FILE, check_file_exists
    from keras_deepseek.errors import InvalidInputError

    if not (arguments.benchmark or (arguments.backend and arguments.output)):
        raise InvalidInputError("Pass --backend and --output, or --benchmark to compare formats.")
    sources = check_custom_sources(arguments.custom_objects_from)
    if arguments.backend and not sources:
        check_backend(arguments.backend, _SUFFIXES)
    if arguments.benchmark:
        _check_benchmark(arguments)
    else:
        _check_flags(arguments)
        _check_export(arguments)
    check_file_exists(arguments.model, KERAS_FILE)


def _check_export(arguments: argparse.Namespace) -> None:
    """Raises for a value that no export, or no check, can have."""
    from keras_deepseek.artifacts import export_arguments as rules
    from keras_deepseek.artifacts.bundle import Bundle, check_target

    if arguments.name is not None:
        rules.check_model_name(arguments.name)
    rules.check_precision(
        arguments.backend, arguments.precision, has_calibration=arguments.calibrate is not None
    )
    options = _options(arguments)
    if "opset" in options:
        rules.check_opset(options["opset"])
    rules.check_classes(options.get("classify", False))
    target = rules.check_artifact_path(arguments.output)
    suffix = _SUFFIXES.get(arguments.backend)
    if arguments.check:
        if not target.exists():
            Bundle.open(target)  # Which says so.
    elif suffix and target.name.endswith(suffix):
        rules.check_target_file(target)
    elif suffix is not None:
        check_target(target)


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raises where what is of some formats alone is asked of another."""
    from keras_deepseek.errors import InvalidInputError

    for kind, backends, flags in _OF_FORMATS:
        given = [flag for name, flag in flags.items() if getattr(arguments, name) is not None]
        if given and arguments.backend not in backends:
            other = " or ".join(backends)
            raise InvalidInputError(
                f"{', '.join(given)}: of {kind} alone, and --backend {arguments.backend} "
                f"takes none of {', '.join(flags.values())}. Leave them out, or pass --backend "
                f"{other}."
            )


def _check_benchmark(arguments: argparse.Namespace) -> None:
    """Raises where something is asked for that a comparison of formats would not heed."""
    from keras_deepseek.errors import InvalidInputError

    unheeded = ("output", "name", "precision", "samples", "check", "opset")
    flags = {name: f"--{name}" for name in unheeded} | _OF_ENGINES | _OF_SAVED_MODELS
    given = [flag for name, flag in flags.items() if getattr(arguments, name) not in (None, False)]
    if given:
        raise InvalidInputError(
            f"--benchmark compares formats as they are by themselves: leave {', '.join(given)} out."
        )


def _compare_latencies(model: Any, calibration: Any, arguments: argparse.Namespace) -> None:
    from keras_deepseek.deploy.latencies import compare_latencies

    table = compare_latencies(
        model,
        arguments.backend and [arguments.backend],
        calibration=calibration,
        custom_objects_from=arguments.custom_objects_from,
    )
    print(table)


def _register_openvino() -> None:
    """Makes the format that this package has beside the built-in ones known to the command."""
    from keras_deepseek.deploy.formats.openvino import OpenVINOFormat
    from keras_deepseek.deploy.formats.registry import register_exporter

    register_exporter(OpenVINOFormat())


def _read_sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """Returns the axis and the sizes of `batch=1,4,32`."""
    from keras_deepseek.errors import InvalidInputError

    axis, _, sizes = text.rpartition("=")
    try:
        return axis, tuple(int(size) for size in sizes.split(","))
    except ValueError as error:
        raise InvalidInputError(
            f"Expected --profile AXIS=SMALLEST,USUAL,LARGEST, as in batch=1,4,32; "
            f"received {text!r}."
        ) from error
