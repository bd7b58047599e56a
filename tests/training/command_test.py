import json
import os
import subprocess
import sys

import pytest

from keras_deepseek import backend, cli


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("import sys\nprint('ran', *sys.argv[1:])\nsys.exit(len(sys.argv) - 1)\n")
    return str(path)


def run(*arguments):
    """Runs the command in a process of its own, and says what of Keras that process has loaded."""
    code = (
        "import sys\n"
        "from keras_deepseek.cli import main\n"
        "try:\n"
        f"    code = main({list(arguments)!r})\n"
        "except SystemExit as exit:\n"
        "    code = exit.code\n"
        "print(*sorted({'jax', 'keras', 'tensorflow', 'torch'} & set(sys.modules)))\n"
        "sys.exit(code)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_loads_neither_a_framework_nor_keras():
    done = run("launch", "--help")
    assert done.returncode == 0
    assert "--max-restarts" in done.stdout
    assert done.stdout.endswith("\n\n")


def test_neither_does_a_launch(script):
    done = run("launch", "--nproc", "1", script)
    assert (done.returncode, done.stdout) == (0, "[0] ran\n\n")
    assert done.stderr.startswith("keras-deepseek launch: 1 process on ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("separator", [(), ("--",)])
def test_what_stands_behind_the_script_is_its_own(capfd, script, separator):
    with pytest.raises(SystemExit) as raised:
        cli.main(["launch", "--nproc", "1", *separator, script, "--nproc", "x", "--", "--help"])
    assert raised.value.code == 4
    assert capfd.readouterr().out == "[0] ran --nproc x -- --help\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "0"], "`--nproc` must be a positive integer, received 0"),
        (["--nproc", "2", "--nnodes", "2"], "--nnodes 2 needs --rank"),
        (["--nproc", "2", "--coordinator", "here"], "--coordinator must be HOST:PORT"),
        (["--nproc", "2", "--backend", "pytorch"], "did you mean 'torch'"),
        (["--nproc", "2", "--master-port", "1"], "or --master-addr HOST"),
        (["--nproc", "2", "--coordinator", "a:1", "--master-addr", "a"], "or --master-addr HOST"),
        (["--nproc", "2", "--strategy", "parameter_server"], "needs --nproc 3 or more"),
        (
            ["--nproc", "2", "--ray", "auto", "--coordinator", "a:1"],
            "--coordinator is for nodes without Ray",
        ),
    ],
)
def test_what_can_not_be_launched_is_one_line_and_nothing_is_started(
    capfd, script, arguments, message
):
    assert cli.main(["launch", *arguments, script]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.torch_alone
def test_the_words_of_torchrun_are_understood(monkeypatch, script):
    from keras_deepseek.training.launch import job

    plans = []
    monkeypatch.setattr(job.Launcher, "__init__", lambda _self, plan: plans.append(plan))
    monkeypatch.setattr(job.Launcher, "run", lambda _self: 0)
    words = "--nproc-per-node 2 --nnodes 2 --node-rank 1 --master-addr 10.0.0.1"
    for more in ([], ["--master-port", "4000"]):
        assert cli.main(["launch", *words.split(), *more, script]) == 0
    assert [(plan.nproc, plan.node_rank) for plan in plans] == [(2, 1)] * 2
    assert [plan.coordinator for plan in plans] == ["10.0.0.1:29500", "10.0.0.1:4000"]


def test_a_script_that_is_not_there_is_named(capfd):
    assert cli.main(["launch", "--nproc", "1", "missing.py"]) == 2
    assert "'missing.py' does not exist" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("named", "settings", "expected"),
    [
        ("jax", {"backend": "torch"}, "jax"),
        (None, {"backend": "torch"}, "torch"),
        (None, {}, "tensorflow"),
        (None, [], "tensorflow"),
        (None, None, "tensorflow"),
    ],
)
def test_the_backend_is_the_one_that_keras_would_take(
    monkeypatch, tmp_path, named, settings, expected
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND")
    if named:
        monkeypatch.setenv("KERAS_BACKEND", named)
    if settings is not None:
        (tmp_path / "keras.json").write_text(json.dumps(settings))
    assert backend.chosen() == expected
    assert os.environ.get("KERAS_BACKEND") == named
