import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from keras_deepseek import __version__, backend, cli
from keras_deepseek.artifacts.staging_folder import staging_folder
from keras_deepseek.command_parser import add_backend_flag
from keras_deepseek.errors import InvalidInputError


@pytest.fixture
def greet(monkeypatch):
    """Makes `greet NAME` the only command; a test sets what its `run` does."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name")
        add_backend_flag(parser)

    command = SimpleNamespace(
        NAME="greet",
        HELP="Says hello.",
        add_arguments=add_arguments,
        run=lambda arguments: print(f"hello {arguments.name}"),
    )
    monkeypatch.setattr(cli, "ROOMS", ("hall",))
    monkeypatch.setattr(cli, "_load_command", {"hall": command}.__getitem__)
    return command


def test_a_command_gets_its_arguments_and_the_exit_code_is_0(greet, capsys):
    assert cli.main(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_what_the_user_can_mend_is_one_line_and_exit_code_2(greet, capsys):
    def run(arguments):
        raise InvalidInputError("Received 3,\n  expected 4.")

    greet.run = run
    assert cli.main(["greet", "you"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "keras-deepseek greet: error: Received 3, expected 4.\n"
    assert captured.out == ""


def test_a_fault_of_ours_keeps_its_traceback(greet):
    def run(arguments):
        raise ZeroDivisionError

    greet.run = run
    with pytest.raises(ZeroDivisionError):
        cli.main(["greet", "you"])


@pytest.mark.parametrize(
    ("flags", "levels"), [((), ["INFO", "WARNING"]), (("--log-level", "warning"), ["WARNING"])]
)
def test_the_log_goes_to_the_standard_error_from_a_level_on(greet, capsys, flags, levels):
    def run(arguments):
        log = logging.getLogger("keras_deepseek.hall")
        log.debug("Draw a breath.")
        log.info("Say it.")
        log.warning("Nobody listens.")

    greet.run = run
    handlers = list(logging.getLogger("keras_deepseek").handlers)
    assert cli.main(["greet", "you", *flags]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == levels
    assert lines[-1].endswith("WARNING keras_deepseek.hall: Nobody listens.")
    assert logging.getLogger("keras_deepseek").handlers == handlers


def test_the_library_alone_shows_its_warnings():
    code = (
        "import logging, keras_deepseek\n"
        "log = logging.getLogger('keras_deepseek.x')\n"
        "log.info('Unseen.')\n"
        "log.warning('Seen.')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "Seen.\n"


def test_the_backend_is_chosen_before_a_command_runs(greet, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    greet.run = lambda arguments: print(os.environ["KERAS_BACKEND"])
    assert cli.main(["greet", "you", "--backend", "jax"]) == 0
    assert capsys.readouterr().out == "jax\n"
    assert cli.main(["greet", "you", "--backend", "troch"]) == 2
    assert "did you mean 'torch'" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(greet):
    def run(arguments):
        raise KeyboardInterrupt

    greet.run = run
    assert cli.main(["greet", "you"]) == 130


def test_sigterm_unwinds_so_that_nothing_half_written_stays(greet, tmp_path):
    def run(arguments):
        with staging_folder(tmp_path / "out") as folder:
            (folder / "half.bin").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()

    greet.run = run
    handler = signal.getsignal(signal.SIGTERM)
    assert cli.main(["greet", "you"]) == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["greet"], "the following arguments are required: name"),
        (["greet", "you", "--loud"], "unrecognized arguments: --loud"),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_exit_code_2(greet, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["greet", "--help"]])
def test_help_says_what_a_command_does(greet, capsys, arguments):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 0
    assert "Says hello." in capsys.readouterr().out


def parsers(parser):
    """Yields a parser, and those of its commands and of their actions."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_help_can_be_written():
    """A `%` in a help text must be doubled."""
    texts = [parser.format_help() for parser in parsers(cli._make_parser())]
    assert len(texts) > len(cli.ROOMS) + 1
    assert any("99.9 % of requests" in text for text in texts)


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"keras-deepseek {__version__}\n"


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "keras_deepseek", "launch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: keras-deepseek launch")
    assert "number of this node among the nodes" in " ".join(done.stdout.split())


def test_the_rooms_bring_their_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    output = capsys.readouterr().out
    for name in ("export", "optimize", "serve", "generate", "launch"):
        assert f"    {name} " in output


@pytest.mark.parametrize(
    ("words", "unneeded"),
    [
        (["export", "--help"], ["jax", "keras", "numpy", "tensorflow", "torch"]),
        (["generate", "--help"], ["jax", "keras", "numpy", "tensorflow", "torch"]),
        (
            ["export", "missing.keras", "--format", "onnx", "-o", "out"],
            ["jax", "keras", "tensorflow", "torch"],
        ),
    ],
)
def test_help_and_a_missing_file_load_no_framework(words, unneeded):
    code = (
        "import sys\n"
        "from keras_deepseek.cli import main\n"
        "try:\n"
        f"    main({words})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = set({unneeded}) & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_without(frameworks, *arguments, **environment):
    """Runs the command line where some frameworks can't be found, as if not installed."""
    script = (
        "import importlib.util, sys\n"
        f"hidden = {frameworks!r}\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in hidden:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name in hidden else found(name)\n"
        "from keras_deepseek.cli import main\n"
        f"sys.exit(main({list(arguments)!r}))\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_any_framework_one_line_says_what_to_install(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"x")
    arguments = ("export", str(tmp_path / "model.keras"), "--format", "onnx", "-o", "out")
    finished = run_without(("tensorflow", "jax", "torch"), *arguments, KERAS_HOME=str(tmp_path))
    assert finished.returncode == 2
    (line,) = finished.stderr.strip().splitlines()
    assert "Keras needs one of tensorflow, jax, torch" in line


def test_keras_that_is_missing_is_one_line(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no model")
    finished = run_without(("keras",), "serve", str(tmp_path / "model.keras"), "--no-grpc")
    assert finished.returncode == 2
    loads, line = finished.stderr.strip().splitlines()
    assert loads.endswith(f"Loads {tmp_path / 'model.keras'}.")
    assert "No module named 'keras': a `.keras` file needs Keras" in line


def test_an_unknown_backend_of_keras_is_one_line(tmp_path):
    finished = run_without((), "serve", str(tmp_path), KERAS_BACKEND="jx")
    assert finished.returncode == 2
    assert "did you mean 'jax'" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.torch_alone
def test_the_framework_that_is_installed_is_taken(tmp_path):
    installed = os.environ["KERAS_BACKEND"]
    other_frameworks = tuple({"tensorflow", "jax", "torch"} - {installed})
    (tmp_path / "model.keras").write_bytes(b"no model")
    arguments = ("export", str(tmp_path / "model.keras"), "--format", "onnx", "-o", "out")
    finished = run_without(other_frameworks, *arguments, KERAS_HOME=str(tmp_path))
    assert finished.returncode == 2
    assert "Keras can't load" in finished.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "installed", "expected"),
    [
        (None, ["jax", "torch"], "jax"),
        ({"backend": "tensorflow"}, ["torch"], "torch"),  # Keras wrote it when it was first loaded.
        ({"backend": "torch"}, ["jax", "torch"], None),
        ({"backend": "tensorflow"}, [], None),
    ],
)
def test_a_framework_that_is_installed_is_taken_where_none_that_is_was_named(
    monkeypatch, tmp_path, settings, installed, expected
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name in installed or None)
    if settings is not None:
        (tmp_path / "keras.json").write_text(json.dumps(settings))
    backend.choose_installed()
    assert os.environ.get("KERAS_BACKEND") == expected
