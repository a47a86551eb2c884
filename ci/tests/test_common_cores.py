"""common/device/cores.py: what a container may use."""

import os

import pytest

from common.device import cores


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """A machine of 16 cores with these files of the system: limits({name: text})."""

    def make(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)

    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    return make


V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("files", "quota", "usable"),
    [
        ({}, None, 16),
        ({"cpu.max": "max 100000\n"}, None, 16),
        ({"cpu.max": "400000 100000\n"}, 4.0, 4),
        ({"cpu.max": "150000 100000\n"}, 1.5, 2),
        ({"cpu.max": "6400000 100000\n"}, 64.0, 16),
        (dict(zip(V1, ("-1\n", "100000\n"), strict=True)), None, 16),
        (dict(zip(V1, ("300000\n", "100000\n"), strict=True)), 3.0, 3),
    ],
)
def test_a_container_may_have_less_time_than_cores(limits, files, quota, usable):
    limits(files)
    assert (cores.cpu_quota(), cores.cpu_cores()) == (quota, usable)
