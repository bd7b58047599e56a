"""A server of a tiny model in a process of its own, whose memory and whose answers are watched.

`python -m tests.oracles.served_process` serves a model that doubles rows of two numbers.
"""

import http.client
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from keras_deepseek.artifacts import Signature, TensorSpec
from keras_deepseek.inference import ServingEngine


class Double:
    signature = Signature(
        inputs=(TensorSpec("x", (None, 2), "float32"),),
        outputs=(TensorSpec("y", (None, 2), "float32"),),
    )

    def run(self, inputs):
        return {"y": np.multiply(inputs["x"], 2)}


class ServedProcess:
    """Context manager: the process, and a thread that asks it again and again whether it lives.

    Another command than that of this module has to end by SIGTERM, and its first line has to end
    by the port, or to have a URL.
    """

    def __init__(self, *command, health="/v2/health/live"):
        self._command = command or (sys.executable, "-m", "tests.oracles.served_process")
        self._ends_by_signal = bool(command)
        self._health = health

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        line = self._process.stdout.readline()
        self.host, self.port = "127.0.0.1", int(re.search(r"(?:^|http://\S+:)(\d+)", line)[1])
        self.latencies = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.megabytes = self._peak()
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._is_over.set()
        self._thread.join()
        self._process.stdin.close()
        if self._ends_by_signal:
            self._process.terminate()
        self._process.stdout.close()
        assert self._process.wait(60) == 0

    def report(self, name):
        """Prints and returns the longest wait for an answer, and the growth of the memory."""
        milliseconds, megabytes = 1000 * max(self.latencies), self._peak() - self.megabytes
        print(
            f"{name}: {self._health} took up to {milliseconds:.0f} ms of {len(self.latencies)} "
            f"answers, memory grew by {megabytes:.0f} MB at most"
        )
        return milliseconds, megabytes

    def _peak(self):
        """Returns the largest memory of the process so far, in MB. On Linux alone."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1000

    def _ask(self):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        while not self._is_over.wait(0.005):
            start = time.monotonic()
            connection.request("GET", self._health)
            connection.getresponse().read()
            self.latencies.append(time.monotonic() - start)
        connection.close()


if __name__ == "__main__":
    with ServingEngine(Double()) as engine:
        print(engine.serve(0).port, flush=True)
        sys.stdin.read()
