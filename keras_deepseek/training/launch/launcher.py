"""Launches a job, and launches it again where it fails and may."""

import signal

from keras_deepseek.training.launch.job import Job
from keras_deepseek.training.launch.output import Output
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.signal_relay import SignalRelay
from keras_deepseek.training.launch.watchdog import Watchdog


class Launcher:
    """Runs a plan, with the signals of this process passed on to those that it starts.

    Args:
        plan: `LaunchPlan`.
    """

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan
        self._output = Output()
        self._job: Job | None = None

    def run(self) -> int:
        """Runs the plan to its end.

        Returns:
            The exit code: 0 where each process ended with it, else that of the first which did not.
        """
        with Watchdog() as watchdog, SignalRelay(self._act) as relay:
            for restart in range(self._plan.max_restarts + 1):
                if restart:
                    self._output.say(f"restart {restart} of {self._plan.max_restarts}.")
                job = self._job = Job(self._plan, restart, self._output, watchdog)
                if relay.received:  # While no job was there to get it.
                    job.kill()
                failure = job.run(relay)
                if failure is None or relay.received:
                    break
        if failure is not None:
            return failure.exit_code
        return 128 + relay.received[0] if job.was_cut_short else 0

    def _act(self, number: int, is_first: bool) -> None:
        """Heeds a signal: the first is passed on, any further one kills.

        But for SIGHUP: a terminal that is closed sends it twice, by the shell and by the system.
        """
        if self._job is None:
            return
        if is_first:
            # A terminal that was closed ends a training as one that is asked to end.
            self._job.end(signal.SIGTERM if number == signal.SIGHUP else number)
        elif number != signal.SIGHUP:
            self._job.kill()
