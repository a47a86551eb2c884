"""Tests of this folder run on the simulated NPU, each file in a process of its own: torch keeps a device for good.

The process of an ordinary pytest collects them, has such a process run them, and reports what it reports.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.tests.folders import ROOT

SIMULATION = ROOT / "ci" / "simulated_npu"
REPORTS = "SIMULATED_NPU_REPORTS"  # set in the processes that have the device: the file for their reports
HERE = Path(__file__).parent
_reports: dict[Path, dict[str, list]] = {}  # file of tests -> name of a test -> its reports


def simulated_environment() -> dict[str, str]:
    """The environment of a process that has the device: torch finds the plugin on PYTHONPATH."""
    paths = [str(SIMULATION), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch.utils.backend_registration as registration

    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="this torch cannot define a device in Python"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report a test of this folder as the other process does."""
    if REPORTS in os.environ or HERE not in item.path.parents or list(item.iter_markers("skip")):
        return None
    if item.path not in _reports:
        names = [each.nodeid for each in item.session.items if each.path == item.path]
        _reports[item.path] = _run(names, item.config)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports[item.path].get(item.nodeid, []):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run(names: list[str], config: pytest.Config) -> dict[str, list]:
    """Run these tests in a process with the device; name -> its reports, a failure for each that gave none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reports"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *names],
            cwd=ROOT, env={**simulated_environment(), REPORTS: str(file)}, capture_output=True, text=True,
        )  # fmt: skip
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    reports: dict[str, list] = {name: [] for name in names}
    for data in map(json.loads, lines):
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        if isinstance(report.longrepr, list):  # of a skipped test, which pytest wants back as it was
            report.longrepr = tuple(report.longrepr)
        reports[data["nodeid"]].append(report)
    for name in names:
        if not any(report.when == "teardown" for report in reports[name]):
            text = f"the process of this test ended with {done.returncode}\n{done.stdout[-8000:]}{done.stderr[-8000:]}"
            reports[name].append(pytest.TestReport(name, (name, 0, name), {}, "failed", text, "call"))
    return reports


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if path := os.environ.get(REPORTS):
        data = _config.hook.pytest_report_to_serializable(config=_config, report=report)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    global _config
    _config = config


@pytest.fixture(scope="session")
def npu():
    """The module torch.npu of the simulated device."""
    import torch
    import torch_npu  # noqa: F401  makes the device

    return torch.npu


@pytest.fixture
def counters(npu) -> Iterator:
    """What the programs of the test do, counted from now on."""
    from npu_simulation.counters import COUNTERS

    COUNTERS.reset()
    yield COUNTERS
    COUNTERS.reset()
