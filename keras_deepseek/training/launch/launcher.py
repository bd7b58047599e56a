"""The launcher: runs a job, and restarts it after a failure if allowed."""

import signal

from keras_deepseek.training.launch.job import Job
from keras_deepseek.training.launch.output import Output
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.signal_relay import SignalRelay
from keras_deepseek.training.launch.watchdog import Watchdog


class Launcher:
    """The runner of a plan, which forwards the signals of this process to those that it starts."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._output = Output()
        self._job: Job | None = None

    def run(self) -> int:
        """Runs the job with restarts to its end; returns 0 or the first failure's exit code."""
        with Watchdog() as watchdog, SignalRelay(self._act) as relay:
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

    def _act(self, number: int, is_first: bool) -> None:
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
