"""common/record/bad_step.py: what a training that ends for bad numbers leaves to look at, and what that costs."""

import contextlib
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ci.tests import small_folder
from ci.tests.runs import in_two_processes
from ci.tests.small_folder import arguments, build
from common.data.order import StepRange, StepSampler
from common.device.world import World
from common.errors import Diverged
from common.record.bad_step import Recent
from common.run import Run

BAD_STEP = 5  # counted from 1


def begun(output_dir: Path, processes: int = 1, **flags) -> tuple:
    """(run, data, network), trained as `main` of the folder in small begins to."""
    run = Run(arguments(output_dir, validate=0, **flags), small_folder, processes)
    data, model = run.build(build)
    run.join()
    run.prepare(model)
    run.optimizer(model.parameters())
    return run, data, model


def train_badly(output_dir: Path, processes: int = 1, bad_rank: int = 0, **flags) -> list[list[float]]:
    """A run whose main logits hold an inf in one step of one process; least and largest logit of each output before."""
    run, data, _ = begun(output_dir, processes, **flags)
    seen = []
    for step, images, target in run.steps(data.train):
        if step + 1 == BAD_STEP and run.world.rank == bad_rank:
            images[0, 0, 0, 0] = math.inf
        with run.autocast():
            outputs = run.network(images)
            seen.append([[output.min().item(), output.max().item()] for output in outputs])
            losses = small_folder.training_loss(outputs, target)
        run.step(losses)
    return seen


@pytest.mark.parametrize("flags, scale", [({}, 1.0), ({"amp": 1, "amp_dtype": "fp16"}, 1024.0)])
def test_a_loss_that_is_not_finite_leaves_the_steps_since_the_last_line(tmp_path, flags, scale):
    run_dir = tmp_path / "run"
    with pytest.raises(Diverged, match=rf"at step {BAD_STEP} of 8; .*; {run_dir}/bad_step.json tells of") as error:
        train_badly(run_dir, log_every_steps=6, epochs=2, seed=7, **flags)
    told = json.loads((run_dir / "bad_step.json").read_text())
    assert (told["step"], told["not_finite"], told["process"]) == (BAD_STEP, ["main", "aux0"], 0)
    assert str(error.value).startswith(told["reason"]) and str(error.value) in (run_dir / "train.log").read_text()
    # the warm-up of images/s ends with a line after step 4; the next line is due after step 6
    assert [step["step"] for step in told["steps"]] == [5, 6]
    bad, after = told["steps"]
    assert bad["loss"] == "nan" and bad["terms"]["main"] == "nan" and bad["lr"] == [0.1]
    assert all(word == "nan" for pair in bad["logits"] for word in pair) and len(bad["logits"]) == 2
    # a dynamic scale is halved after the step that overflows, and recorded as the step had it
    assert bad["loss_scale"] == scale and after["loss_scale"] == (scale / 2 if scale > 1 else 1.0)
    assert told["skipped_steps"] >= 1
    for step in told["steps"]:
        (keys,) = StepSampler(8, StepRange(2, 7, step["step"] - 1, step["step"]), World(torch.device("cpu")))
        assert step["samples"] == [f"noise_{index}" for _, index in keys]


def test_ranges_are_those_of_each_step_and_output_and_none_of_an_evaluation(tmp_path):
    run, data, model = begun(tmp_path / "run", log_every_steps=100)
    seen = []
    for step, images, target in run.steps(data.train):
        outputs = run.network(images)
        seen.append([[output.min().item(), output.max().item()] for output in outputs])
        losses = small_folder.training_loss(outputs, target)
        model.eval()
        model(torch.full_like(images, 1e6))  # as an evaluation between
        model.train()
        if step == 6:
            losses["aux0"] = losses["aux0"] * math.nan
        with contextlib.suppress(Diverged):
            run.step(losses)
        if step == 7:
            break
    told = json.loads((tmp_path / "run" / "bad_step.json").read_text())
    assert [step["logits"] for step in told["steps"]] == seen[4:] and told["not_finite"] == ["aux0"]
    assert told["steps"][2]["terms"] == {"main": pytest.approx(1, abs=1), "aux0": "nan"}


class Calls(TorchDispatchMode):
    """How often each operator is called."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names[operator.name()] += 1
        return operator(*args, **(kwargs or {}))


def test_a_good_step_costs_two_reductions_for_each_output(tmp_path, monkeypatch):
    """With a dynamic scale one copy more; and what is detached is no kernel."""
    calls = {}
    for watched in (True, False):
        if not watched:
            monkeypatch.setattr(Recent, "watch", lambda *_: None)
        run, data, _ = begun(tmp_path / str(watched), log_every_steps=100, amp=1)
        for step, images, target in run.steps(data.train):
            with Calls() if step == 5 else contextlib.nullcontext() as counted, run.autocast():
                run.step(small_folder.training_loss(run.network(images), target))
            calls[watched] = counted.names if counted else calls.get(watched)
    more = calls[True] - calls[False]
    more.pop("aten::detach", None)
    assert more == {"aten::amin": 2, "aten::amax": 2, "aten::clone": 1} and not calls[False] - calls[True]


def as_one_of_two(output_dir: Path) -> None:
    with pytest.raises(Diverged) as error:
        train_badly(output_dir, 2, bad_rank=1, device_batch_size=1, log_every_steps=6)
    print(error.value)
    os._exit(0)


def test_each_process_tells_of_what_it_has_seen(tmp_path):
    in_two_processes(tmp_path, as_one_of_two, tmp_path / "run")
    assert "bad_step.json, and bad_step-RANK.json of each process that saw it," in (tmp_path / "said_by_0").read_text()
    told = {rank: json.loads((tmp_path / "run" / f"bad_step{rank}.json").read_text()) for rank in ("", "-1")}
    main, other = (next(step for step in told[rank]["steps"] if step["step"] == BAD_STEP) for rank in ("", "-1"))
    assert isinstance(main["loss"], float) and other["loss"] == "nan"
    assert len(main["samples"]) == len(other["samples"]) == 1 and main["samples"] != other["samples"]


def test_a_full_disk_does_not_hide_why_the_run_ended(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("common.record.bad_step.write_json", full)
    with pytest.raises(Diverged, match=r"at step 5 of 8; .*; bad_step.json cannot be written \(No space left"):
        train_badly(tmp_path / "run")
