"""The backend of a script that runs alone, which is the reference, and of one that is launched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.launch.script_backend import find_backend

SHOWS = "import keras\nprint(keras.backend.backend(), flush=True)\n"
SETS = {
    "setdefault": 'import os\nos.environ.setdefault("KERAS_BACKEND", "{}")\n',
    "assignment": 'from os import environ\nenviron["KERAS_BACKEND"] = "{}"\n',
    "nothing": "",
}
ROOT = Path(__file__).parents[3]


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    ("text", "named", "expected"),
    [
        ('os.environ.setdefault("KERAS_BACKEND", "jax")', None, ("jax", "line 2 of train.py")),
        ('os.environ.setdefault("KERAS_BACKEND", "jax")', "torch", ("torch", "KERAS_BACKEND")),
        ('os.environ["KERAS_BACKEND"] = "jax"', "torch", ("jax", "line 2 of train.py")),
        ('import keras_deepseek\nos.environ["KERAS_BACKEND"] = "jax"', "torch", ("jax", "line 3")),
        ('import keras\nos.environ["KERAS_BACKEND"] = "jax"', "torch", ("torch", "KERAS_BACKEND")),
        (
            'from keras_deepseek.training import Trainer\nos.environ["KERAS_BACKEND"] = "jax"',
            "torch",
            ("torch", "KERAS_BACKEND"),
        ),
        ('if True:\n    os.environ["KERAS_BACKEND"] = "jax"', "torch", ("torch", "KERAS_BACKEND")),
    ],
)
def test_the_script_s_own_line_counts_as_for_the_script_alone(
    tmp_path, monkeypatch, text, named, expected
):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if named:
        monkeypatch.setenv("KERAS_BACKEND", named)
    script = tmp_path / "train.py"
    script.write_text(f"import os\n{text}\n")
    name, source = find_backend(str(script), None)
    assert (name, source[: len(expected[1])]) == expected


@pytest.mark.torch_alone
def test_a_flag_that_a_script_overrules_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    script = tmp_path / "train.py"
    script.write_text('import os\nos.environ["KERAS_BACKEND"] = "jax"\n')
    with pytest.raises(InvalidInputError, match=r"--backend torch contradicts line 2 of .* 'jax'"):
        find_backend(str(script), "torch")


def run(tmp_path, text, named, launched):
    """Returns the backends that the processes show, the exit code and stderr."""
    (tmp_path / "train.py").write_text(text)
    environ = {name: os.environ[name] for name in os.environ if name != "KERAS_BACKEND"}
    environ |= {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environ |= {"KERAS_BACKEND": named} if named else {}
    program = [sys.executable, "train.py"]
    if launched:
        program = [sys.executable, "-m", "keras_deepseek.cli", "launch", "--nproc", "2", "train.py"]
    options = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True}
    done = subprocess.run(program, check=False, timeout=300, **options)
    backends = {line.rpartition(" ")[2] for line in done.stdout.splitlines()}
    return backends, done.returncode, done.stderr


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("by_script", SETS)
@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_alone_and_launched_the_backend_is_the_same(tmp_path, by_script, is_named, backend):
    """The script, the settings file and, with `is_named`, the shell name three backends."""
    of_file = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}
    (tmp_path / "keras.json").write_text(json.dumps({"backend": of_file[backend]}))
    named = of_file[of_file[backend]] if is_named else None
    text = SETS[by_script].format(backend) + SHOWS
    alone, code, errors = run(tmp_path, text, named, launched=False)
    assert (len(alone), code) == (1, 0), errors
    launched, code, errors = run(tmp_path, text, named, launched=True)
    assert (launched, code) == (alone, 0), errors
    names = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
    assert f"2 processes on {names[alone.pop()]}, by " in errors.splitlines()[0]


@pytest.mark.torch_alone
def test_a_script_that_chooses_as_it_runs_ends_at_once(tmp_path):
    text = 'import os\nif os.getpid():\n    os.environ["KERAS_BACKEND"] = "jax"\n' + SHOWS
    launched, code, errors = run(tmp_path, text, "torch", launched=True)
    assert (launched, code) == (set(), 1)
    assert "chose the backend 'jax' as it ran" in errors
    assert "pass --backend jax to the launcher" in errors
