import os
import signal
import subprocess
import sys

from keras_deepseek.training.launch import die_with_parent


def run(parent, *command):
    guard = [sys.executable, "-I", "-S", die_with_parent.__file__, str(parent)]
    return subprocess.run([*guard, *command], capture_output=True, text=True, check=False)


def test_it_becomes_the_program():
    code = "import os, sys; print(os.getppid(), sys.argv[1:]); sys.exit(3)"
    done = run(os.getpid(), sys.executable, "-c", code, "a b", "--")
    assert done.returncode == 3
    assert done.stdout == f"{os.getpid()} ['a b', '--']\n"
    assert done.stderr == ""


def test_the_program_gets_ctrl_c_as_ever():
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert run(os.getpid(), sys.executable, "-c", code).stdout == "True\n"


def test_it_does_not_outlive_a_parent_that_died_before():
    done = run(os.getppid(), sys.executable, "-c", "print('alive')")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
