import os
import subprocess
import sys
import time

from keras_deepseek.training.launch import output
from keras_deepseek.training.launch.output import Output


def test_each_goes_where_it_belongs(capfdbinary):
    both = Output()
    both.write_out(b"out \xff\n")
    both.write_error(b"error\n")
    both.say("restart 1 of 2.")
    captured = capfdbinary.readouterr()
    assert captured.out == b"out \xff\n"
    assert captured.err == b"error\nkeras-deepseek launch: restart 1 of 2.\n"


def test_what_can_not_be_written_is_dropped():
    code = (
        "import runpy, sys\n"
        f"Output = runpy.run_path({output.__file__!r})['Output']\n"
        "sys.stdin.read()\n"
        "for _ in range(3): Output().write_out(b'x' * 1_000_000)\n"
        "Output().say('still here')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONWARNINGS": "default"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdout = None
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, b"keras-deepseek launch: still here\n")


def test_all_is_written_where_python_has_no_buffer_and_a_signal_comes_in_between():
    code = (
        "import runpy, signal, sys, threading, time, os\n"
        "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
        f"Output = runpy.run_path({output.__file__!r})['Output']\n"
        "def interrupt():\n"
        "    for _ in range(20):\n"
        "        time.sleep(0.05)\n"
        "        os.kill(os.getpid(), signal.SIGCHLD)\n"
        "threading.Thread(target=interrupt, daemon=True).start()\n"
        "Output().write_out(b'x' * 300_000)\n"
    )
    with subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE) as process:
        time.sleep(0.5)  # While the pipe is full.
        assert process.stdout.read() == b"x" * 300_000
