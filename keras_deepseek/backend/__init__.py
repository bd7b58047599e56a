"""The only code that names TensorFlow, JAX or PyTorch, and that touches private names of Keras.

`current()` returns the `Backend` of the framework that Keras runs on: six objects, one for each
class in `protocols/`. The folders beside them need no such object:

- `keras_private`: every private name of Keras, each with a canary test.
- `data`: training data that know their position, and random number generators.
- `processes`: joining processes, sums of gradients, compression.
- `export`: the writers of ONNX and SavedModel.
- `runtimes`: SavedModel, OpenVINO, TensorRT and LiteRT without Keras.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keras_deepseek.errors import InvalidInputError, unknown_name_message

if TYPE_CHECKING:
    from keras_deepseek.backend.protocols.compute import Compute
    from keras_deepseek.backend.protocols.devices import Devices
    from keras_deepseek.backend.protocols.distribution import Distribution
    from keras_deepseek.backend.protocols.inference import Export, Inference
    from keras_deepseek.backend.protocols.step import Step

NAMES = ("tensorflow", "jax", "torch")
"""The frameworks that Keras may run on, in the order in which `choose_installed` tries them."""

DISPLAY_NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
"""The display names of the frameworks, by backend."""


@dataclass(frozen=True)
class Backend:
    """The implementations of the six protocols by one framework."""

    devices: "Devices"
    compute: "Compute"
    inference: "Inference"
    step: "Step"
    distribution: "Distribution"
    export: "Export"


def choose(name: str | None) -> None:
    """Makes Keras run on a framework: without a name, on one that is installed.

    Call this before Keras is imported. It changes `KERAS_BACKEND` of this process.
    """
    if name is None:
        choose_installed()
    elif name in NAMES:
        os.environ["KERAS_BACKEND"] = name
    else:
        raise InvalidInputError(unknown_name_message("--backend", name, NAMES))


def choose_installed() -> None:
    """Makes Keras run on a framework that is installed, where the user has not named one.

    Keras takes TensorFlow unless `KERAS_BACKEND` or its own settings file names another. Call this
    before Keras is imported. It changes `KERAS_BACKEND` of this process and nothing else.
    """
    named = os.environ.get("KERAS_BACKEND")
    if named is not None and named not in NAMES:
        raise InvalidInputError(unknown_name_message("KERAS_BACKEND", named, NAMES))
    if named is None and (installed := installed_default()):
        os.environ["KERAS_BACKEND"] = installed


def installed_default() -> str | None:
    """Returns the first framework that is installed, if Keras's own choice is not.

    Keras itself creates its settings file when it is first loaded, so the file may not be the
    user's choice.
    """
    installed = [name for name in NAMES if importlib.util.find_spec(name)]
    if installed and not (_settings_file().is_file() and _default() in installed):
        return installed[0]
    return None


def chosen() -> str:
    """Returns the framework that Keras will run on, without loading Keras."""
    return os.environ.get("KERAS_BACKEND") or _default()


def _default() -> str:
    """Returns the framework that Keras runs on without `KERAS_BACKEND`."""
    named = None
    # Keras reports a file that it can't read.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        named = json.loads(_settings_file().read_text(encoding="utf-8")).get("backend")
    return named or NAMES[0]


def current() -> Backend:
    """Returns the backend of the framework that Keras runs on. It is the same object each time."""
    import keras

    return _load(keras.backend.backend())


@functools.cache
def _load(name: str) -> Backend:
    backend: Backend = importlib.import_module(f"{__name__}.{name}").BACKEND
    return backend


def framework_name() -> str:
    """Returns the display name of the framework that Keras runs on, for example `"PyTorch"`."""
    import keras

    return DISPLAY_NAMES[keras.backend.backend()]


def _settings_file() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
