"""The command line: `keras-deepseek COMMAND ...`.

It stands above all rooms and uses only the `command.py` of each. Such a file imports only
`argparse` at the top and the rest inside `run`, so that `--help` loads no framework.
"""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from keras_deepseek import __version__
from keras_deepseek.command_parser import CommandParser
from keras_deepseek.stderr_log import log_to_stderr

ROOMS = ("deploy", "graph", "inference", "models", "operator", "studio", "training")
"""The rooms with a command, in the order of `--help`."""

PROGRAM = "keras-deepseek"


class Command(Protocol):
    """The protocol of a sub-package's `command.py`."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments to its parser, and `--backend` by `add_backend_flag`."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Runs the command, or raises a `KerasDeepSeekError` for mistakes that the user can fix."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that is named by the command-line arguments.

    Args:
        arguments: The words after the program's name. Defaults to `None`: the arguments of this
            process.

    Returns:
        The exit code: 0; 2 for invalid input; or 128 plus the signal's number after Ctrl-C (130) or
        SIGTERM (143).
    """
    # Otherwise TensorFlow's log hides the one line that a user needs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parsed = _make_parser().parse_args(arguments)
    # After the parser, because these imports load NumPy, which `--help` does not need.
    from keras_deepseek import backend
    from keras_deepseek.errors import KerasDeepSeekError

    sys.path.append(str(Path.cwd()))  # Arguments may name modules in this folder.
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        if parsed.backend is not None or parsed.command != "launch":  # A script may choose itself.
            backend.choose(parsed.backend)
        with log_to_stderr(parsed.log_level):
            parsed.run(parsed)
    except KerasDeepSeekError as error:
        return _refuse(parsed.command, str(error))
    except ModuleNotFoundError as error:
        if error.name == "keras":  # A serving image may have only a runtime.
            return _refuse(
                parsed.command,
                f"{error}: a `.keras` file needs Keras. Serve an ONNX bundle of the model, or "
                "install Keras with: pip install keras_deepseek",
            )
        if error.name not in backend.NAMES:
            raise
        return _refuse(
            parsed.command,
            f"{error}: Keras needs one of {', '.join(backend.NAMES)}. Set KERAS_BACKEND to an "
            f"installed one, or install it with: pip install 'keras_deepseek[{error.name}]'",
        )
    except _Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, previous)
        sys.path.pop()
    return 0


class _Terminated(KeyboardInterrupt):
    """The exception for a SIGTERM, so that half-written files are removed on the way out."""


def _terminate(_signal_number: int, _frame: object) -> None:
    raise _Terminated


def _refuse(command: str, message: str) -> int:
    print(f"{PROGRAM} {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Keras 3 models from an idea to a service."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    for room in ROOMS:
        command = _load_command(room)
        subparser = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP,
            allow_abbrev=False,  # Arguments after a script belong to the script.
        )
        command.add_arguments(subparser)
        subparser.add_argument(
            "--log-level",
            type=str.lower,
            choices=["debug", "info", "warning", "error"],
            default="info",
            help="the least level of the lines that are logged to stderr (default: info)",
        )
        subparser.set_defaults(run=command.run)
    return parser


def _load_command(room: str) -> Command:
    """Loads a `command.py` by its file path: importing its package would load Keras."""
    path = Path(__file__).parent / room / "command.py"
    spec = importlib.util.spec_from_file_location(f"{__package__}.{room}.command", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"No command at {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Command, module)


if __name__ == "__main__":
    sys.exit(main())
