"""The launcher from outside: exit codes, output, restarts, signals, and what it leaves behind."""

import os
import signal
import sys
from pathlib import Path

import pytest

needs_pidfd = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has pidfd")

WAITS = """
    print("ready", os.getpid(), flush=True)
    signal.pause()
"""
WAITS_WITH_A_CHILD = """
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print(os.getpid(), child.pid, flush=True)
    signal.pause()
"""
IGNORES_SIGNALS = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", os.getpid(), flush=True)
    while True:
        signal.pause()
"""
ENDS_WELL = """
    def end(number, frame):
        print("checkpoint after", signal.Signals(number).name, flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)  # `pause` would miss a signal just before it.
"""
SAVES_SLOWLY = """
    def end(number, frame):
        print("saves", flush=True)
        open(sys.argv[1]).read()
        print("saved", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)  # `pause` would miss a signal just before it.
"""


def test_each_process_runs_the_script_with_its_place_and_its_arguments(launch):
    text = "print(rank, os.environ['WORLD_SIZE'], os.environ['LOCAL_RANK'], *sys.argv[1:])"
    launched = launch(text, "--nproc", "3", arguments=("--epochs", "3", "--", "-x"))
    code, out, error = launched.finish()
    assert (code, error) == (0, "")
    assert sorted(out.splitlines()) == [f"[{n}] {n} 3 {n} --epochs 3 -- -x" for n in range(3)]


def test_lines_of_several_processes_never_mix(launch):
    text = """
    for number in range(3000):
        os.write(1, f"{rank} {number} ".encode())  # In halves, of two writes.
        os.write(1, bytes([65 + rank]) * 300 + b"\\n")
    """
    code, out, _ = launch(text, "--nproc", "3").finish()
    assert code == 0
    lines = out.splitlines()
    assert sorted(lines) == sorted(
        f"[{rank}] {rank} {number} {chr(65 + rank) * 300}"
        for rank in range(3)
        for number in range(3000)
    )
    for rank in range(3):  # And each one's are in its order.
        rank_lines = [line for line in lines if line.startswith(f"[{rank}]")]
        assert [int(line.split()[2]) for line in rank_lines] == list(range(3000))


def test_output_without_a_newline_in_any_encoding_and_of_any_length_comes_through(launch):
    text = """
    os.write(1, b"\\xff\\xfe\\x00 latin \\xe9")
    os.write(2, b"x" * 300_000)
    """
    launched = launch(text, "--nproc", "1")
    out, error = launched.process.communicate(timeout=60)
    assert (launched.process.returncode, out) == (0, b"[0] \xff\xfe\x00 latin \xe9\n")
    first_line, _, error = error.partition(b"\n")
    assert first_line.startswith(b"keras-deepseek launch: 1 process on ")
    assert error.replace(b"[0] ", b"").replace(b"\n", b"") == b"x" * 300_000
    assert max(map(len, error.splitlines())) <= 70_000


def test_a_failure_ends_the_others_and_is_told(launch):
    text = """
    if rank == 1:
        print("what went wrong", file=sys.stderr)
        sys.exit(7)
    signal.pause()
    """
    code, _, error = launch(text, "--nproc", "3").finish()
    assert code == 7
    assert "rank 1 ended with exit code 7. Its last lines on stderr:\n    what went wrong" in error


def test_one_that_does_not_heed_another_s_failure_is_killed_after_the_grace_period(
    launch, tmp_path
):
    text = """
    if rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").close()  # Waits for rank 1 to read it.
        while True:
            signal.pause()
    open(sys.argv[1]).read()
    os.kill(os.getpid(), signal.SIGUSR1)
    """
    os.mkfifo(tmp_path / "fifo")
    options = ("--nproc", "2", "--grace-period", "0.1")
    code, _, error = launch(text, *options, arguments=(str(tmp_path / "fifo"),)).finish()
    assert code == 128 + signal.SIGUSR1
    assert "rank 1 ended by SIGUSR1, and wrote nothing to stderr" in error
    assert "killing rank 0, which did not end within 0.1 s" in error


def test_all_are_started_again_with_a_fresh_port_until_it_works(launch):
    text = """
    restart = os.environ["KERAS_DEEPSEEK_RESTART"]
    print(restart, os.environ["MASTER_PORT"], flush=True)
    sys.exit(3 if rank == 0 and restart != "2" else 0)
    """
    code, out, error = launch(text, "--nproc", "1", "--max-restarts", "4").finish()
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["0", "1", "2"]
    assert "restart 1 of 4" in error
    assert "restart 2 of 4" in error
    assert "restart 3 of 4" not in error


def test_after_the_last_restart_the_failure_stays(launch):
    code, out, error = launch(
        "print('again'); sys.exit(5)", "--nproc", "1", "--max-restarts", "1"
    ).finish()
    assert (code, out) == (5, "[0] again\n" * 2)
    assert error.count("rank 0 ended with exit code 5") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_waited_for(launch, number):
    launched = launch(ENDS_WELL, "--nproc", "2", "--max-restarts", "3")
    assert launched.read_lines(2) == ["[0] ready", "[1] ready"]
    launched.process.send_signal(number)
    code, out, error = launched.finish()
    assert (code, error) == (0, "")
    assert sorted(out.splitlines()) == [f"[{n}] checkpoint after {number.name}" for n in range(2)]


def test_a_terminal_that_is_closed_ends_them_by_sigterm(launch):
    launched = launch(ENDS_WELL, "--nproc", "1")
    launched.read_lines(1)
    launched.process.send_signal(signal.SIGHUP)
    assert launched.finish()[:2] == (0, "[0] checkpoint after SIGTERM\n")


def test_a_terminal_that_is_closed_may_say_so_twice(launch, tmp_path):
    os.mkfifo(tmp_path / "go_on")
    launched = launch(SAVES_SLOWLY, "--nproc", "1", arguments=(tmp_path / "go_on",))
    launched.read_lines(1)
    launched.process.send_signal(signal.SIGHUP)
    assert launched.read_lines(1) == ["[0] saves"]
    launched.process.send_signal(signal.SIGHUP)
    (tmp_path / "go_on").write_text("now")
    assert launched.finish()[:2] == (0, "[0] saved\n")


def test_who_dies_of_the_signal_is_not_started_again(launch):
    launched = launch(WAITS, "--nproc", "2", "--max-restarts", "3")
    launched.read_lines(2)
    launched.process.terminate()
    code, out, error = launched.finish()
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert "ended by SIGTERM" in error
    assert "restart" not in error


def test_a_second_signal_kills_at_once(launch):
    launched = launch(IGNORES_SIGNALS, "--nproc", "2", "--grace-period", "3600")
    launched.read_lines(2)
    launched.process.terminate()
    launched.process.send_signal(signal.SIGINT)
    assert launched.finish()[0] == 128 + signal.SIGKILL


def test_who_ignores_the_signal_is_killed_after_the_grace_period(launch):
    launched = launch(IGNORES_SIGNALS, "--nproc", "1", "--grace-period", "0.1")
    launched.read_lines(1)
    launched.process.terminate()
    code, _, error = launched.finish()
    assert code == 128 + signal.SIGKILL
    assert "killing rank 0, which did not end within 0.1 s" in error


@needs_pidfd
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_it_when_the_launcher_is_ended(launch, number):
    launched = launch(WAITS_WITH_A_CHILD, "--nproc", "2")
    pids = [int(word) for line in launched.read_lines(2) for word in line.split()[1:]]
    assert len(set(pids)) == 4
    launched.watch(pids)
    launched.process.send_signal(number)
    assert launched.all_have_ended()


@needs_pidfd
def test_what_a_process_leaves_behind_ends_with_it(launch):
    text = """
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    print(os.getpid(), child.pid, flush=True)
    signal.sigwait([signal.SIGUSR1])
    """
    launched = launch(text, "--nproc", "1")
    (line,) = launched.read_lines(1)
    pids = [int(word) for word in line.split()[1:]]
    launched.watch(pids)
    os.kill(pids[0], signal.SIGUSR1)
    assert launched.finish()[0] == 0
    assert launched.all_have_ended()


@needs_pidfd
def test_without_its_watchdog_the_processes_still_end_with_the_launcher(launch):
    launched = launch(WAITS, "--nproc", "2")
    pids = [int(line.split()[-1]) for line in launched.read_lines(2)]
    launched.watch(pids)
    launcher = launched.process.pid
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="ascii")
    (watchdog,) = {int(pid) for pid in children.split()} - set(pids)
    os.kill(watchdog, signal.SIGKILL)
    launched.process.kill()
    assert launched.all_have_ended()


def test_a_reader_that_goes_away_ends_no_training(launch):
    launched = launch(
        "print('line', flush=True)\nfor _ in range(100): print('x' * 5000, flush=True)",
        "--nproc",
        "1",
    )
    launched.read_lines(1)
    launched.process.stdout.close()
    launched.process.stdout = None
    assert launched.process.wait(timeout=60) == 0


def test_the_chief_of_a_parameter_server_is_started_alone(launch):
    text = "print(rank, os.environ['KERAS_DEEPSEEK_NUM_WORKERS'], flush=True)"
    options = ("--nproc", "4", "--strategy", "parameter_server", "--backend", "tensorflow")
    assert launch(text, *options).finish() == (0, "[0] 0 2\n", "")
