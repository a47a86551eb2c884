"""common/profile.py: which step is profiled, and what is left of it."""

import json

import pytest
import torch

from ci.tests.common_workers import world
from common.profile import profiled


@pytest.mark.parametrize("prof, prof_test, steps", [(True, False, 21), (False, True, 6), (True, True, 21)])
def test_one_step_is_profiled_after_so_many_and_ends_the_run(tmp_path, capsys, prof, prof_test, steps):
    seen = []
    for item in profiled(range(100), prof, prof_test, tmp_path, world()):
        seen.append(item)
        torch.ones(3, 4) @ torch.ones(4, 5 + item)
    assert seen == list(range(steps))
    events = json.loads((tmp_path / "output.prof").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::matmul" for event in events) == 1
    output = capsys.readouterr().out
    assert "aten::mm" in output and str(tmp_path / "output.prof") in output


def test_without_a_profile_every_item_passes(tmp_path):
    assert list(profiled(range(30), False, False, tmp_path, world())) == list(range(30))
    assert list(tmp_path.iterdir()) == []


def test_other_processes_take_part_and_write_nothing(tmp_path, capsys):
    assert list(profiled(range(30), False, True, tmp_path, world(1, 2))) == list(range(6))
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
