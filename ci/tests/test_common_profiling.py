"""common/record/profiling.py: which steps are profiled, and what is left of them."""

import json
import re
import time
from argparse import Namespace

import pytest
import torch
from torch import nn

from ci.tests.common_workers import world
from common.record import profiling as profile
from common.record.profiling import profiled


def profiled_items(stream, output_dir, prof=False, prof_test=True, prof_steps=1, at=None):
    """The items of a run with these flags."""
    args = Namespace(prof=prof, prof_test=prof_test, prof_steps=prof_steps, output_dir=output_dir)
    return profiled(stream, args, at or world())


@pytest.mark.parametrize("prof, prof_test, steps", [(True, False, 21), (False, True, 6), (True, True, 21)])
def test_one_step_is_profiled_after_so_many_and_ends_the_run(tmp_path, capsys, prof, prof_test, steps):
    seen = []
    for item in profiled_items(range(100), tmp_path, prof, prof_test):
        seen.append(item)
        torch.ones(3, 4) @ torch.ones(4, 5 + item)
    assert seen == list(range(steps))
    events = json.loads((tmp_path / "output.prof").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::matmul" for event in events) == 1
    output = capsys.readouterr().out
    assert "aten::mm" in output and str(tmp_path / "output.prof") in output


@pytest.mark.parametrize("prof_steps, length, expected", [(3, 100, 3), (7, 8, 3)])
def test_as_many_steps_are_profiled_as_are_asked_for_and_there(tmp_path, capsys, prof_steps, length, expected):
    for _ in profiled_items(range(length), tmp_path, prof_steps=prof_steps):
        torch.ones(3, 4) @ torch.ones(4, 5)
    events = json.loads((tmp_path / "output.prof").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::matmul" for event in events) == expected
    assert f"profile of {expected} steps: " in capsys.readouterr().out


def test_the_start_of_the_profiler_is_no_part_of_a_step(tmp_path, capsys, monkeypatch):
    """That of a GPU takes a second or more."""
    seconds = iter(range(1000))  # the clock shows one more whenever it is looked at
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(seconds))
    made = profile._profiler(world(), 1)

    class LateProfiler:
        def __enter__(self):
            for _ in range(500):
                next(seconds)
            return made.__enter__()

        def __exit__(self, *error):
            return made.__exit__(*error)

    monkeypatch.setattr(profile, "_profiler", lambda world, steps: LateProfiler())
    for _ in profiled_items(range(100), tmp_path):
        torch.ones(3, 4) @ torch.ones(4, 5)
    milliseconds = float(re.search(r"1 step in ([\d.]+) ms", capsys.readouterr().out)[1])
    assert 0 < milliseconds < 10_000


def test_the_shares_of_a_step_add_up(tmp_path, capsys):
    """A step whose parts take a known time at least: together they are all of it, so none counts another's."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            time.sleep(0.04)
            return values * 2

        @staticmethod
        def backward(ctx, gradient):
            time.sleep(0.08)
            return gradient * 2

    class SlowSGD(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.02)

    def stream():
        for step in range(6):
            time.sleep(0.06 if step == 5 else 0)
            yield step

    parameter = nn.Parameter(torch.ones(3))
    optimizer = SlowSGD([parameter], lr=0.1)
    for _ in profiled_items(stream(), tmp_path):
        Slow.apply(parameter).sum().backward()
        optimizer.step()
    output = capsys.readouterr().out
    shares = {
        name: int(re.search(pattern, output)[1])
        for name, pattern in {
            "waiting": r"(\d+)% of them waiting for data",
            "forward": r"forward and the rest (\d+)%",
            "backward": r"backward (\d+)%",
            "optimizer": r"optimizer (\d+)%",
        }.items()
    }
    assert 98 <= sum(shares.values()) <= 102, output
    milliseconds = float(re.search(r"1 step in ([\d.]+) ms", output)[1])
    for name, expected in {"waiting": 60, "forward": 40, "backward": 80, "optimizer": 20}.items():
        assert shares[name] * milliseconds / 100 > expected - 0.005 * milliseconds, (name, output)
    own_times = {line.split(None, 4)[4]: float(line.split()[0]) for line in output.splitlines()[2:-1]}
    assert own_times["SlowBackward"] >= 80 and list(own_times.values()) == sorted(own_times.values(), reverse=True)


def test_a_profile_of_an_earlier_part_of_the_run_is_not_taken_for_a_new_one(tmp_path, capsys, monkeypatch):
    """A profiler may fail without an error."""
    (tmp_path / "output.prof").write_text("of yesterday")
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", lambda profiler, path: None)
    for _ in profiled_items(range(100), tmp_path):
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert list(tmp_path.iterdir()) == []
    output = capsys.readouterr().out
    assert "no profile was written" in output and "profile of" not in output


def test_a_run_that_ends_before_says_so(tmp_path, capsys):
    assert list(profiled_items(range(5), tmp_path)) == list(range(5))
    assert "nothing was profiled: the run ended after 5 steps or less" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_a_profile_every_item_passes(tmp_path):
    assert list(profiled_items(range(30), tmp_path, prof_test=False)) == list(range(30))
    assert list(tmp_path.iterdir()) == []


def test_other_processes_take_part_and_write_nothing(tmp_path, capsys):
    assert list(profiled_items(range(30), tmp_path, prof_steps=2, at=world(1, 2))) == list(range(7))
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
