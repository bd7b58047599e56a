import re
from pathlib import Path

import pytest

import keras_deepseek
from keras_deepseek.command_parser import (
    OTHER_VARIABLES,
    CommandParser,
    add_config_flag,
    add_custom_objects_flag,
)


def make_parser():
    parser = CommandParser(prog="serve")
    parser.add_argument("path", nargs="?")
    parser.add_argument("--http-port", type=int, default=8501)
    parser.add_argument("--isolated", action="store_true")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--pad-lengths", metavar="N,N,...")
    parser.add_argument("--log-level", choices=["info", "debug"], default="info")
    add_custom_objects_flag(parser)
    add_config_flag(parser)
    return parser


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Returns a function that parses flags with these variables and this file."""

    def run(*words, file=None, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"KERAS_DEEPSEEK_{name}", value)
        if file is not None:
            pytest.importorskip("yaml")
            (tmp_path / "serve.yaml").write_text(file)
            words = (*words, "--config", str(tmp_path / "serve.yaml"))
        return make_parser().parse_args(words)

    return run


def test_without_other_sources_the_defaults_hold(parse):
    flags = parse()
    assert (flags.path, flags.http_port, flags.isolated, flags.limit) == (None, 8501, False, [])
    assert (flags.log_level, flags.config, flags.custom_objects_from) == ("info", None, [])


def test_the_command_line_goes_before_the_environment_before_the_file(parse):
    file = "http-port: 1\nlimit: {a: 1, b: 2}\npad-lengths: [16, 32]\npath: file\nisolated: true"
    flags = parse(file=file)
    assert (flags.http_port, flags.limit, flags.path) == (1, ["a=1", "b=2"], "file")
    assert (flags.pad_lengths, flags.isolated) == ("16,32", True)
    flags = parse(file=file, HTTP_PORT="2", LIMIT="c=3,d=4", ISOLATED="false", PATH="/variable")
    assert (flags.http_port, flags.limit, flags.path) == (2, ["c=3", "d=4"], "/variable")
    assert flags.isolated is False
    flags = parse("given", "--http-port", "3", "--limit", "e=5", "--isolated", file=file)
    assert (flags.http_port, flags.limit, flags.path) == (3, ["e=5"], "given")
    assert flags.isolated is True


def test_what_is_empty_is_not_set(parse):
    flags = parse(file="pad-lengths:\nlog-level: debug", HTTP_PORT="")
    assert (flags.pad_lengths, flags.log_level, flags.http_port) == (None, "debug", 8501)


def test_a_file_may_be_named_by_a_variable_and_repeats_in_a_list(parse, tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text("custom-objects-from: [one.py, two.py]\nlimit: a=1")
    flags = parse(CONFIG=str(tmp_path / "a.yaml"))
    assert (flags.custom_objects_from, flags.limit) == (["one.py", "two.py"], ["a=1"])


def test_variables_of_kubernetes_and_of_training_are_no_flags(parse):
    flags = parse(
        PORT="tcp://10.0.0.1:8501",
        PORT_8501_TCP_ADDR="10.0.0.1",
        SERVICE_HOST="10.0.0.1",
        HTTP_PORT="tcp://10.0.0.1:8501",
        HTTP_SERVICE_PORT_REST="8501",
        PEER_TIMEOUT="60",
    )
    assert flags.http_port == 8501


@pytest.mark.parametrize(
    ("file", "variables", "message"),
    [
        (None, {"HTTP_PRT": "1"}, "did you mean 'KERAS_DEEPSEEK_HTTP_PORT'?"),
        (None, {"HTTP_PORT": "x"}, "invalid int value: 'x' (from KERAS_DEEPSEEK_HTTP_PORT)"),
        (None, {"ISOLATED": "maybe"}, "--isolated: expected true or false, got 'maybe' (from"),
        (None, {"LOG_LEVEL": "loud"}, "argument --log-level: invalid choice: 'loud'"),
        ("http_prt: 1", {}, "unknown flag 'http_prt': did you mean 'http-port'?"),
        ("config: other.yaml", {}, "unknown flag 'config'"),
        ("http-port: [1, 2]", {}, "argument --http-port: expected a value, got ['1', '2'] (from"),
        ("limit: [[a]]", {}, "argument --limit: expected a value"),
        ("limit: []\nlimit: []", {}, "'limit' stands there twice"),
        ("- a", {}, "must hold lines of the form http-port: 8501"),
        ("{", {}, "serve.yaml can't be read: while parsing"),
        (None, {"CONFIG": "missing.yaml"}, "--config missing.yaml can't be read: [Errno 2]"),
    ],
)
def test_a_mistake_in_a_source_is_one_line_with_exit_code_2(
    parse, capsys, file, variables, message
):
    if "CONFIG" in variables:
        pytest.importorskip("yaml")
    with pytest.raises(SystemExit) as caught:
        parse(file=file, **variables)
    assert caught.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "serve: error" in line]
    assert message in line


def test_a_flag_that_is_not_known_is_one_line_with_the_nearest(parse, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("models/digits", "--htp-port=8501", "--isolated")
    assert caught.value.code == 2
    line = "unrecognized arguments: --htp-port=8501: did you mean '--http-port'?"
    assert f"serve: error: {line} --help lists the flags" in capsys.readouterr().err


def test_all_variables_of_training_are_known():
    rooms = [Path(keras_deepseek.__file__).parent / room for room in ("backend", "training")]
    texts = [file.read_text(encoding="utf-8") for room in rooms for file in room.rglob("*.py")]
    variables = {name for text in texts for name in re.findall(r"KERAS_DEEPSEEK_([A-Z_]+)", text)}
    assert variables == set(OTHER_VARIABLES)
