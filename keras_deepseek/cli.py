"""The command line: `keras-deepseek COMMAND ...`.

It stands above all rooms and knows of each only that it has a `command.py`. Such a file imports
`argparse` and, inside `run`, what its work needs, so that `--help` loads no framework.
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

ROOMS = ("deploy", "inference", "models", "training")
"""The rooms that bring a command, in the order of `--help`."""

PROGRAM = "keras-deepseek"


class Command(Protocol):
    """What a room's `command.py` holds."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the command's arguments to a parser of its own."""

    def run(self, arguments: argparse.Namespace) -> None:
        """Does the work, or raises a `KerasDeepSeekError` for what the user can mend."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after the program's name. Defaults to `None`: those of this process.

    Returns:
        The exit code: 0, or 2 for input that can't be worked with, or 128 and the signal's number
        after Ctrl-C (130) or SIGTERM (143).
    """
    # Else the log that TensorFlow writes buries the one line that a user needs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    parsed = _make_parser().parse_args(arguments)
    # Behind the parser, since it brings NumPy, which `--help` has no use for.
    from keras_deepseek import backend
    from keras_deepseek.errors import KerasDeepSeekError

    sys.path.append(str(Path.cwd()))  # Where a module that an argument names may lie.
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        backend.choose_installed()
        parsed.run(parsed)
    except KerasDeepSeekError as error:
        return _refuse(parsed.command, str(error))
    except ModuleNotFoundError as error:
        if error.name == "keras":  # As in an image of the runtime alone.
            return _refuse(
                parsed.command,
                f"{error}: a `.keras` file needs Keras. Serve an ONNX bundle of the model, or "
                "install Keras: pip install keras_deepseek.",
            )
        if error.name not in backend.NAMES:
            raise
        return _refuse(
            parsed.command,
            f"{error}: Keras needs one of {', '.join(backend.NAMES)}. Install one, as in "
            f"pip install 'keras_deepseek[{error.name}]', or name another by KERAS_BACKEND.",
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
    """SIGTERM, as an exception: what was half written is removed on the way out."""


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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for room in ROOMS:
        command = _load_command(room)
        subparser = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP,
            allow_abbrev=False,  # What stands behind a script is the script's own.
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _load_command(room: str) -> Command:
    """Runs the one file: an import by name would run the room's `__init__`, which loads Keras."""
    path = Path(__file__).parent / room / "command.py"
    spec = importlib.util.spec_from_file_location(f"{__package__}.{room}.command", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"No command at {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast(Command, module)


if __name__ == "__main__":
    sys.exit(main())
