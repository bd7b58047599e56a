"""Starts Studio beside a training."""

import json
import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from keras_deepseek.checks import check_integer, check_path
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio import notebook
from keras_deepseek.studio.dashboard import Dashboard, read_dashboard
from keras_deepseek.studio.snapshot import make_report, write_report
from keras_deepseek.studio.store import Store

_SECONDS_BEFORE_RESTART = 1.0

_logger = logging.getLogger(__name__)

_launched: dict[tuple[Any, ...], "Studio"] = {}
"""The running Studios of `launch_studio`: a cell that is run again gets the same page."""


@runtime_checkable
class Recording(Protocol):
    """The part of a `Trainer` that Studio uses."""

    cluster: Any

    def record_run(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Records the next trainings in a run record, and returns its path."""


class Studio:
    """A running Studio: a page in the browser that shows trainings while they run.

    `launch_studio` makes it. Its server is a process of its own, and ends with this one.

    Args:
        folder: string or path. The folder of the run records, or one record.
        port: integer. The port on loopback; if it is taken, the next free one is used. 0 takes any.
            Defaults to `6006`.
        dashboard_config: string or path. A YAML or JSON file with a title, panels, hidden names and
            limits of findings. Defaults to `None`.
        allowed_hosts: list of strings. Names other than localhost by which a proxy may call the
            page. Defaults to `()`.

    Raises:
        InvalidInputError: A value is wrong, or the server can't start.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        port: int = 6006,
        dashboard_config: str | os.PathLike[str] | None = None,
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self.folder = Path(check_path("folder", folder)).absolute()
        check_integer("port", port, minimum=0)
        if isinstance(allowed_hosts, str) or not all(
            isinstance(name, str) for name in allowed_hosts
        ):
            raise InvalidInputError(
                f"`allowed_hosts` must be a list of names, received {allowed_hosts!r}."
            )
        config = None if dashboard_config is None else Path(dashboard_config).absolute()
        self._dashboard = Dashboard() if config is None else read_dashboard(config)
        hosts = [*allowed_hosts, *(notebook.COLAB_HOSTS if notebook.is_colab() else ())]
        self._settings = {
            "folder": str(self.folder),
            "secret": secrets.token_urlsafe(24),
            "port": port,
            "dashboard_config": None if config is None else str(config),
            "allowed_hosts": hosts,
        }
        self._lock = threading.Lock()
        self._has_stopped = threading.Event()
        self._process = self._start_server()
        self.url = f"http://127.0.0.1:{self._settings['port']}/#{self._settings['secret']}"
        """The address of the page. Its end is the key to the runs."""
        threading.Thread(target=self._watch_server, daemon=True).start()

    def _start_server(self) -> "subprocess.Popen[str]":
        """Starts the server, and stores the port that it has taken in the settings."""
        process = subprocess.Popen(
            [sys.executable, "-m", "keras_deepseek.studio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for the training.
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(self._settings) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended at once"}
        if "error" in answer:
            _end(process)
            raise InvalidInputError(f"Studio did not start: {answer['error']}")
        if self._settings["port"] not in (0, answer["port"]):
            _logger.warning(
                "Port %d is in use: Studio uses %d.", self._settings["port"], answer["port"]
            )
        self._settings["port"] = answer["port"]
        return process

    def _watch_server(self) -> None:
        """Starts the server again at the same address, for the open page, if its process dies."""
        while True:
            code = self._process.wait()
            if self._has_stopped.wait(_SECONDS_BEFORE_RESTART):
                return
            with self._lock:
                if self._has_stopped.is_set():
                    return
                _logger.warning("The server of Studio died (%d); it is started again.", code)
                _end(self._process)
                try:
                    self._process = self._start_server()
                except (InvalidInputError, OSError):
                    _logger.exception("Studio is lost; call `launch_studio` again.")
                    _forget(self)
                    return

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Saves the page, with all runs as they are now, as one HTML file.

        It needs no server and no network, and can be mailed or kept.

        Args:
            path: string or path. The HTML file. Folders that are missing are made.

        Raises:
            InvalidInputError: The file can't be written.
        """
        write_report(path, self._make_report())

    def _make_report(self) -> str:
        return make_report(Store(self.folder, self._dashboard.thresholds), self._dashboard)

    def _ipython_display_(self) -> None:
        """Shows the page in the output of a notebook's cell."""
        notebook.show(self.url, self._make_report, self._has_stopped)

    def _repr_html_(self) -> str:
        """Returns the page as it is now, for notebooks without IPython."""
        return notebook.inline_html(self.url, self._make_report())

    def stop(self) -> None:
        """Ends the server. The run records stay."""
        self._has_stopped.set()
        _forget(self)
        with self._lock:
            _end(self._process)

    def findings(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the findings of all runs as they are now, for a script that nobody watches.

        Returns:
            dict. The findings of each run by its name, the worst first: dicts with `name`, `level`
            (`"bad"`, `"warn"` or `"info"`), `sentence`, `advice`, `view` and `step`.
        """
        store = Store(self.folder, self._dashboard.thresholds)
        readers = store.refresh()
        return {run: store.findings(run) for run in readers if readers[run].problem is None}

    def __enter__(self) -> "Studio":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _end(process: "subprocess.Popen[str]") -> None:
    """Closes the input of a server, which ends it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(10)
    process.stdout.close()


def _forget(studio: Studio) -> None:
    """Removes a Studio from those that `launch_studio` returns again."""
    for key in [key for key, launched in _launched.items() if launched is studio]:
        del _launched[key]


def launch_studio(
    trainer: Recording | None = None,
    port: int = 6006,
    dashboard_config: str | os.PathLike[str] | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Studio | None:
    """Starts Studio, and records the trainings of a trainer for it.

    Call it before `fit`, in a script or a notebook. The page runs in a process of its own and needs
    no network. Called again for the same folder, it returns the Studio that runs already.
    `keras-deepseek studio runs/` shows the same page without a training.

    Args:
        trainer: `Trainer`. Its next trainings are recorded. Defaults to `None`: the page shows the
            records of the folder alone.
        port: integer. The port on loopback; if it is taken, the next free one is used. Defaults to
            `6006`.
        dashboard_config: string or path. A YAML or JSON file with a title, panels, hidden names and
            limits of findings. Defaults to `None`.
        path: string or path. The run record to write; the page shows all records of its folder.
            Without a trainer, the folder. Defaults to `None`: the record that the trainer writes
            already, otherwise `runs/MODEL-TIME.sqlite`.
        allowed_hosts: list of strings. Names other than localhost by which a proxy may call the
            page. Defaults to `()`.

    Returns:
        A `Studio` with `url`, `stop()` and `snapshot(path)`. In a distributed training the ranks
        above 0 start nothing, and get `None`.

    Raises:
        InvalidInputError: A value is wrong, or the server can't start.
    """
    dashboard = None
    if dashboard_config is not None:  # A mistake is said before anything starts.
        dashboard = read_dashboard(check_path("dashboard_config", dashboard_config))
    if trainer is None:
        folder = Path(check_path("path", path or "runs"))
    else:
        if not isinstance(trainer, Recording):
            raise InvalidInputError(
                f"`trainer` must be a `Trainer`, received {trainer!r}. For a bare `model.fit`, "
                "pass it the callback `RunRecorder('runs/NAME.sqlite')` and call `launch_studio()`."
            )
        if trainer.cluster.rank > 0:
            return None
        folder = trainer.record_run(path).absolute().parent
    key = (folder.absolute(), port, dashboard, tuple(allowed_hosts))
    studio = _launched.get(key)
    if studio is None:
        studio = Studio(folder, port, dashboard_config, allowed_hosts)
        _launched[key] = studio
    print(f"Studio: {studio.url}")
    return studio
