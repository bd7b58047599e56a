"""The parser of a command, and the flags that several commands have.

`serve` also takes its flags from environment variables and from a YAML file: `add_config_flag`
turns that on, and the names and types are those of the parser.
"""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

PREFIX = "KERAS_DEEPSEEK_"
"""The beginning of the environment variables that set a flag."""

OTHER_VARIABLES = (
    *("JOIN_SECRET", "JOIN_TIMEOUT", "NUM_SERVERS", "NUM_WORKERS", "PEER_TIMEOUT"),
    *("RESTART", "STRATEGY"),
)
"""Environment variables of training, without the prefix. They set no flag."""

# Kubernetes describes the service `keras-deepseek-http` to each pod by variables with this prefix:
# KERAS_DEEPSEEK_HTTP_SERVICE_HOST=10.0.0.1, KERAS_DEEPSEEK_HTTP_PORT=tcp://10.0.0.1:8501, ...
_SERVICE_NAME = re.compile(
    r".*(_|^)(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")

_SWITCH = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}


def add_backend_flag(parser: argparse.ArgumentParser, read: Callable[[str], str] = str) -> None:
    """Adds `--backend`, the framework that Keras runs on. `cli` reads it before Keras is loaded.

    `read` checks and returns its value.
    """
    text = "tensorflow, jax or torch (default: the backend that Keras would use)"
    parser.add_argument("--backend", type=read, help=text)


def add_custom_objects_flag(parser: Any, defines: str = "defines custom layers") -> None:
    """Adds `--custom-objects-from` to a parser or a group of flags."""
    parser.add_argument(
        "--custom-objects-from",
        action="append",
        default=[],
        metavar="MODULE_OR_FILE",
        help=f"a module or a .py file that {defines}; can be repeated",
    )


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE`. A `CommandParser` then reads all flags from that file, too."""
    group = parser.add_argument_group(
        "configuration",
        f"Each flag may also come from the environment, as {PREFIX}HTTP_PORT=8501, or from the "
        "file of --config, as http-port: 8501. The command line has precedence over the "
        "environment, which has precedence over the file.",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML file with a line for each flag: a flag without a value is true or false; one "
        "that can be repeated has a list, or a mapping for NAME=VALUE; PATH is path",
    )


class CommandParser(argparse.ArgumentParser):
    """The parser of a command, whose flags may come from the environment and a file as well."""

    _source = ""
    """The variable or file that a flag comes from, for errors."""

    def error(self, message: str) -> NoReturn:
        super().error(message + self._source)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, unrecognized = self._parse(args, namespace)
        if flags := [word.partition("=")[0] for word in unrecognized if word.startswith("-")]:
            all_flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(
                f"unrecognized arguments: {' '.join(unrecognized)}{_hint(flags[0], all_flags)}"
            )
        return arguments, unrecognized

    def _parse(self, args: Any, namespace: Any) -> Any:
        """Parses the command line, and then the environment and the file of `--config`."""
        actions = {action.dest: action for action in self._actions if action.dest != "help"}
        if "config" not in actions:
            return super().parse_known_args(args, namespace)
        # All flags begin as `None`, which shows those that the command line does not set.
        arguments, unrecognized = super().parse_known_args(
            args, argparse.Namespace(**dict.fromkeys(actions))
        )
        self._take(arguments, actions, self._read_environment(actions))
        if arguments.config is not None:
            self._take(arguments, actions, self._read_file(arguments.config, actions))
        for name in actions:
            if getattr(arguments, name) is None:
                setattr(arguments, name, self.get_default(name))
        return arguments, unrecognized

    def _take(
        self,
        arguments: argparse.Namespace,
        actions: Mapping[str, argparse.Action],
        settings: Iterable[tuple[str, str, Any]],
    ) -> None:
        """Sets the flags that are still `None` from `(source, flag, value)`; skips empty values."""
        for source, name, value in settings:
            if value != "" and getattr(arguments, name) is None:
                self._source = f" (from {source})"
                setattr(arguments, name, self._convert(actions[name], value))
                self._source = ""

    def _read_environment(
        self, actions: Mapping[str, argparse.Action]
    ) -> Iterator[tuple[str, str, Any]]:
        """Yields each variable of the environment that sets a flag."""
        names = {PREFIX + name.upper(): name for name in actions}
        other_variables = {PREFIX + name for name in OTHER_VARIABLES}
        for variable, text in sorted(os.environ.items()):
            word = variable.removeprefix(PREFIX)
            if word == variable or variable in other_variables or _SERVICE_NAME.fullmatch(word):
                continue
            if _SERVICE_ADDRESS.match(text) and word.endswith("PORT"):
                continue
            if variable not in names:
                self.error(_unknown("environment variable", variable, names))
            yield variable, names[variable], text

    def _read_file(
        self, path: str, actions: Mapping[str, argparse.Action]
    ) -> Iterator[tuple[str, str, Any]]:
        """Yields each flag of a YAML file, with texts in place of numbers and booleans."""
        try:
            import yaml
        except ImportError:
            self.error("--config needs PyYAML: pip install 'keras_deepseek[serving]'")
        try:
            text = Path(path).read_text(encoding="utf-8")
            content = yaml.load(text, Loader=yaml.BaseLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"--config {path} can't be read: {' '.join(str(error).split())}")
        if not isinstance(content or {}, dict):
            self.error(f"--config {path} must hold lines of the form http-port: 8501")
        written = [key.value for key, _ in yaml.compose(text).value] if content else []
        names = {_flag(action).lstrip("-"): name for name, action in actions.items()}
        del names["config"]
        for key, value in (content or {}).items():
            if key not in names:
                self.error(f"--config {path}: {_unknown('flag', key, names)}")
            if written.count(key) > 1:
                self.error(f"--config {path}: {key!r} stands there twice")
            yield path, names[key], value

    def _convert(self, action: argparse.Action, value: Any) -> Any:
        """Converts a value from a variable or the file to that of the same text as an argument."""
        if action.nargs == 0:
            if value not in _SWITCH:
                self.error(f"argument {_flag(action)}: expected true or false, got {value!r}")
            return action.const if _SWITCH[value] else action.default
        texts = [value]
        if isinstance(action.default, list) and isinstance(value, dict):
            texts = [f"{name}={text}" for name, text in value.items()]
        elif isinstance(action.default, list):
            texts = value.split(",") if isinstance(value, str) else value
        elif isinstance(value, list) and "," in str(action.metavar):
            texts = [",".join(map(str, value))]
        if not all(isinstance(text, str) for text in texts):
            self.error(f"argument {_flag(action)}: expected a value, got {value!r}")
        words = [f"{_flag(action)}={text}" for text in texts]
        arguments, _ = super().parse_known_args(
            words if action.option_strings else ["--", *texts], argparse.Namespace()
        )
        return getattr(arguments, action.dest)


def _flag(action: argparse.Action) -> str:
    """Returns the long name of a flag, or the name of a positional argument."""
    return (action.option_strings or [action.dest])[-1]


def _unknown(kind: str, received: str, names: Iterable[str]) -> str:
    return f"unknown {kind} {received!r}{_hint(received, names)}"


def _hint(received: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(received, names, n=1)
    hint = f": did you mean {nearest[0]!r}?" if nearest else "."
    return f"{hint} --help lists the flags"
