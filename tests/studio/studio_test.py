"""`launch_studio`: a server that lives as long as its parent."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from keras_deepseek.artifacts import RunRecord
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.studio import Studio, launch_studio
from keras_deepseek.studio.server import HEADER


class Recorded:
    """A trainer that records at once."""

    def __init__(self, rank=0):
        self.cluster = SimpleNamespace(rank=rank)

    def record_run(self, path=None):
        self.path = Path(path or "runs/digits.sqlite")
        with RunRecord(self.path) as record:
            record.log(1, {"loss": 0.5})
        return self.path


def poll(url):
    address, _, secret = url.partition("#")
    request = urllib.request.Request(f"{address}api/poll", b"{}", {HEADER: secret})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def test_a_training_is_recorded_and_shown_until_stop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer = Recorded()
    studio = launch_studio(trainer=trainer, port=0)
    assert studio.url in capsys.readouterr().out
    assert studio.folder == tmp_path / "runs"
    assert poll(studio.url)["order"] == [trainer.path.stem]
    studio.snapshot(tmp_path / "report.html")
    assert "<!doctype html>" in (tmp_path / "report.html").read_text()
    assert 'srcdoc="&lt;!doctype html&gt;' in studio._repr_html_()
    studio.stop()
    with pytest.raises(urllib.error.URLError):
        poll(studio.url)
    with pytest.raises(InvalidInputError, match="a path"):
        studio.snapshot("")


def test_a_cell_that_is_run_again_gets_the_same_page(tmp_path):
    trainer = Recorded()
    with launch_studio(trainer, port=0, path=tmp_path / "run.sqlite") as first:
        assert launch_studio(trainer, port=0, path=tmp_path / "other.sqlite") is first
        assert set(poll(first.url)["runs"]) == {"run", "other"}
    with launch_studio(trainer, port=0, path=tmp_path / "run.sqlite") as second:
        assert second is not first


def test_a_server_that_dies_is_started_again_at_the_same_address(tmp_path, monkeypatch):
    started = []

    class Process(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr("keras_deepseek.studio.studio._SECONDS_BEFORE_RESTART", 0)
    with Studio(tmp_path, port=0) as studio:
        assert poll(studio.url)["runs"] == {}
        started[0].kill()
        started[0].wait()
        for _ in range(200):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                assert poll(studio.url)["runs"] == {}
                break
            time.sleep(0.05)
        assert len(started) == 2
        assert poll(studio.url)["runs"] == {}
    assert started[1].returncode == 0


def test_other_ranks_start_nothing():
    assert launch_studio(trainer=Recorded(rank=1)) is None


def test_a_wrong_dashboard_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "a.json").write_text('{"titel": 1}')
    with pytest.raises(InvalidInputError, match="did you mean 'title'"):
        launch_studio(
            trainer=Recorded(), dashboard_config=tmp_path / "a.json", path=tmp_path / "run.sqlite"
        )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"trainer": "runs"}, r"`trainer` must be a `Trainer`.*RunRecorder"),
        ({"port": 70000}, "at most 65535, received 70000"),
        ({"allowed_hosts": "studio.example"}, "`allowed_hosts` must be a list of names"),
        ({"dashboard_config": {"title": "a"}}, "`dashboard_config` must be a path"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, expected):
    with pytest.raises(InvalidInputError, match=expected):
        launch_studio(**{"path": tmp_path, **arguments})


def test_the_server_ends_with_its_parent(tmp_path):
    code = (
        "import os, sys; from keras_deepseek.studio import Studio\n"
        "studio = Studio(sys.argv[1], port=0); print(studio.url, flush=True); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    # Its pipe has closed, which ends the server: nothing holds the output open.
    assert done.returncode == 9
    with pytest.raises(urllib.error.URLError):
        poll(done.stdout.strip())


def test_the_secret_is_in_no_argument(tmp_path):
    with Studio(tmp_path, port=0) as studio:
        secret = studio.url.partition("#")[2]
        assert len(secret) >= 32
        assert not any(secret in str(word) for word in studio._process.args)


def test_a_script_can_ask_for_the_findings(tmp_path):
    with RunRecord(tmp_path / "lost.sqlite") as record:
        record.log_steps([(step, {"loss": float("nan") if step else 0.5}) for step in range(20)])
    (tmp_path / "broken.sqlite").write_text("no record")
    with Studio(tmp_path, port=0) as studio:
        findings = studio.findings()
    assert [finding["name"] for finding in findings["lost"] if finding["level"] == "bad"] == [
        "not_finite"
    ]
    assert list(findings) == ["lost"]
