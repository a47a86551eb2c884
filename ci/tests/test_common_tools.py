"""Commands of common/tools."""

import ast
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests.folders import ROOT
from ci.tests.runs import as_if_started
from common.tools.__main__ import commands
from common.tools.complexity import complexity, main


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


def test_the_command_lists_what_it_is_asked_for(capsys):
    done = as_if_started(ROOT / "common" / "tools" / "complexity.py", "ICNet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["ICNet", "26,249,376"]
    with pytest.raises(SystemExit) as end:
        main(["NoNet"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "no model NoNet" in said


# ---- how they are started


def first_statements(path: Path) -> str:
    """Those of a script up to the one that makes the root importable."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body[1:]  # without the docstring
    last = next(index for index, node in enumerate(statements) if isinstance(node, ast.If))
    return "\n".join(map(ast.unparse, statements[: last + 1]))


@pytest.mark.parametrize("name", commands())
def test_commands_begin_as_a_train_py_does(name):
    ours, theirs = (first_statements(ROOT / path) for path in (f"common/tools/{name}.py", "ICNet/train.py"))
    assert "sys.path.insert" in ours and ours.replace("parents[2]", "parents[1]") == theirs


# Starts scripts one after the other, each with its own folder on the import path. torch is imported for all of them.
STARTER = """
import os, runpy, sys
import torch
for script in sys.argv[1:]:
    if not os.fork():
        sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(os.path.abspath(script))
        runpy.run_path(script, run_name="__main__")
    assert os.wait()[1] == 0, script
"""


def test_commands_start_in_a_folder_too():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", STARTER, *(f"../common/tools/{name}.py" for name in commands())]
    done = subprocess.run(command, cwd=ROOT / "ICNet", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("usage: ") for line in done.stdout.splitlines()) == len(commands()) > 5, done.stdout


def test_no_file_here_hides_a_module_of_that_name():
    """The folder of a script comes before the packages on the import path."""
    names = {path.stem for path in (ROOT / "common" / "tools").glob("[!_]*.py")}
    assert not names & (sys.stdlib_module_names | packages_distributions().keys())


def test_the_commands_are_listed_without_importing_them():
    code = (
        "import runpy, sys\n"
        "runpy.run_module('common.tools', run_name='__main__')\n"
        "assert not {'torch', 'numpy', 'PIL', 'common.args'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    names = ["benchmark", "cache", "check", "checkpoint", "compare", "complexity", "doctor", "report", "runs"]
    assert [line.split()[0] for line in lines] == names == list(commands())
    assert all(len(line.split(maxsplit=1)[1]) > 20 and len(line) < 120 for line in lines)
