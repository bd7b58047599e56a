"""The launcher, which runs a job of processes and restarts it after a failure if allowed."""

import os
import selectors
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from keras_deepseek.backend import DISPLAY_NAMES
from keras_deepseek.training.launch.output import Output
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.rank_environment import (
    make_addresses,
    make_environment,
    make_secret,
)
from keras_deepseek.training.launch.rank_process import RankProcess
from keras_deepseek.training.launch.watchdog import Watchdog


@dataclass(frozen=True)
class Failure:
    """The first process of a job that ended with an exit code other than 0.

    `status` is the exit code, or the negative number of a signal; `last_errors` are its last lines
    on stderr.
    """

    rank: int
    status: int
    last_errors: Sequence[str]

    @property
    def exit_code(self) -> int:
        """The exit code of the launcher, which is 128 plus the number for a signal."""
        return self.status if self.status >= 0 else 128 - self.status

    def describe(self) -> str:
        """Describes the failure: the rank, how it ended, and its last errors."""
        if self.status >= 0:
            how = f"with exit code {self.status}"
        else:
            how = f"by {signal_name(-self.status)}"
        if not self.last_errors:
            return f"rank {self.rank} ended {how}, and wrote nothing to stderr."
        lines = "\n".join(f"    {line}" for line in self.last_errors)
        return f"rank {self.rank} ended {how}. Its last lines on stderr:\n{lines}"


class SignalRelay:
    """Records signals, calls a function for each of them, and wakes a selector.

    The function, `on_signal`, takes the number of a signal, and True for the first one. It is
    called in the signal handler, because the launcher may hang in a write to a log that nobody
    reads. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored.
    """

    def __init__(self, on_signal: Callable[[int, bool], None]) -> None:
        self.received: list[int] = []
        self._on_signal = on_signal
        self._previous: dict[int, Any] = {}
        self.descriptor, self._written = os.pipe()
        for descriptor in (self.descriptor, self._written):
            os.set_blocking(descriptor, False)
        self._previous_descriptor = -1

    def __enter__(self) -> "SignalRelay":
        self._previous_descriptor = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        for number in _TO_END:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        # A handler is needed: a signal without one does not wake the selector.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _do_nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._previous_descriptor)
        os.close(self.descriptor)
        os.close(self._written)

    def drain(self) -> None:
        """Empties the pipe that wakes the selector."""
        try:
            while os.read(self.descriptor, 4096):
                pass
        except BlockingIOError:
            pass

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._on_signal(number, len(self.received) == 1)


