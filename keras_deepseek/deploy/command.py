"""`keras-deepseek export`: exports a `.keras` file, verifies an artifact or compares formats."""

import argparse
from typing import Any

from keras_deepseek.command_parser import add_backend_flag, add_custom_objects_flag
from keras_deepseek.deploy.formats.format_list import FLAGS, FORMATS, INT8_FORMATS

NAME = "export"
HELP = f"export a Keras model to {', '.join(FORMATS)}, and verify that it computes the same"
_NOT_OF_BENCHMARK = ("output", "name", "precision", "optimize_graph", "samples", "check")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `export` to its command-line parser."""
    parser.add_argument("model", metavar="MODEL.keras", help="the file that `model.save` wrote")
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help=f"the format to write: {', '.join(FORMATS)}; the name of a format that a module of "
        "--custom-objects-from registers; or custom: the registered format whose suffix OUT has",
    )
    add_backend_flag(parser, _read_backend)
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="the folder to write; or a file with the suffix of the format, as model.onnx",
    )
    parser.add_argument(
        "--name", help="the name of the model, by which it is served (default: that in the file)"
    )
    parser.add_argument(
        "--best-of",
        metavar="CHECKPOINT_DIR",
        help="the folder of checkpoints of a Trainer with keep_best: the model gets the weights of "
        "the best one first",
    )
    parser.add_argument(
        "--use-ema",
        action="store_true",
        help="with --best-of: take the moving averages of the weights",
    )
    parser.add_argument(
        "--precision",
        choices=["float16", "bfloat16", "int8"],
        help=f"the precision to compute in; int8 is for {', '.join(INT8_FORMATS)}, and needs "
        "--calibrate (default: the precision of the model)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DATA.npz",
        help="some hundred rows of real input data, an array for each input by name; int8 is made "
        "for their ranges",
    )
    parser.add_argument(
        "--optimize-graph",
        action="store_true",
        help="write the model as graph optimization rewrites it, to compute less",
    )
    parser.add_argument(
        "--benchmark",
        action="store_true",
        help="write nothing, and show how long the model and each format take for a batch (with "
        "--format: the model and this format)",
    )
    add_custom_objects_flag(parser, "defines custom layers of the model, or registers a format")
    _add_verification(parser)
    of_formats = parser.add_argument_group("options that only some formats have")
    for flag in FLAGS:
        names = ", ".join(entry.name for entry in FORMATS.values() if flag in entry.flags)
        settings = {**flag.settings, "help": f"{names}: {flag.settings['help']}"}
        of_formats.add_argument(flag.flag, dest=flag.option, **settings)


def _read_backend(name: str) -> str:
    if name in FORMATS:
        raise argparse.ArgumentTypeError(f"{name!r} is a format. Pass --format {name}")
    return name


def _add_verification(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("verification")
    group.add_argument(
        "--samples",
        action="append",
        metavar="DATA.npz",
        help="rows of real input data to verify on, an array for each input by name; give it again "
        "for each other sequence length (default: random rows)",
    )
    group.add_argument(
        "--verify",
        choices=["raise", "warn"],
        default="raise",
        help="if the outputs differ from the model's, raise: write nothing; warn: write it all the "
        "same, marked as failed (default: raise)",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="write nothing, and verify the existing artifact at OUT against the model",
    )


def run(arguments: argparse.Namespace) -> None:
    """Exports, verifies or compares, as the parsed arguments of `export` ask."""
    _check(arguments)
    calibration, samples = _load_data(arguments)
    from keras_deepseek.backend.checkpoint_weights import load_best
    from keras_deepseek.backend.keras_private.keras_file import load_keras_file
    from keras_deepseek.deploy.exporter import Exporter

    model = load_keras_file(arguments.model, arguments.custom_objects_from)
    if arguments.best_of is not None:
        load_best(model, arguments.best_of, use_ema=arguments.use_ema)
    if arguments.benchmark:
        _compare_latencies(model, calibration, arguments)
        return
    exporter = Exporter(
        model,
        backend=arguments.format,
        name=arguments.name,
        precision=arguments.precision,
        calibration=calibration,
        samples=samples,
        custom_objects_from=arguments.custom_objects_from,
        optimize_graph=arguments.optimize_graph,
        verify=arguments.verify,
        **_options(arguments),
    )
    if arguments.check:
        exporter.check(arguments.output)
    else:
        exporter.export(arguments.output)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {flag: getattr(arguments, flag.option) for flag in FLAGS}
    return {flag.option: flag.read(value) for flag, value in values.items() if value is not None}


def _load_data(arguments: argparse.Namespace) -> tuple[Any, list[Any] | None]:
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
    """Rejects invalid command-line arguments before Keras is loaded, which takes seconds."""
    from keras_deepseek.artifacts.export_arguments import check_custom_sources, check_format
    from keras_deepseek.checks import KERAS_FILE, check_file_exists
    from keras_deepseek.errors import InvalidInputError

    if not (arguments.benchmark or (arguments.format and arguments.output)):
        raise InvalidInputError("Pass --format and --output, or --benchmark to compare formats.")
    if arguments.use_ema and arguments.best_of is None:
        raise InvalidInputError("--use-ema needs --best-of, the folder with the checkpoints.")
    sources = check_custom_sources(arguments.custom_objects_from)
    if arguments.format and not sources:  # Such a module may register a format.
        check_format(arguments.format, FORMATS)
    if arguments.benchmark:
        _check_benchmark(arguments)
    else:
        _check_flags(arguments)
        _check_export(arguments)
    check_file_exists(arguments.model, KERAS_FILE)


def _check_export(arguments: argparse.Namespace) -> None:
    from keras_deepseek.artifacts import export_arguments as rules
    from keras_deepseek.artifacts.bundle import Bundle, check_target

    if arguments.name is not None:
        rules.check_model_name(arguments.name)
    rules.check_precision(
        arguments.format,
        arguments.precision,
        has_calibration=arguments.calibrate is not None,
        int8_formats=INT8_FORMATS,
    )
    _options(arguments)
    target = rules.check_artifact_path(arguments.output)
    entry = FORMATS.get(arguments.format)
    if arguments.check:
        if not target.exists():
            Bundle.open(target)  # It raises the error.
    elif entry is not None and entry.suffix and target.name.endswith(entry.suffix):
        rules.check_target_file(target)
    elif entry is not None:
        check_target(target)


def _check_flags(arguments: argparse.Namespace) -> None:
    """Rejects command-line flags that the chosen export format does not have."""
    from keras_deepseek.errors import InvalidInputError

    entry = FORMATS.get(arguments.format)
    for flag in FLAGS:
        is_given = getattr(arguments, flag.option) is not None
        if is_given and (entry is None or flag not in entry.flags):
            formats = " or ".join(
                candidate.name for candidate in FORMATS.values() if flag in candidate.flags
            )
            raise InvalidInputError(
                f"--format {arguments.format} has no {flag.flag}. Leave it out, or pass "
                f"--format {formats}."
            )


def _check_benchmark(arguments: argparse.Namespace) -> None:
    """Rejects command-line flags that a comparison of formats would ignore."""
    from keras_deepseek.errors import InvalidInputError

    ignored = {name: f"--{name.replace('_', '-')}" for name in _NOT_OF_BENCHMARK}
    ignored |= {flag.option: flag.flag for flag in FLAGS}
    flags = [
        flag for name, flag in ignored.items() if getattr(arguments, name) not in (None, False)
    ]
    if flags:
        raise InvalidInputError(
            f"--benchmark compares formats with their defaults: leave {', '.join(flags)} out."
        )


def _compare_latencies(model: Any, calibration: Any, arguments: argparse.Namespace) -> None:
    from keras_deepseek.deploy.latencies import compare_latencies

    table = compare_latencies(
        model,
        arguments.format and [arguments.format],
        calibration=calibration,
        custom_objects_from=arguments.custom_objects_from,
    )
    print(table)
