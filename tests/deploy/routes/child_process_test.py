import json
import os
import sys

import keras
import numpy as np
import pytest

from keras_deepseek.deploy.routes.child import save_batches
from keras_deepseek.deploy.routes.child_process import ChildProcess
from keras_deepseek.errors import ExportError

BACKEND = keras.backend.backend()


class Noting:
    """A format that notes which process wrote it."""

    name, suffix, entry = "noting", ".txt", "process.txt"

    def write(self, model, folder):
        import os

        print("a line without an end", end="", flush=True)
        (folder / self.entry).write_text(str(os.getpid()))
        return "by hand"

    def run(self, folder, samples):
        return [{} for _ in samples]


class Ending(Noting):
    def write(self, model, folder):
        import os
        import sys

        sys.stderr.write("It ends here.")
        sys.stderr.flush()
        os._exit(3)


@pytest.fixture
def child():
    process = ChildProcess(BACKEND)
    yield process
    process.close()


@pytest.fixture
def make_job(tmp_path):
    """A function that fills a folder with a job, and returns it."""
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    def make(name, kind=Noting, sources=()):
        work = tmp_path / name
        (work / "artifact").mkdir(parents=True)
        model.save(work / "model.keras")
        save_batches(work / "samples.npz", [{"input_0": np.ones((1, 2), "float32")}])
        (work / "format.pickle").write_bytes(cloudpickle.dumps(kind()))
        job = {
            "format": "noting",
            "options": {},
            "precision": None,
            "is_written": False,
            "folder": str(work / "artifact"),
            "custom_objects_from": [*map(str, sources)],
        }
        (work / "job.json").write_text(json.dumps(job))
        return work

    yield make
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def run(child, work):
    stages = []
    child.run(work, stages.append)
    result = json.loads((work / "result.json").read_text())
    assert "error" not in result, result["error"]
    assert stages == ["writing", "running it on 1 batches"]
    return int((work / "artifact" / "process.txt").read_text())


@pytest.mark.nightly
def test_jobs_share_a_process_until_a_source_was_changed(child, make_job, tmp_path):
    source = tmp_path / "own_layers.py"
    source.write_text("FACTOR = 1\n")
    first = run(child, make_job("first"))
    assert run(child, make_job("second", sources=[source])) == first != os.getpid()
    assert run(child, make_job("third", sources=[source])) == first
    os.utime(source, ns=(0, 0))
    assert run(child, make_job("fourth", sources=[source])) != first


def test_one_that_has_ended_in_a_job_or_between_two_is_started_again(child, make_job):
    with pytest.raises(ExportError, match=r"ended with code 3: It ends here\."):
        child.run(make_job("first", Ending), print)
    second = run(child, make_job("second"))
    child._process.kill()
    child._process.wait()
    assert run(child, make_job("third")) != second
