"""common/record/log.py: the files and lines of a run, its rate, its best score, and how it looks at the device."""

import json
import math
import os
import re
from datetime import datetime
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ci.tests.common_workers import world
from ci.tests.folders import FOLDERS, carry_out, module
from ci.tests.logged import (
    METRIC,
    OPTIMIZER,
    PIXELS,
    REPORT,
    SCORES,
    Counted,
    events,
    fake_amp,
    open_log,
    rows,
    scalars,
    scored,
    standing_clock,
    train,
)
from common.record import log as log_module
from common.record.folder import finished_result
from common.step.amp import Amp


@pytest.fixture
def clock(monkeypatch):
    return standing_clock(monkeypatch)


# ---- files and lines


def clock_of(seconds: int) -> dict:
    """What a row says of the time, so many seconds after the beginning of the run."""
    time = datetime.fromtimestamp(1000 + seconds).astimezone().isoformat(timespec="seconds")
    return {"time": time, "elapsed_seconds": seconds}


def test_a_run_writes_its_files(tmp_path, clock, capsys):
    folder = tmp_path / "deep" / "run"
    log = open_log(folder)
    train(log, range(2), lambda step: 3.0 - step, clock)
    assert log.eval(Counted(SCORES, {"road": 0.5, "sky": math.nan})) is True
    log.pictures([np.zeros((4, 6, 3), np.uint8)])
    train(log, range(2, 4), lambda step: 0.5, clock)
    assert log.eval(scored(miou=0.2, pixel_accuracy=math.nan)) is False
    log.say("a note")
    result = log.finish()

    names = {"train.log", "metrics.jsonl", "events", "config.json", "result.json", REPORT}
    assert {name for name in os.listdir(folder) if not name.startswith(".")} == names
    # one second for each step of eight images
    assert [(r["step"], r["epoch"], r["loss"], r["lr"], r["images_per_second"]) for r in rows(folder, "train")] == [
        (1, 1, 3.0, 0.125, 8.0),
        (2, 1, 2.0, 0.125, 8.0),
        (3, 2, 0.5, 0.125, 8.0),
        (4, 2, 0.5, 0.125, 8.0),
    ]
    classes = {"class_iou": {"road": 0.5, "sky": None}}
    assert rows(folder, "eval") == [
        {"kind": "eval", "step": 2, **SCORES, "best": 0.25, "pixels": PIXELS, **classes} | clock_of(2),
        {"kind": "eval", "step": 4, "miou": 0.2, "pixel_accuracy": None, "best": 0.25, "pixels": PIXELS} | clock_of(4),
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["values"] == {"lr": 0.125, "amp": None, "log_every_steps": 1}
    assert config["environment"]["torch"] == torch.__version__
    assert config["environment"]["world_size"] == 1
    steps = result["steps"]
    quiet = world(rank=1)
    assert json.loads((folder / "result.json").read_text()) == finished_result(folder, steps, steps, quiet)
    assert finished_result(folder, steps, steps, quiet) == {**result, "pixel_accuracy": None}
    assert {k: result[k] for k in ("network", "case", "steps", "loss", "best", "miou", "images_per_second")} == {
        "network": "Net", "case": "Net_bs8_1p_acc", "steps": 4, "loss": 0.5, "best": 0.25, "miou": 0.2,
        "images_per_second": 8.0,
    }  # fmt: skip
    assert result["duration_seconds"] == 4

    written = scalars(folder)
    assert [written["train/loss", step] for step in (1, 2, 3, 4)] == [3.0, 2.0, 0.5, 0.5]
    assert [row["resident_memory_gib"] for row in rows(folder, "train")] == [0.75] * 4
    assert {written[f"speed/{name}", 4] for name in ("images_per_second", "data_wait_share")} == {8.0, 0.0}
    assert written["speed/resident_memory_gib", 4] == 0.75
    assert (written["eval/miou", 2], written["iou/road", 2]) == (0.25, 0.5)
    pictures = [v.image for e in events(folder) for v in e.summary.value if v.image.height]
    assert [(picture.height, picture.width) for picture in pictures] == [(4, 6)]

    out = capsys.readouterr().out
    assert out == (folder / "train.log").read_text()
    assert (
        "epoch 1/2  step 2/4  loss 2.0000  lr 0.125000  8.00 images/s  data wait 0%  "
        "resident memory 0.75 GiB  ETA 0:00:02\n"
    ) in out
    assert (
        "evaluation at step 2:  miou 0.2500  pixel_accuracy 0.5000  (best so far)\n  IoU:  road 0.500  sky -\n" in out
    )
    assert "evaluation at step 4:  miou 0.2000  pixel_accuracy nan\na note\n" in out


def test_only_the_main_process_writes_and_prints(tmp_path, capsys):
    log = open_log(tmp_path / "run", at=world(1, 2))
    train(log, range(4))
    log.say("hidden")
    log.pictures([np.zeros((2, 2, 3), np.uint8)])
    assert log.eval(METRIC) is True  # known on every process
    assert log.finish()["best"] == 0.25
    assert not os.listdir(tmp_path)
    assert capsys.readouterr().out == ""


def test_lines_come_every_few_steps_at_the_end_of_the_warm_up_and_at_the_last_step(tmp_path):
    log = open_log(tmp_path / "run", total=29, every=4)
    train(log, range(29), lambda step: float(step))
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == [4, 8, 10, 12, 16, 20, 24, 28, 29]
    # each is the mean over the steps since the line before
    means = [sum(range(a, b)) / (b - a) for a, b in pairwise([0, *steps])]
    assert [row["loss"] for row in rows(tmp_path / "run")] == pytest.approx(means)


def losses(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("loss")}


def test_the_terms_of_a_loss_are_in_its_row_and_their_sum_is_the_loss(tmp_path):
    """As they were minimised, with their weights; each is the mean over the steps since the line before."""
    log = open_log(tmp_path / "run", every=2)
    train(log, range(4), lambda step: {"main": 1.0 + step, "aux0": 0.25 * step, "aux1": 0.5})
    assert log.finish()["loss"] == pytest.approx(4.625)
    expected = {
        2: {"loss": 2.125, "loss_main": 1.5, "loss_aux0": 0.125, "loss_aux1": 0.5},
        4: {"loss": 4.625, "loss_main": 3.5, "loss_aux0": 0.625, "loss_aux1": 0.5},
    }
    assert {row["step"]: losses(row) for row in rows(tmp_path / "run")} == {
        step: pytest.approx(values) for step, values in expected.items()
    }
    written = scalars(tmp_path / "run")
    for step, values in expected.items():
        assert {name: written[f"train/{name}", step] for name in values} == pytest.approx(values)


@pytest.mark.parametrize("folder", [name for name in FOLDERS if module(name, "presets").LAYOUT == "cityscapes"])
def test_the_terms_of_a_training_are_those_that_it_minimises(folder, tiny_cityscapes, tmp_path, monkeypatch):
    minimised, real = [], Amp.step
    monkeypatch.setattr(Amp, "step", lambda self, loss: (minimised.append(loss.item()), real(self, loss))[1])
    flags = {"preset": "tiny", "device": "cpu", "workers": 0, "max_steps": 2, "validate": False, "log_every_steps": 1}
    root = tiny_cityscapes(train=4, size=(64, 96))
    carry_out(folder, data_path=root, output_dir=tmp_path / "run", **flags)
    rows_of_steps = rows(tmp_path / "run", "train")
    assert [row["loss"] for row in rows_of_steps] == pytest.approx(minimised) and len(minimised) == 2
    for row in rows_of_steps:
        names = [name for name in row if re.fullmatch(r"loss_(main|aux\d)", name)]
        assert "loss_main" in names and "loss_aux0" in names
        assert sum(row[name] for name in names) == pytest.approx(row["loss"])


def test_a_loss_of_one_term_is_not_written_twice(tmp_path):
    train(open_log(tmp_path / "run"), range(4))
    assert [losses(row) for row in rows(tmp_path / "run")] == [{"loss": 1.0}] * 4


def test_skipped_steps_and_the_loss_scale_are_reported(tmp_path, capsys):
    amp = fake_amp(lambda: 1024.0)
    log = open_log(tmp_path / "run")
    train(log, [0], amp=amp)
    amp.skipped_steps += 2
    train(log, [1], amp=amp)
    assert [(row["loss_scale"], row["skipped_steps"]) for row in rows(tmp_path / "run")] == [(1024, 0), (1024, 2)]
    lines = [line for line in capsys.readouterr().out.splitlines() if "step" in line and "loss " in line]
    assert "skipped" not in lines[0]
    assert lines[1].endswith("loss scale 1024  skipped 2")


def test_steps_that_float32_skips_are_reported_too(tmp_path):
    amp = fake_amp(lambda: 1.0, is_dynamic=False)
    amp.skipped_steps += 1
    train(open_log(tmp_path / "run"), [0], amp=amp)
    assert rows(tmp_path / "run")[0]["skipped_steps"] == 1


# ---- the best score


def test_the_best_score_of_an_earlier_run_has_to_be_beaten(tmp_path):
    log = open_log(tmp_path / "run", best=0.5)
    bests = [log.eval(scored(miou=value)) for value in (0.4, math.nan, 0.5, 0.6, 0.55)]
    assert bests == [False, False, False, True, False]
    assert log.choice.best == 0.6


def test_a_score_that_is_nan_is_never_the_best(tmp_path):
    log = open_log(tmp_path / "run")
    assert log.eval(scored(miou=math.nan)) is False
    assert log.choice.best is None
    assert log.eval(scored(miou=0.0)) is True


# ---- images/s and waiting for the device


def test_the_rate_counts_training_steps_alone_without_the_warm_up(tmp_path, clock):
    log = open_log(tmp_path / "run", total=40, every=4)
    train(log, range(10), clock=clock, seconds=100.0)  # the first ten warm up
    train(log, range(10, 17), clock=clock, seconds=2.0)
    log.flush(OPTIMIZER)
    clock.seconds += 1000  # evaluation
    log.eval(METRIC)
    clock.seconds += 500  # checkpoint
    log.restart_clock()
    train(log, range(17, 20), clock=clock, seconds=2.0)
    clock.seconds += 1000  # another evaluation, without a checkpoint
    log.eval(METRIC)
    log.pictures([])
    train(log, range(20, 39), clock=clock, seconds=2.0)
    train(log, [39], clock=clock, seconds=7.0)
    result = log.finish()
    # 30 steps of 8 images: 29 of 2 s and one of 7 s
    assert result["images_per_second"] == pytest.approx(30 * 8 / (29 * 2 + 7))
    assert result["duration_seconds"] == 10 * 100 + 29 * 2 + 7 + 2500


@pytest.mark.parametrize("total, warm_up", [(1, 0), (2, 1), (3, 1), (8, 4), (19, 9), (20, 10), (30, 10)])
def test_a_short_run_warms_up_for_half_of_its_steps(tmp_path, clock, total, warm_up):
    log = open_log(tmp_path / "run", total=total, every=3)
    train(log, range(warm_up), clock=clock, seconds=60.0)
    train(log, range(warm_up, total), clock=clock, seconds=4.0)
    assert log.finish()["images_per_second"] == pytest.approx(8 / 4)


def test_a_resumed_run_warms_up_again(tmp_path, clock):
    log = open_log(tmp_path / "run", total=60, every=7, first_step=30)
    train(log, range(30, 40), clock=clock, seconds=60.0)
    train(log, range(40, 60), clock=clock, seconds=4.0)
    assert log.finish()["images_per_second"] == pytest.approx(2.0)


def test_waiting_for_data_is_measured(tmp_path, clock):
    def stream():
        for step in range(4):
            clock.seconds += 3.0
            yield step

    log = open_log(tmp_path / "run", every=2)
    for step in log.steps(stream()):
        train(log, [step], clock=clock, seconds=1.0)
    assert [row["data_wait_share"] for row in rows(tmp_path / "run")] == [0.75, 0.75]
    assert [row["images_per_second"] for row in rows(tmp_path / "run")] == [2.0, 2.0]


def waiting_run(folder, clock, waited, total=300, **config):
    """Lines about waiting of a run in steps of a second, `waited(step)` of which pass before the batch is there."""
    log = open_log(folder, total, every=10, config=config, steps_per_epoch=total)

    def stream():
        for step in range(total):
            clock.seconds += waited(step)
            yield step

    for step in log.steps(stream()):
        train(log, [step], clock=clock, seconds=1.0 - waited(step))
    return [line for line in (folder / "train.log").read_text().splitlines() if "waited for data" in line]


def test_a_run_that_waits_for_its_data_says_once_what_would_help(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(log_module, "cpu_cores", lambda: 8)
    monkeypatch.setattr(log_module, "decoder_name", lambda: "Pillow")
    (line,) = waiting_run(tmp_path / "a", clock, lambda step: 0.5, workers=2)
    assert line.startswith("the last 100 steps waited for data 50% of the time: --workers 4 instead of 2 ")
    (line,) = waiting_run(tmp_path / "b", clock, lambda step: 0.5, workers=7, cache="")
    assert "--cache DIR" in line
    (line,) = waiting_run(tmp_path / "c", clock, lambda step: 0.5, workers=7, cache="/fast")
    assert "pip install imagecodecs" in line
    (line,) = waiting_run(tmp_path / "g", clock, lambda step: 0.5, workers=7, cache="/fast", cache_share=0.4)
    assert "a larger --cache_share would help" in line
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # eight cores, and four processes that train
    (line,) = waiting_run(tmp_path / "d", clock, lambda step: 0.5, workers=1, cache="")
    assert "--cache DIR" in line
    assert not waiting_run(tmp_path / "e", clock, lambda step: 0.1, workers=1)
    # the warm-up, where workers start, does not count
    assert not waiting_run(tmp_path / "f", clock, lambda step: 0.99 if step < 10 else 0.2, workers=1)


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("terms", [{"main": 1.0}, {"main": 1.0, "aux0": 0.5}])
def test_between_two_lines_nothing_waits_for_the_device(tmp_path, monkeypatch, terms):
    moved = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(1) or cpu(tensor))
    log = open_log(tmp_path / "run", total=30, every=6)
    train(log, range(12), lambda step: terms)
    moved.clear()
    with Waits() as waits:
        train(log, range(12, 17), lambda step: terms)
        assert (waits.count, moved) == (0, [])
        train(log, [17], lambda step: terms)
    assert moved == [1]
    assert waits.count > 0
