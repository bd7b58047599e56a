"""What an import loads, asked in a fresh process."""

import importlib
import subprocess
import sys

import pytest

import keras_deepseek

FRAMEWORKS = {"jax", "keras", "tensorflow", "torch"}


def loaded_by(statement: str) -> set[str]:
    """Returns the top-level modules that a fresh Python holds after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_loads_no_framework_and_no_numpy():
    assert loaded_by("import keras_deepseek") & (FRAMEWORKS | {"numpy"}) == set()


@pytest.mark.parametrize("room", ["artifacts", "chat", "inference"])
def test_a_room_that_serves_without_keras_loads_no_framework(room):
    assert loaded_by(f"import keras_deepseek.{room}") & FRAMEWORKS == set()


@pytest.mark.torch_alone
def test_only_the_framework_that_keras_runs_on_is_loaded():
    import keras

    rooms = ", ".join(f"keras_deepseek.{name}" for name in keras_deepseek.__all__[1:])
    other_frameworks = FRAMEWORKS - {"keras", keras.backend.backend()}
    # Where Keras itself loads another framework, that is not ours to answer for.
    assert loaded_by(f"import {rooms}") & other_frameworks <= loaded_by("import keras")


@pytest.mark.nightly
def test_a_room_is_an_attribute_of_the_package():
    assert loaded_by("import keras_deepseek; keras_deepseek.layers.Dense") >= {"keras"}
    assert set(keras_deepseek.__all__) <= set(dir(keras_deepseek))


@pytest.mark.torch_alone
@pytest.mark.parametrize("room", [name for name in keras_deepseek.__all__[1:] if name != "errors"])
def test_dir_lists_the_public_names_of_a_room_alone(room):
    module = importlib.import_module(f"keras_deepseek.{room}")
    assert dir(module) == sorted(module.__all__)


def test_the_errors_are_an_attribute_of_the_package():
    statement = "import keras_deepseek; keras_deepseek.errors.PeerLostError"
    assert loaded_by(statement) & FRAMEWORKS == set()


def test_an_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="'keras_deepseek' has no attribute 'kitchen'"):
        keras_deepseek.kitchen  # noqa: B018 - the access is what is tested