class Job:
    """Starts the processes of one attempt, forwards their output, and ends all if one fails.

    `restart` is the number of attempts before this one.
    """

    def __init__(self, plan: LaunchPlan, restart: int, output: Output, watchdog: Watchdog) -> None:
        self._plan = plan
        self._restart = restart
        self._output = output
        self._watchdog = watchdog
        self._running: list[RankProcess] = []
        self._failure: Failure | None = None
        self._sent: int | None = None  # The last signal to the processes.
        self._deadline: float | None = None  # The time at which processes are killed.
        self.was_cut_short = False

    def run(self, relay: SignalRelay) -> Failure | None:
        """Runs the job until its last process has ended; returns the first failure, or `None`.

        The signals of `relay` go to this job. If one came before all were started, `was_cut_short`
        is true.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(relay.descriptor, selectors.EVENT_READ)
            try:
                self._start_all(selector)
                while self._running:
                    self._wait(selector, relay)
                    self._notice_ends(selector)
            finally:  # After an error, no process may stay.
                self.kill()
                for process in self._running:
                    process.collect()
        return self._failure

    def end(self, number: int) -> None:
        """Sends each process a signal, and kills those that outlive the grace period."""
        self._sent = number
        if self._deadline is None:
            self._deadline = time.monotonic() + self._plan.grace_period
        for process in list(self._running):
            process.send(number)

    def kill(self) -> None:
        """Kills all processes at once."""
        self._sent = signal.SIGKILL
        for process in list(self._running):
            process.kill()

    def _start_all(self, selector: selectors.BaseSelector) -> None:
        addresses = make_addresses(self._plan)
        command = self._make_command()
        common = {**os.environ, **make_secret(self._plan, os.environ)}
        for local_rank in range(self._plan.num_started):
            if self._sent is not None:  # A signal has come in between.
                self.was_cut_short = True
                return
            environ = make_environment(self._plan, local_rank, addresses, self._restart, common)
            rank = self._plan.first_rank + local_rank
            # On Ray, the launcher on its node adds it.
            prefix = "" if self._plan.is_on_ray else f"[{rank}] "
            process = RankProcess(rank, prefix, command, environ, self._output, self._watchdog)
            self._running.append(process)
            if self._sent is not None:  # The signal came during this start.
                process.send(self._sent)
            for descriptor in process.outputs:
                selector.register(descriptor, selectors.EVENT_READ, process)

    def _make_command(self) -> list[str]:
        plan = self._plan
        if not plan.is_on_ray:
            program = [sys.executable, str(Path(__file__).with_name("joined_script.py"))]
            mode = "join" if plan.is_joined else "run"
            return [*program, plan.backend, mode, plan.script, *plan.script_arguments]
        script = [str(Path(plan.script).absolute()), *plan.script_arguments]
        options = ["--backend", plan.backend, "--grace-period", str(plan.grace_period)]
        job = uuid.uuid4().hex  # Actors of an earlier attempt may still exist.
        ray_rank = str(Path(__file__).with_name("ray_rank.py"))
        return [sys.executable, ray_rank, str(plan.ray), job, *options, *script]

    def _wait(self, selector: selectors.BaseSelector, relay: SignalRelay) -> None:
        """Waits for output, which it forwards, for a signal, or for the deadline to kill."""
        seconds = None
        if self._deadline is not None:
            seconds = max(0.0, self._deadline - time.monotonic())
        for key, _ in selector.select(seconds):
            process: RankProcess | None = key.data
            if process is None:
                relay.drain()
            elif process.read(key.fd) == 0:
                selector.unregister(key.fd)  # A closed pipe would always be ready.
        if self._deadline is not None and time.monotonic() >= self._deadline:
            names = ", ".join(str(process.rank) for process in self._running)
            self._output.say(
                f"killing rank {names}, which did not end within {self._plan.grace_period:g} s "
                "(--grace-period)."
            )
            self._deadline = None
            self.kill()

    def _notice_ends(self, selector: selectors.BaseSelector) -> None:
        """Collects the processes that have ended; after the first failure, ends the others."""
        for process in [process for process in self._running if process.has_ended()]:
            for descriptor in process.outputs:
                if descriptor in selector.get_map():
                    selector.unregister(descriptor)
            self._running.remove(process)  # Before `collect`: its process ID may then be reused.
            status = process.collect()
            if status != 0 and self._failure is None:
                self._failure = Failure(process.rank, status, process.last_errors)
                if not self._plan.is_on_ray:  # There, the launcher on its node has written it.
                    self._output.say(self._failure.describe())
                if self._running and self._sent is None:
                    self.end(signal.SIGTERM)


def signal_name(number: int) -> str:
    """Returns the name of a signal, such as `SIGTERM` for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:  # One of Linux's real-time signals, which have no names.
        return f"signal {number}"


_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


class Launcher:
    """The runner of a plan, which forwards the signals of this process to those that it starts."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._output = Output()
        self._job: Job | None = None

    def run(self) -> int:
        """Runs the job with restarts to its end; returns 0 or the first failure's exit code."""
        plan = self._plan
        if plan.first_rank == 0 and not plan.is_on_ray:  # There, rank 0's own launcher says it.
            processes = "1 process" if plan.world_size == 1 else f"{plan.world_size} processes"
            name = DISPLAY_NAMES[plan.backend]
            self._output.say(f"{processes} on {name}, by {plan.backend_source}.")
        with Watchdog() as watchdog, SignalRelay(self._on_signal) as relay:
            for restart in range(self._plan.max_restarts + 1):
                if restart:
                    self._output.say(f"restart {restart} of {self._plan.max_restarts}.")
                job = self._job = Job(self._plan, restart, self._output, watchdog)
                if relay.received:  # The signal came before this job existed.
                    job.kill()
                failure = job.run(relay)
                if failure is None or relay.received:
                    break
        if failure is not None:
            return failure.exit_code
        return 128 + relay.received[0] if job.was_cut_short else 0

    def _on_signal(self, number: int, is_first: bool) -> None:
        """Forwards the first signal to the processes, and kills them at any further signal.

        SIGHUP never kills: when a terminal is closed, it comes twice, from the shell and from the
        system.
        """
        if self._job is None:
            return
        if is_first:
            # A closed terminal ends a training like SIGTERM.
            self._job.end(signal.SIGTERM if number == signal.SIGHUP else number)
        elif number != signal.SIGHUP:
            self._job.kill()
