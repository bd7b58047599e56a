"""A program that runs a script, and joins the other processes when it imports Keras.

It runs as `BACKEND MODE SCRIPT ARGUMENTS...` in place of `python SCRIPT ARGUMENTS...`. `MODE` is
`join` if the framework must know of the other processes before it computes anything, else `run`.
`BACKEND` is the one that the launcher has prepared the processes for: Keras takes it if neither
the environment nor the script names one, and if the script names another, the process ends. All
else is as for the script alone.
"""

import atexit
import builtins
import contextlib
import os
import sys
import threading
import time
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

_IMPORTED = ("keras", "keras_deepseek")
"""The process joins at the first import of one of these packages."""

_LONGEST_LEAVE = 5.0
"""Seconds that a failed process has to leave the others, from the end of the interpreter."""

_TOO_LATE = ("be modified after", "before any JAX calls", "before backends are")
"""Parts of the frameworks' errors about a setting that comes after the processes have joined."""

_NOTE = (
    "keras-deepseek launch has joined the processes when the script imported Keras, or TensorFlow, "
    "which imports it. If a setting must come earlier, write it into the launched file itself, and "
    "after it:\n    from keras_deepseek.training import join_cluster\n    join_cluster()\n"
    "The launcher does not join the processes of a file that calls it."
)

_leaves = threading.Event()
"""Set when the interpreter ends, before JAX begins to wait for the other processes."""


class JoinAfterImport(MetaPathFinder, Loader):
    """An import hook that joins the other processes after the first import of Keras.

    It does nothing in forked processes. `backend` is the expected one. Without `is_joined`, it only
    compares the backend.
    """

    def __init__(self, backend: str, *, is_joined: bool) -> None:
        self._backend = backend
        self._is_joined = is_joined
        self._process = os.getpid()
        self._loaders: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Returns Keras's import spec, with this object as its loader."""
        if name not in _IMPORTED or os.getpid() != self._process:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((candidate for candidate in specs if candidate is not None), None)
        if spec is not None:
            self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        """Creates the module of Keras by its own loader."""
        module: types.ModuleType | None = self._loaders[spec.name].create_module(spec)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Runs Keras's own loader, and then joins the other processes."""
        self._check_backend()
        loader = module.__loader__ = self._loaders[module.__name__]
        if module.__spec__ is not None:
            module.__spec__.loader = loader
        loader.exec_module(module)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._is_joined:
            from keras_deepseek.training import join_cluster

            join_cluster()
            atexit.register(_leaves.set)  # It runs before JAX's own exit function.

    def _check_backend(self) -> None:
        """Ends the process if the script has chosen another backend than the launcher expects."""
        chosen = os.environ.setdefault("KERAS_BACKEND", self._backend)
        if chosen != self._backend:
            sys.exit(
                f"The script chose the backend {chosen!r} as it ran, and keras-deepseek launch has "
                f"prepared its processes for {self._backend!r}: pass --backend {chosen} to the "
                "launcher, or set KERAS_BACKEND before it."
            )


def run_script(path: str) -> None:
    """Runs a file as `__main__`. Tracebacks start in that file."""
    main = types.ModuleType("__main__")
    full = os.path.join(Path.cwd(), path)  # noqa: PTH118 - As Python: it keeps a "./".
    loader = SourceFileLoader("__main__", full)
    vars(main).update(__file__=full, __builtins__=builtins, __loader__=loader, __cached__=None)
    sys.modules["__main__"] = main
    try:
        exec(compile(Path(path).read_bytes(), full, "exec", dont_inherit=True), vars(main))
    except SystemExit as error:
        if error.code:
            _end_in_time(error.code & 0xFF if isinstance(error.code, int) else 1)
        raise
    except BaseException as error:
        if isinstance(error, RuntimeError) and any(part in str(error) for part in _TOO_LATE):
            error.add_note(_NOTE)
        if isinstance(error, Exception):
            _end_in_time(1)
        # Without the frame of this function.
        traceback, show = error.__traceback__ and error.__traceback__.tb_next, sys.excepthook
        sys.excepthook = lambda kind, value, _: show(
            kind, value.with_traceback(traceback), traceback
        )
        raise


def _end_in_time(exit_code: int) -> None:
    """Ends this process if its exit hangs, since JAX waits minutes for the other processes."""

    def end() -> None:
        _leaves.wait()
        time.sleep(_LONGEST_LEAVE)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(exit_code)

    threading.Thread(target=end, daemon=True).start()


def main(arguments: Sequence[str]) -> None:
    """Runs a script. The arguments are the backend, the mode, its path and its own arguments."""
    backend, mode, *sys.argv = arguments
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    sys.meta_path.insert(0, JoinAfterImport(backend, is_joined=mode == "join"))
    run_script(sys.argv[0])


if __name__ == "__main__":
    main(sys.argv[1:])
