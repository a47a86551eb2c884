"""Commands of common/tools."""

import subprocess
import sys

import torch
from torch import nn

from ci.tests.folders import ROOT
from common.tools.complexity import complexity


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, stride=2), nn.BatchNorm2d(width), nn.Conv2d(width, 5, 1))


def test_operations_and_parameters_by_hand():
    parameters, operations = complexity(network, {"width": 4}, (8, 6))
    assert parameters == 4 * 27 + 4 + 2 * 4 + 5 * 4 + 5
    assert operations == 2 * (4 * 27 + 5 * 4) * (4 * 3)


def test_complexity_of_a_network_takes_no_memory():
    with torch.device("cpu"):
        parameters, _ = complexity(lambda: nn.Conv2d(3, 10**9, 1, bias=False), {}, (4, 4))
    assert parameters == 3 * 10**9  # 12 GB


def test_the_command_lists_what_it_is_asked_for():
    command = [sys.executable, "-m", "common.tools.complexity"]
    done = subprocess.run([*command, "ICNet"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["ICNet", "26,249,376"]
    wrong = subprocess.run([*command, "NoNet"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "no model NoNet" in wrong.stderr
