"""The command `keras-deepseek studio`."""

import re
import signal
import subprocess
import sys
import urllib.request

from keras_deepseek.cli import main


def test_a_missing_folder_is_refused(tmp_path, capsys):
    assert main(["studio", str(tmp_path / "none")]) == 2
    assert "No folder" in capsys.readouterr().err


def test_a_report_is_written(runs, tmp_path):
    report = tmp_path / "new" / "a.html"
    assert main(["studio", str(runs), "--report", str(report)]) == 0
    assert "step_loss" in report.read_text()


def test_a_report_that_cannot_be_written_is_explained(runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["studio", str(runs), "--report", str(tmp_path / "file" / "a.html")]) == 2
    assert "can't be written" in capsys.readouterr().err


def test_it_serves_until_ctrl_c_and_never_loads_keras(runs):
    command = [sys.executable, "-X", "importtime", "-m", "keras_deepseek", "studio", str(runs)]
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        url = re.fullmatch(r"Studio: (http://127\.0\.0\.1:\d+/)#\S+\n", line)[1]
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"app.js" in answer.read()
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "keras_deepseek.studio.server" in log
    assert not re.search(r"\| +keras$", log, re.MULTILINE)
