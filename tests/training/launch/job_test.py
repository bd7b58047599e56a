import signal

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.launch import job as job_module
from keras_deepseek.training.launch.job import Job, SignalRelay
from keras_deepseek.training.launch.output import Output
from keras_deepseek.training.launch.plan import LaunchPlan
from keras_deepseek.training.launch.rank_process import RankProcess
from keras_deepseek.training.launch.watchdog import Watchdog


@pytest.fixture
def make_job(tmp_path):
    def make(text, nproc, **options):
        script = tmp_path / "script.py"
        script.write_text(f"import os, signal, sys\nrank = int(os.environ['RANK'])\n{text}")
        return Job(LaunchPlan(str(script), nproc, "torch", **options), 0, Output(), dog)

    with Watchdog() as dog:
        yield make


def run(job):
    with SignalRelay(lambda number, is_first: job.end(number)) as relay:
        return job.run(relay)


def test_where_all_end_well_there_is_no_failure(make_job, capfd):
    job = make_job("print(rank)", 2)
    assert run(job) is None
    assert not job.was_cut_short
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] 0", "[1] 1"]


def test_the_first_failure_is_the_one_that_counts(make_job, capfd):
    job = make_job("sys.exit('no') if rank == 1 else signal.pause()", 2)
    failure = run(job)
    assert (failure.rank, failure.status, failure.last_errors) == (1, 1, ["no"])
    assert "rank 1 ended with exit code 1" in capfd.readouterr().err


def test_a_signal_before_the_first_start_starts_none(make_job):
    job = make_job("print('here')", 2)
    job.end(signal.SIGTERM)
    assert run(job) is None
    assert job.was_cut_short


def test_a_signal_between_two_starts_ends_those_that_were_started(make_job, monkeypatch, capfd):
    started = []

    def start(*arguments):
        signal.raise_signal(signal.SIGTERM)  # While the process is not on the list yet.
        started.append(RankProcess(*arguments))
        return started[-1]

    monkeypatch.setattr(job_module, "RankProcess", start)
    job = make_job("signal.pause()", 2)
    failure = run(job)
    assert (failure.rank, failure.status) == (0, -signal.SIGTERM)
    assert len(started) == 1
    assert job.was_cut_short


def test_where_one_can_not_be_started_those_before_it_end(make_job, monkeypatch, capfd):
    started = []

    def start(*arguments):
        if started:
            raise InvalidInputError("no more")
        started.append(RankProcess(*arguments))
        return started[-1]

    monkeypatch.setattr(job_module, "RankProcess", start)
    with pytest.raises(InvalidInputError, match="no more"):
        run(make_job("signal.pause()", 2))
    assert started[0]._process.returncode == -signal.SIGKILL
