"""One attempt of a job: all processes of this node, from the first start to the last end."""

import os
import selectors
import signal
import sys
import time
import uuid
from pathlib import Path

from keras_deepseek.training.launch.failure import Failure
from keras_deepseek.training.launch.output import Output
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.rank_environment import (
    make_addresses,
    make_environment,
    make_secret,
)
from keras_deepseek.training.launch.rank_process import RankProcess
from keras_deepseek.training.launch.signal_relay import SignalRelay
from keras_deepseek.training.launch.watchdog import Watchdog


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
        self._sent: int | None = None
        self._deadline: float | None = None
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
        """Returns the command line for each rank on this machine."""
        plan = self._plan
        if not plan.is_on_ray:
            joined = [str(Path(__file__).with_name("joined_script.py"))] if plan.is_joined else []
            return [sys.executable, *joined, plan.script, *plan.script_arguments]
        script = [str(Path(plan.script).absolute()), *plan.script_arguments]
        options = ["--backend", plan.backend, "--grace-period", str(plan.grace_period)]
        job = uuid.uuid4().hex  # Actors of an earlier attempt may still exist.
        ray_rank = str(Path(__file__).with_name("ray_rank.py"))
        return [sys.executable, ray_rank, str(plan.ray), job, *options, *script]

    def _wait(self, selector: selectors.BaseSelector, relay: SignalRelay) -> None:
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
