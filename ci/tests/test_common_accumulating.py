"""--accumulate: a step of several parts is the step of one large batch, and a run of them like any other."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests import small_folder
from ci.tests.common_workers import Keyed, world
from ci.tests.runs import assert_same_state, flat, in_two_processes, last_checkpoint, metric_rows
from ci.tests.small_folder import IMAGE_SIZE, Network, arguments, build, main
from ci.tests.test_common_bad_step import train_badly
from common.data.loading import batches
from common.data.order import StepRange, StepSampler
from common.errors import Diverged, InputError
from common.run import Run
from common.start import carry_out
from common.step.amp import Amp

PARTS = {"device_batch_size": 1, "accumulate": 2}  # of the step of two images that the folder in small has


@pytest.fixture
def without_norm(monkeypatch):
    """Whose statistics would be those of a part."""
    monkeypatch.setattr("ci.tests.small_folder.nn.BatchNorm2d", lambda channels: nn.Identity())


def train(output_dir: Path, **flags) -> dict:
    """Its last checkpoint."""
    carry_out(main, build, arguments(output_dir, **flags), small_folder)
    return last_checkpoint(output_dir)


def assert_close(ours: dict, theirs: dict, tolerance: float = 1e-6) -> None:
    """Weights and momentum."""
    for part in ("model", "optimizer"):
        for name, value in flat(ours[part]).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, flat(theirs[part])[name], rtol=0, atol=tolerance, msg=name)


def test_the_parts_of_each_process_are_its_block_of_the_large_batch():
    def keys(batch: int, parts: int, rank: int) -> list:
        return list(StepSampler(26, StepRange(batch, 3, 1, 6, parts), world(rank, 2)))

    for rank in range(2):
        parts = keys(2, 3, rank)
        assert len(parts) == 15 == len(StepSampler(26, StepRange(2, 3, 1, 6, 3), world(rank, 2)))
        assert [sum(parts[at : at + 3], []) for at in range(0, 15, 3)] == keys(6, 1, rank)


def test_parts_have_the_number_of_their_step_and_noise_of_their_own():
    def drawn(first: int, parts: int) -> list:
        stream = batches(Keyed(8), StepRange(2, 4, first, 2, parts), world(), 0)
        return [(step, torch.rand(2).tolist()) for step, *_ in stream]

    whole = drawn(0, 2)
    assert [step for step, _ in whole] == [0, 0, 1, 1] and len({tuple(noise) for _, noise in whole}) == 4
    assert whole[2:] == drawn(1, 2) and whole[::2] == drawn(0, 1)


@pytest.mark.parametrize("flags", [{}, {"clip_norm": 0.05}])
def test_a_run_in_parts_is_that_of_large_batches(tmp_path, without_norm, flags):
    """4 x 2 images against 8: weights, momentum, losses, rates of images, evaluations, checkpoints."""
    common = {"epochs": 7, "save_every_steps": 2, "keep": 9, **flags}
    theirs = train(tmp_path / "whole", **common, device_batch_size=8)
    ours = train(tmp_path / "parts", **common, device_batch_size=2, accumulate=4)
    assert_close(ours, theirs)
    assert (ours["steps_done"], ours["images_per_step"]) == (theirs["steps_done"], theirs["images_per_step"]) == (7, 8)
    for kind in ("train", "eval"):
        both = [metric_rows(tmp_path / name, kind) for name in ("parts", "whole")]
        assert [row["step"] for row in both[0]] == [row["step"] for row in both[1]] and both[0]
        for name in ("loss", "loss_main") if kind == "train" else ("miou",):
            assert [row[name] for row in both[0]] == pytest.approx([row[name] for row in both[1]], abs=1e-6)
    saved = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("parts", "whole")]
    assert saved[0] == saved[1]
    assert (tmp_path / "parts" / "first_batch.png").is_file()


def test_gradients_in_float64_are_those_of_the_large_batch(tmp_path, without_norm):
    gradients = []
    for flags in ({"device_batch_size": 8}, {"device_batch_size": 2, "accumulate": 4}):
        run = Run(arguments(tmp_path / str(len(gradients)), **flags, validate=0, max_steps=1, lr=1.0), small_folder)
        data, model = run.build(build)
        run.join()
        run.prepare(model.double())
        run.optimizer(model.parameters())
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        for _, images, target in run.steps(data.train):
            outputs = run.network(images.double())
            loss = sum(
                nn.functional.cross_entropy(output, target[:, ::by, ::by]) for by, output in enumerate(outputs, 1)
            )
            run.step({"main": loss})
        gradients.append({name: before[name] - weight.detach() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("amp", [{}, {"amp": 1, "opt_level": "O2", "amp_dtype": "bf16"}])
def test_a_run_in_parts_continues_bit_for_bit(tmp_path, amp):
    whole = train(tmp_path / "whole", **PARTS, **amp)
    train(tmp_path / "run", **PARTS, **amp, max_steps=3)
    assert_same_state(train(tmp_path / "run", **PARTS, **amp, resume="auto"), whole)


def as_one_of_two(output_dir: Path, flags: dict) -> None:
    run = Run(arguments(output_dir, **flags), small_folder, 2)
    data, model = run.build(build)
    run.join()
    run.prepare(model)
    run.optimizer(model.parameters())
    exchanged = []
    for step, images, target in run.steps(data.train):
        exchanged.append(run.network.require_backward_grad_sync)
        run.step(small_folder.training_loss(run.network(images), target))
        if run.due(step, 3):
            run.evaluate(data.val)
    run.finish()
    assert exchanged == [False, True] * 3
    weights = torch.cat([weight.detach().flatten() for weight in run.model.parameters()])
    theirs = weights.clone()
    torch.distributed.broadcast(theirs, src=0)
    assert torch.equal(weights, theirs)
    torch.distributed.barrier()
    os._exit(0)  # nobody waits for the other's end


def test_two_devices_and_one_with_twice_the_parts_are_the_same_run(tmp_path, without_norm):
    """And the run of one goes on with two, two parts in each; other steps are refused."""
    whole = train(tmp_path / "whole", device_batch_size=4)
    train(tmp_path / "run", device_batch_size=1, accumulate=4, max_steps=1)
    in_two_processes(
        tmp_path, as_one_of_two, tmp_path / "run", {"device_batch_size": 1, "accumulate": 2, "resume": "auto"}
    )
    assert_close(last_checkpoint(tmp_path / "run"), whole)
    with pytest.raises(InputError, match="in steps of 4 images, this is one in steps of 8; .*--accumulate"):
        train(tmp_path / "run", device_batch_size=4, accumulate=2, resume="auto")


def test_an_overflow_in_one_part_skips_the_whole_step():
    for level in ("O1", "O2"):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        amp = Amp(model, optimizer, level, "dynamic", world())
        before = model.weight.detach().clone()
        images = torch.ones(2, 3)
        for factor in (1.0, math.inf, 1.0):
            with amp.autocast():
                amp.add(model(images).float().sum() * factor)
        with amp.autocast():
            amp.step(model(images).float().sum())
        assert torch.equal(model.weight, before) and amp.skipped_steps == 1 and amp.loss_scale() == 512
        assert all(weight.grad is None for weight in model.parameters())


class _Reused(torch.autograd.Function):
    """A weight whose gradient is always given in the same memory, as a recorded backward pass does."""

    memory = torch.zeros(3)

    @staticmethod
    def forward(ctx, weight, factor):
        ctx.factor = factor
        return weight * factor

    @staticmethod
    def backward(ctx, gradient):
        _Reused.memory.copy_(gradient * ctx.factor)
        return _Reused.memory.detach(), None


def test_gradients_that_a_recorded_network_writes_over_are_added_up():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3))
    amp = Amp(model, torch.optim.SGD(model.parameters(), lr=1.0), "O0", "dynamic", world())
    amp.add(_Reused.apply(model.weight, 1.0).sum())
    amp.add(_Reused.apply(model.weight, 10.0).sum())
    amp.step(_Reused.apply(model.weight, 100.0).sum())
    assert model.weight.tolist() == [-111.0] * 3


def test_a_bad_step_tells_of_all_its_parts(tmp_path):
    with pytest.raises(Diverged, match="at step 5 of 8"):
        train_badly(tmp_path / "run", log_every_steps=6, seed=7, **PARTS)
    told = json.loads((tmp_path / "run" / "bad_step.json").read_text())
    for step in told["steps"]:
        (keys,) = StepSampler(8, StepRange(2, 7, step["step"] - 1, step["step"]), world())
        assert step["samples"] == [f"noise_{index}" for _, index in keys] and len(step["logits"]) == 4


def test_norms_are_asked_about_the_images_of_a_part(tmp_path):
    _, model = Run(arguments(tmp_path, **PARTS, sync_bn=1), small_folder, 2).build(build)
    assert isinstance(model, Network) and model.shapes == [(2, 3, *IMAGE_SIZE)]
