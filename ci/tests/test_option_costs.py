"""What the options of a recipe cost a training step: off, not one operator; counted as the benchmark counts them."""

from collections import Counter

import pytest
import torch

from ci.tests.folders import module
from common.samples.layout import draw
from common.tools.benchmark import main as benchmark
from common.tools.benchmark import parse
from common.tools.operators import Launched

FOLDER = "AttentionUNet"


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """counted(flag, ...) -> the operators of a step of the folder's train.py."""
    layout = module(FOLDER, "presets").LAYOUT
    data = draw(layout, tmp_path / "data", train_images=8, val_images=3, size=(64, 96))
    argv = ["train", f"--model={FOLDER}", "--preset=tiny", "--device=cpu", f"--data_path={data}", "--no_plain"]
    argv += ["--repetitions=1", "--warmup=1"]

    def count(*flags: str) -> Counter:
        launched = []
        monkeypatch.setattr("common.tools.timed_training.Launched", lambda: launched.append(Launched()) or launched[-1])
        operators = benchmark([*argv, *flags])["operators_per_step"]
        return next(+step.counts for step in launched if step.counts.total() == operators)

    count.folder, _ = parse(argv)
    return count


def written_by_hand(folder) -> Counter:
    """The operators of a step without Run: the network, its loss, and besides what every run has in each step: a loss
    scaler, the number of steps that it has skipped, the range of the outputs for a bad end, the loss for the log."""
    model = folder.network(folder.world()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    scaler, skipped = torch.amp.GradScaler("cpu", 1.0), torch.zeros((), dtype=torch.int64)
    images = torch.rand(2, 3, *folder.size).contiguous(memory_format=torch.channels_last)
    target = torch.randint(2, (2, *folder.size))
    for _ in range(2):  # the first step makes the state of the optimizer
        with Launched() as launched:
            outputs = model(images)
            losses = folder.module("model").training_loss(outputs, target)
            scaler.scale(sum(losses.values())).backward()
            scaler.unscale_(optimizer)
            overflow = sum(scaler._found_inf_per_device(optimizer).values())
            scaler.step(optimizer)
            scaler.update(1.0)
            skipped += (overflow > 0).to(torch.int64)
            optimizer.zero_grad()
            for_a_bad_end = [reduce(output.detach()) for output in outputs for reduce in (torch.amin, torch.amax)]
            for_the_log = sum(term.detach().float() for term in losses.values())
        assert for_the_log.dim() == 0 and len(for_a_bad_end) == 2 * len(outputs)
    return +launched.counts


def test_options_that_are_off_launch_nothing_and_those_that_are_on_are_seen(counted):
    off, by_hand = counted(), written_by_hand(counted.folder)
    assert (off - by_hand, by_hand - off) == (Counter(), Counter())
    on = counted("--loss=ce:1,dice:1", "--label_smoothing=0.1", "--clip_norm=1")
    assert on.total() > off.total()
    more = on - off
    assert any("softmax" in name for name in more) and any("norm" in name for name in more)  # of Dice, of clipping
