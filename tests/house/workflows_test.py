"""The workflows run environments that tox has, and no action of a stranger."""

import configparser
import re

import yaml


def read_workflows(root):
    paths = sorted((root / ".github/workflows").glob("*.yml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def find_environments(job):
    """Returns the environments of tox that a job runs, those of a matrix included."""
    runs = "\n".join(step.get("run", "") for step in job["steps"])
    named = re.findall(r"tox run -e (.+?)(?: -- .+)?$", runs, re.MULTILINE)
    matrix = job.get("strategy", {}).get("matrix", {}).get("environment", [])
    return [
        environment
        for name in named
        for environment in (matrix if "matrix.environment" in name else [name])
    ]


def read_tox(root):
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(root / "tox.ini", encoding="utf-8")
    return tox


def test_each_workflow_runs_environments_that_tox_has(root):
    tox = read_tox(root)
    for name, workflow in read_workflows(root).items():
        environments = [
            environment
            for job in workflow["jobs"].values()
            for environment in find_environments(job)
        ]
        unknown = [
            environment
            for environment in environments
            if not tox.has_section(f"testenv:{environment}")
        ]
        assert environments, name
        assert unknown == [], name


def test_the_nightly_workflow_runs_what_tox_runs_nightly(root):
    alone = read_tox(root)["testenv:nightly"]["commands"].removeprefix("tox run -e ").split(",")
    assert find_environments(read_workflows(root)["nightly"]["jobs"]["tests"]) == alone


def test_each_action_is_github_s_own(root):
    jobs = [job for workflow in read_workflows(root).values() for job in workflow["jobs"].values()]
    actions = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert [action for action in actions if not action.startswith("actions/")] == []
