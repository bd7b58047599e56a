"""`keras-deepseek optimize`: rewrites the model of a `.keras` file to compute less."""

import argparse
import contextlib
import itertools
import json
import os
from typing import Any

from keras_deepseek.command_parser import add_backend_flag, add_custom_objects_flag

NAME = "optimize"
HELP = "rewrite a Keras model so that it computes the same with less work, and show what was done"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `optimize` to its command-line parser."""
    parser.add_argument("model", metavar="MODEL.keras", help="the file that `model.save` wrote")
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT.keras", help="the file to write"
    )
    parser.add_argument(
        "--report", metavar="REPORT.json", help="a file for the report, which is also printed"
    )
    parser.add_argument(
        "--mode",
        choices=["inference", "train"],
        default="inference",
        help="train also optimizes the training step (default: inference)",
    )
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="time nothing, and decide by the number of operations and multiply-adds alone",
    )
    parser.add_argument(
        "--passes",
        metavar="NAME,NAME",
        help="the passes to try, as in identities,split_sums (default: all)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="rows of the random inputs for which the model is optimized (default: 32)",
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="positions (such as tokens) on the axes that the model leaves open (default: 128, or "
        "the most that the model has)",
    )
    add_custom_objects_flag(parser)
    add_backend_flag(parser)


def run(arguments: argparse.Namespace) -> None:
    """Optimizes the model of a file, as the parsed arguments of `optimize` ask."""
    _check(arguments)
    from keras_deepseek import graph
    from keras_deepseek.artifacts.bundle import publish_file
    from keras_deepseek.artifacts.staging_folder import staging_folder
    from keras_deepseek.backend.keras_private.keras_file import load_keras_file
    from keras_deepseek.errors import InvalidInputError, unknown_name_message
    from keras_deepseek.graph.passes import PASSES

    passes = None
    if arguments.passes is not None:
        passes = [name.strip() for name in arguments.passes.split(",")]
        for name in passes:
            if name not in PASSES:
                raise InvalidInputError(unknown_name_message("--passes", name, tuple(PASSES)))
    with contextlib.ExitStack() as stack:
        # Before the work, which takes long: a folder that can't be written raises an error here.
        folder = stack.enter_context(staging_folder(arguments.output))
        if arguments.report is not None:
            report_folder = stack.enter_context(staging_folder(arguments.report))
        model = load_keras_file(arguments.model, arguments.custom_objects_from)
        if isinstance(model, graph.OptimizedModel):
            model = model.original
        try:
            optimized = graph.optimize(
                model,
                _random_inputs(model, arguments.batch_size, arguments.length),
                mode=arguments.mode,
                measure=not arguments.no_measure,
                passes=passes,
            )
        except InvalidInputError as error:
            advice = "Choose other sizes: --length, --batch-size."
            raise InvalidInputError(f"{error} {advice}") from error
        report = optimized.report
        assert report is not None
        print(report)
        if arguments.report is not None:
            text = json.dumps(report.to_dict(), indent=2)
            (report_folder / "report.json").write_text(f"{text}\n", encoding="utf-8")
            publish_file(report_folder / "report.json", arguments.report)
        # The original is written if nothing was found that pays.
        (optimized.original if optimized.passes is None else optimized).save(folder / "model.keras")
        publish_file(folder / "model.keras", arguments.output)
    print(f"{arguments.output} was written.")


def _check(arguments: argparse.Namespace) -> None:
    """Rejects invalid command-line arguments before Keras is loaded, which takes seconds."""
    from keras_deepseek.checks import (
        KERAS_FILE,
        check_file_exists,
        check_file_path,
        check_integer,
        check_sources,
    )
    from keras_deepseek.errors import InvalidInputError

    check_sources("--custom-objects-from", arguments.custom_objects_from)
    check_file_path("--output", arguments.output)
    if not arguments.output.endswith(".keras"):
        raise InvalidInputError(
            f"--output must end in .keras, since Keras loads such files; got {arguments.output!r}."
        )
    if arguments.report is not None:
        check_file_path("--report", arguments.report)
    paths = [arguments.model, arguments.output, *filter(None, [arguments.report])]
    if len(set(map(os.path.realpath, paths))) != len(paths):
        raise InvalidInputError(
            f"The model, --output and --report must be different files; got {', '.join(paths)}."
        )
    check_integer("--batch-size", arguments.batch_size)
    if arguments.length is not None:
        check_integer("--length", arguments.length)
    check_file_exists(arguments.model, KERAS_FILE)


def _random_inputs(model: Any, batch_size: int, length: int | None) -> Any:
    from keras_deepseek.backend.export.named_model import NamedModel
    from keras_deepseek.backend.export.random_batch import batch_shapes, draw_batch
    from keras_deepseek.backend.keras_private.sample_values import longest_sequence

    named = NamedModel(model)
    length = length or min(longest_sequence(model) or 128, 128)
    shapes = batch_shapes(named.signature, batch_size, itertools.repeat(length))
    return named.pack_inputs(draw_batch(model, named.signature, shapes))
