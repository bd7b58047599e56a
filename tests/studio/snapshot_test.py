"""The report: one file that needs nothing else."""

import base64
import hashlib
import json
import re

from keras_deepseek.studio.dashboard import Dashboard
from keras_deepseek.studio.snapshot import make_report
from keras_deepseek.studio.store import Store
from tests.oracles.run_records import InventedRun


def digest(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def test_the_report_holds_the_runs_and_loads_nothing(runs):
    page = make_report(Store(runs), Dashboard(title="Mine & yours"))
    assert "<title>Mine &amp; yours</title>" in page
    data = json.loads(re.search(r'<script id="report"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert data["order"] == ["healthy", "group/killed"]
    assert len(data["series"]["healthy\nstep_loss"]["x"]) > 100
    assert data["findings"]["group/killed"][0]["name"] == "died"
    assert "healthy\nmodel_graph" in data["documents"]
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert str(runs) not in page


def test_its_policy_allows_its_own_scripts_alone(runs):
    page = make_report(Store(runs), Dashboard())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert f"script-src '{digest(script)}'" in policy
    assert f"style-src '{digest(style)}'" in policy
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)


def test_markup_in_names_stays_text(tmp_path):
    run = InventedRun(tmp_path / "a.sqlite")
    run.log("</script><script>alert(1)//", [1], [1.0], [0.0])
    page = make_report(Store(tmp_path), Dashboard())
    assert "<script>alert" not in page
    assert "\\u003c/script>\\u003cscript>alert" in page
