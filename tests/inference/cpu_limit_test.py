import os

import pytest

from keras_deepseek.inference.process_limits import find_cpu_limit


@pytest.fixture
def limit(monkeypatch, tmp_path):
    """Returns the limit of a process on 8 CPUs with these cgroups and files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def find(memberships, **files):
        (tmp_path / "self").write_text(memberships)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("_of_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return find_cpu_limit(tmp_path / "cgroup", tmp_path / "self")

    return find


def test_without_a_quota_it_is_the_affinity(limit, tmp_path):
    assert limit("0::/\n", cpu_of_max="max 100000\n") == 8
    assert find_cpu_limit(tmp_path, tmp_path / "missing") == 8


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000", 2), ("150000", 2), ("10000", 1), ("9900000", 8)]
)
def test_the_quota_of_version_2_is_rounded_up(limit, quota, expected):
    assert limit("0::/\n", cpu_of_max=f"{quota} 100000\n") == expected


def test_the_smallest_quota_of_the_groups_around_holds(limit):
    files = {"a__b__cpu_of_max": "max 100000", "a__cpu_of_max": "300000 100000"}
    assert limit("0::/a/b\n", cpu_of_max="500000 100000", **files) == 3


def test_a_path_of_the_host_that_the_container_does_not_see_leads_to_the_root(limit):
    assert limit("0::/kubepods/pod1\n", cpu_of_max="400000 100000") == 4


def test_the_quota_of_version_1_is_read(limit):
    text = "5:memory:/a\n4:cpu,cpuacct:/a\n"
    files = {"cpu__a__cpu_of_cfs_quota_us": "250000", "cpu__a__cpu_of_cfs_period_us": "100000"}
    assert limit(text, **files) == 3
    assert limit(text, **{**files, "cpu__a__cpu_of_cfs_quota_us": "-1"}) == 8
