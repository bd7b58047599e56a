"""`keras-deepseek export`: from a `.keras` file to a bundle."""

import argparse

NAME = "export"
HELP = "write a Keras model as ONNX, SavedModel or TensorRT, and verify it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command.

    Args:
        parser: The parser of this command.
    """
    parser.add_argument("model", metavar="MODEL.keras", help="a model that `model.save` wrote")
    parser.add_argument(
        "--backend",
        required=True,
        help="onnx, savedmodel, tensorrt, custom, or a registered format",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="the folder of the bundle, or a file with the format's suffix (model.onnx)",
    )
    parser.add_argument("--name", help="the model's name in the bundle (default: its own)")
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: 18)")
    parser.add_argument(
        "--custom-objects-from",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help="a module or a .py file that defines custom layers; may be given several times",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Args:
        arguments: What the parser of this command read.
    """
    from keras_deepseek.backend.keras_file import load_keras_file
    from keras_deepseek.deploy.exporter import Exporter

    model = load_keras_file(arguments.model, arguments.custom_objects_from)
    options = {} if arguments.opset is None else {"opset": arguments.opset}
    Exporter(
        model,
        backend=arguments.backend,
        name=arguments.name,
        custom_objects_from=arguments.custom_objects_from,
        **options,
    ).export(arguments.output)
