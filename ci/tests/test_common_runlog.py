"""common/runlog.py: the files and lines of a run, its rate, its progress bar, and runs that were there before."""

import fcntl
import json
import math
import os
import re
import signal
import struct
import sys
import termios
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from torch.utils._python_dispatch import TorchDispatchMode

from ci.tests.common_workers import world
from common import runlog
from common.errors import Diverged, InputError
from common.runlog import (
    RunLog,
    case_name,
    check_output_dir,
    finished_result,
    memory_in_use,
    resident_bytes,
    write_json,
)

OPTIMIZER = SimpleNamespace(param_groups=[{"lr": 0.125}, {"lr": 1.25}])
SCORES = {"miou": 0.25, "pixel_accuracy": 0.5}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a test moves it, and a process that holds three quarters of a GiB."""
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(perf_counter=lambda: now.seconds, time=lambda: now.seconds)
    monkeypatch.setattr(runlog, "time", fake)
    monkeypatch.setattr(runlog, "resident_bytes", lambda: 3 << 28)
    return now


def open_log(folder, total=4, **changes):
    options = {
        "world": world(),
        "steps_per_epoch": 2,
        "images_per_step": 8,
        "config": {"lr": 0.125, "amp": None},
        "case": "Net_bs8_1p_acc",
        "network": "Net",
        "log_every_steps": 1,
    }
    return RunLog(folder, total_steps=total, **options | changes)


def train(log, steps, loss=lambda step: 1.0, clock=None, seconds=1.0, amp=None):
    for step in steps:
        if clock:
            clock.seconds += seconds
        log.train(step, torch.tensor(loss(step)), OPTIMIZER, amp)


def rows(folder, kind=None):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [row for row in found if kind in (None, row["kind"])]


def events(folder):
    """The TensorBoard records of a folder, read by the format's definition: length, crc, data, crc."""
    found = []
    for path in sorted((folder / "events").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def scalars(folder):
    return {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value if not v.image.height}


def whole_run(folder, clock=None, **changes):
    log = open_log(folder, **changes)
    train(log, range(2), clock=clock)
    log.eval(SCORES)
    train(log, range(2, 4), clock=clock)
    return log.finish()


# ---- files and lines


def test_a_run_writes_its_files(tmp_path, clock, capsys):
    folder = tmp_path / "deep" / "run"
    log = open_log(folder)
    train(log, range(2), lambda step: 3.0 - step, clock)
    assert log.eval(SCORES, {"road": 0.5, "sky": math.nan}) is True
    log.pictures([np.zeros((4, 6, 3), np.uint8)])
    train(log, range(2, 4), lambda step: 0.5, clock)
    assert log.eval({"miou": 0.2, "pixel_accuracy": math.nan}) is False
    log.say("a note")
    result = log.finish()

    names = {"train.log", "metrics.jsonl", "events", "config.json", "result.json", "Net_bs8_1p_acc.log"}
    assert {name for name in os.listdir(folder) if not name.startswith(".")} == names
    # one second for each step of eight images
    assert [(r["step"], r["epoch"], r["loss"], r["lr"], r["images_per_second"]) for r in rows(folder, "train")] == [
        (1, 1, 3.0, 0.125, 8.0),
        (2, 1, 2.0, 0.125, 8.0),
        (3, 2, 0.5, 0.125, 8.0),
        (4, 2, 0.5, 0.125, 8.0),
    ]
    assert rows(folder, "eval") == [
        {"kind": "eval", "step": 2, **SCORES, "best": 0.25, "class_iou": {"road": 0.5, "sky": None}},
        {"kind": "eval", "step": 4, "miou": 0.2, "pixel_accuracy": None, "best": 0.25},
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["values"] == {"lr": 0.125, "amp": None}
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
    assert {written[f"train/{name}", 4] for name in ("images_per_second", "data_wait_share")} == {8.0, 0.0}
    assert written["train/resident_memory_gib", 4] == 0.75
    assert (written["eval/miou", 2], written["eval_class_iou/road", 2]) == (0.25, 0.5)
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


def test_the_closing_lines_and_the_report_are_those_of_the_reference(tmp_path, clock, capsys):
    log = open_log(tmp_path / "run", world=world(0, 2))
    train(log, range(4), lambda step: 1.23456, clock, seconds=0.5)  # of two processes: the other one adds nothing here
    log.eval({"miou": 0.68912})
    log.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "Final Performance images/sec : 16.00",
        "Final Train Accuracy : 0.6891",
        "E2E Training Duration sec : 2",
    ]
    report = [line.split(" = ") for line in (tmp_path / "run" / "Net_bs8_1p_acc.log").read_text().splitlines()]
    assert [key for key, _ in report] == [
        "Network", "RankSize", "BatchSize", "DeviceType", "CaseName",
        "ActualFPS", "TrainingTime", "TrainAccuracy", "ActualLoss", "E2ETrainingTime",
    ]  # fmt: skip
    values = dict(report)
    assert values.pop("DeviceType")
    # half a second is 500 milliseconds for one step; the mean loss over the two processes is 1.23456 / 2
    assert values == {
        "Network": "Net", "RankSize": "2", "BatchSize": "8", "CaseName": "Net_bs8_1p_acc", "ActualFPS": "16.00",
        "TrainingTime": "500.00", "TrainAccuracy": "0.6891", "ActualLoss": "0.6173", "E2ETrainingTime": "2",
    }  # fmt: skip


def test_an_evaluation_alone_reports_its_own_rate_and_no_loss(tmp_path, clock, capsys):
    log = open_log(tmp_path / "run", total=0, images_per_step=2, case="Net_bs2_1p_eval")
    log.rate(50, 4.0)
    log.eval({"miou": 0.5})
    result = log.finish()
    assert (result["images_per_second"], result["loss"], result["miou"]) == (12.5, None, 0.5)
    assert "ActualLoss = n/a\n" in (tmp_path / "run" / "Net_bs2_1p_eval.log").read_text()
    assert "Final Performance images/sec : 12.50" in capsys.readouterr().out


def test_a_performance_run_has_no_accuracy(tmp_path, clock, capsys):
    log = open_log(tmp_path / "run")
    train(log, range(4), clock=clock)
    log.finish()
    assert "Final Train Accuracy : n/a" in capsys.readouterr().out
    assert "TrainAccuracy = n/a\n" in (tmp_path / "run" / "Net_bs8_1p_acc.log").read_text()


def test_case_names():
    assert case_name("Net", 128, world(0, 8), "acc") == "Net_bs128_8p_acc"
    assert case_name("Net", 7, world(), "perf") == "Net_bs7_1p_perf"


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1], "c": {"d": (-math.inf,)}, "path": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": None, "b": [None, 1], "c": {"d": [None]}, "path": str(tmp_path),
    }  # fmt: skip


def test_only_the_main_process_writes_and_prints(tmp_path, capsys):
    log = open_log(tmp_path / "run", world=world(1, 2))
    train(log, range(4))
    log.say("hidden")
    log.pictures([np.zeros((2, 2, 3), np.uint8)])
    assert log.eval(SCORES) is True  # known on every process
    assert log.finish()["best"] == 0.25
    assert not os.listdir(tmp_path)
    assert capsys.readouterr().out == ""


def test_the_best_score_of_an_earlier_run_has_to_be_beaten(tmp_path):
    log = open_log(tmp_path / "run", best=0.5)
    bests = [log.eval({"miou": value}) for value in (0.4, math.nan, 0.5, 0.6, 0.55)]
    assert bests == [False, False, False, True, False]
    assert log.best == 0.6


def test_a_score_that_is_nan_is_never_the_best(tmp_path):
    log = open_log(tmp_path / "run")
    assert log.eval({"miou": math.nan}) is False
    assert log.best is None
    assert log.eval({"miou": 0.0}) is True


def fake_amp(loss_scale, is_dynamic=True):
    return SimpleNamespace(
        opt_level="O1", loss_scale=loss_scale, is_dynamic=is_dynamic, skipped_steps=torch.tensor(0)
    )  # fmt: skip


def test_a_loss_scale_that_collapses_stops_the_run_with_advice(tmp_path):
    scale = 4.0
    amp = fake_amp(lambda: scale)
    log = open_log(tmp_path / "run", total=200)
    for step, scale in enumerate((4.0, 2.0, 1.0)):  # noqa: B007  `amp` reads the variable
        train(log, [step], amp=amp)
    scale = 0.5
    amp.skipped_steps += 1
    with pytest.raises(Diverged, match="fallen to 0.5 at step 4 of 200, with 1 skipped steps.*--lr.*bf16.*--no_amp"):
        train(log, [3], amp=amp)
    train(open_log(tmp_path / "fixed"), [0], amp=fake_amp(lambda: 0.5, is_dynamic=False))  # as it was asked for


def test_a_run_that_skips_every_step_is_stopped(tmp_path):
    amp = fake_amp(lambda: 1e9)
    log = open_log(tmp_path / "run", total=200)
    with pytest.raises(Diverged, match="gradients of the last 40 steps up to 41 of 200 were not finite"):
        for step in range(200):
            amp.skipped_steps += 1
            train(log, [step], amp=amp)
    log = open_log(tmp_path / "other", total=200)
    for step in range(200):  # every other step is done: that is a run
        amp.skipped_steps += step % 2
        train(log, [step], amp=amp)


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


# ---- images/s and waiting for the device


def test_the_rate_counts_training_steps_alone_without_the_warm_up(tmp_path, clock):
    log = open_log(tmp_path / "run", total=40, log_every_steps=4)
    train(log, range(10), clock=clock, seconds=100.0)  # the first ten warm up
    train(log, range(10, 17), clock=clock, seconds=2.0)
    log.flush(OPTIMIZER)
    clock.seconds += 1000  # evaluation
    log.eval(SCORES)
    clock.seconds += 500  # checkpoint
    log.restart_clock()
    train(log, range(17, 20), clock=clock, seconds=2.0)
    clock.seconds += 1000  # another evaluation, without a checkpoint
    log.eval(SCORES)
    log.pictures([])
    train(log, range(20, 39), clock=clock, seconds=2.0)
    train(log, [39], clock=clock, seconds=7.0)
    result = log.finish()
    # 30 steps of 8 images: 29 of 2 s and one of 7 s
    assert result["images_per_second"] == pytest.approx(30 * 8 / (29 * 2 + 7))
    assert result["duration_seconds"] == 10 * 100 + 29 * 2 + 7 + 2500


@pytest.mark.parametrize("total, warm_up", [(1, 0), (2, 1), (3, 1), (8, 4), (19, 9), (20, 10), (30, 10)])
def test_a_short_run_warms_up_for_half_of_its_steps(tmp_path, clock, total, warm_up):
    log = open_log(tmp_path / "run", total=total, log_every_steps=3)
    train(log, range(warm_up), clock=clock, seconds=60.0)
    train(log, range(warm_up, total), clock=clock, seconds=4.0)
    assert log.finish()["images_per_second"] == pytest.approx(8 / 4)


def test_a_resumed_run_warms_up_again(tmp_path, clock):
    log = open_log(tmp_path / "run", total=60, first_step=30, log_every_steps=7)
    train(log, range(30, 40), clock=clock, seconds=60.0)
    train(log, range(40, 60), clock=clock, seconds=4.0)
    assert log.finish()["images_per_second"] == pytest.approx(2.0)


def test_waiting_for_data_is_measured(tmp_path, clock):
    def stream():
        for step in range(4):
            clock.seconds += 3.0
            yield step

    log = open_log(tmp_path / "run", log_every_steps=2)
    for step in log.steps(stream()):
        train(log, [step], clock=clock, seconds=1.0)
    assert [row["data_wait_share"] for row in rows(tmp_path / "run")] == [0.75, 0.75]
    assert [row["images_per_second"] for row in rows(tmp_path / "run")] == [2.0, 2.0]


def test_the_memory_of_an_accelerator_is_the_most_that_tensors_took_of_it(monkeypatch):
    asked = []
    npu = SimpleNamespace(max_memory_allocated=lambda device: asked.append(device) or 5 << 29)
    monkeypatch.setattr(torch, "npu", npu, raising=False)
    there = SimpleNamespace(device=SimpleNamespace(type="npu", index=3))
    assert memory_in_use(there) == ("device", 2.5)
    assert asked == [there.device]


def test_resident_memory_grows_with_what_is_held():
    before = resident_bytes()
    held = np.ones(64 << 20, np.uint8)  # touched, so that it is really there
    assert 60 << 20 < resident_bytes() - before < 80 << 20
    assert memory_in_use(world()) == ("resident", pytest.approx(resident_bytes() / 2**30, rel=0.1))
    assert held.nbytes == 64 << 20


def test_the_memory_where_the_system_does_not_tell_is_the_most_that_was_held(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError

    now = resident_bytes()
    monkeypatch.setattr("builtins.open", refuse)
    assert resident_bytes() >= 0.9 * now


def waiting_run(folder, clock, waited, total=300, **changes):
    """Steps of a second, `waited(step)` of which pass before the batch is there."""
    log = open_log(folder, total=total, log_every_steps=10, steps_per_epoch=total, **changes)

    def stream():
        for step in range(total):
            clock.seconds += waited(step)
            yield step

    for step in log.steps(stream()):
        train(log, [step], clock=clock, seconds=1.0 - waited(step))
    return [line for line in (folder / "train.log").read_text().splitlines() if "waited for data" in line]


def test_a_run_that_waits_for_its_data_says_once_what_would_help(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(runlog, "cpu_cores", lambda: 8)
    monkeypatch.setattr(runlog, "decoder_name", lambda: "Pillow")
    (line,) = waiting_run(tmp_path / "a", clock, lambda step: 0.5, config={"workers": 2})
    assert line.startswith("the last 100 steps waited for data 50% of the time: --workers 4 instead of 2 ")
    (line,) = waiting_run(tmp_path / "b", clock, lambda step: 0.5, config={"workers": 7, "cache": ""})
    assert "--cache DIR" in line
    (line,) = waiting_run(tmp_path / "c", clock, lambda step: 0.5, config={"workers": 7, "cache": "/fast"})
    assert "pip install imagecodecs" in line
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # eight cores, and four processes that train
    (line,) = waiting_run(tmp_path / "d", clock, lambda step: 0.5, config={"workers": 1, "cache": ""})
    assert "--cache DIR" in line
    assert not waiting_run(tmp_path / "e", clock, lambda step: 0.1, config={"workers": 1})
    # the warm-up, where workers start, does not count
    assert not waiting_run(tmp_path / "f", clock, lambda step: 0.99 if step < 10 else 0.2, config={"workers": 1})


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
        return func(*args, **(kwargs or {}))


def test_between_two_lines_nothing_waits_for_the_device(tmp_path, monkeypatch):
    moved = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(1) or cpu(tensor))
    log = open_log(tmp_path / "run", total=30, log_every_steps=6)
    train(log, range(12))
    moved.clear()
    with Waits() as waits:
        train(log, range(12, 17))
        assert (waits.count, moved) == (0, [])
        train(log, [17])
    assert moved == [1]
    assert waits.count > 0


def test_lines_come_every_few_steps_at_the_end_of_the_warm_up_and_at_the_last_step(tmp_path):
    log = open_log(tmp_path / "run", total=29, log_every_steps=4)
    train(log, range(29), lambda step: float(step))
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert steps == [4, 8, 10, 12, 16, 20, 24, 28, 29]
    # each is the mean over the steps since the line before
    means = [sum(range(a, b)) / (b - a) for a, b in pairwise([0, *steps])]
    assert [row["loss"] for row in rows(tmp_path / "run")] == pytest.approx(means)


# ---- a loss that is not finite


@pytest.mark.parametrize("value, word", [(math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("bad", [1, 5, 8, 10])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step(tmp_path, capsys, value, word, bad):
    log = open_log(tmp_path / "run", total=10, log_every_steps=4)
    with pytest.raises(Diverged, match=rf"the loss is {word} at step {bad} of 10;.*--lr"):
        train(log, range(10), lambda step: value if step + 1 == bad else 1.0)
    assert f"the loss is {word} at step {bad}" in (tmp_path / "run" / "train.log").read_text()
    assert log.step < bad + 4


def test_the_first_of_several_bad_steps_is_named(tmp_path):
    log = open_log(tmp_path / "run", total=10, log_every_steps=5)
    with pytest.raises(Diverged, match="inf at step 3 of 10"):
        train(log, range(10), lambda step: {2: math.inf, 3: math.nan}.get(step, 1.0))


def test_flush_finds_a_bad_loss_before_a_checkpoint_is_written(tmp_path):
    log = open_log(tmp_path / "run", total=100, log_every_steps=50)
    train(log, range(20), lambda step: math.nan if step == 18 else 1.0)
    with pytest.raises(Diverged, match="step 19 of 100"):
        log.flush(OPTIMIZER)


# ---- what was there before


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_older_run_is_moved_aside_whole_also_twice_in_one_second(tmp_path):
    folder = tmp_path / "run"
    kept = []
    for number in range(3):
        whole_run(folder, config={"number": number})
        os.utime(folder / "config.json", (1_700_000_000, 1_700_000_000))
        kept.append(snapshot(folder))
    whole_run(folder, config={"number": 3})
    moved = sorted((tmp_path / "backup").iterdir())
    assert len(moved) == 3
    assert all(re.fullmatch(r"run-\d{8}-\d{6}(-[23])?", path.name) for path in moved)
    assert sorted(map(str, kept)) == sorted(str(snapshot(path)) for path in moved)
    assert json.loads((folder / "config.json").read_text())["values"] == {"number": 3}
    assert len(rows(folder, "train")) == 4


def test_a_run_that_continues_keeps_what_was_before_its_first_step_and_drops_the_rest(tmp_path, capsys):
    folder = tmp_path / "run"
    log = open_log(folder, total=8)
    train(log, range(2))
    log.eval(SCORES)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"state")
    train(log, range(2, 5), lambda step: 9.0)  # then it is killed while it writes
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 6, "lo')
    log._lock.close()

    log = open_log(folder, total=8, first_step=2, best=0.25, continues=True)
    assert [row["step"] for row in rows(folder)] == [1, 2, 2]
    train(log, range(2, 8))
    log.finish()
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["loss"] for row in rows(folder, "train")] == [1.0] * 8
    assert rows(folder, "eval")[0]["miou"] == 0.25
    assert not (tmp_path / "backup").exists()
    assert (folder / "checkpoints" / "last.pt").read_bytes() == b"state"
    text = (folder / "train.log").read_text()
    assert text.count("steps 0..8") == text.count("steps 2..8") == 1
    # TensorBoard hides the older events from the step of a START record on: the first one that is done again
    starts = [event.step for event in events(folder) if event.session_log.status == 1]
    assert starts == [3]


def test_a_run_that_continues_a_folder_without_metrics(tmp_path):
    folder = tmp_path / "run"
    whole_run(folder)
    (folder / "metrics.jsonl").unlink()
    log = open_log(folder, first_step=2, continues=True)
    train(log, range(2, 4))
    log.finish()
    assert [row["step"] for row in rows(folder)] == [3, 4]


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("precious")
    for attempt in (lambda: check_output_dir(folder), lambda: open_log(folder), lambda: check_output_dir(folder, True)):
        with pytest.raises(InputError, match="thesis is not empty and holds no run.*give a new or empty folder"):
            attempt()
    assert os.listdir(folder) == ["chapter1.txt"]
    assert os.listdir(tmp_path) == ["thesis"]


def test_an_empty_folder_and_one_of_hidden_files_can_be_used(tmp_path):
    (tmp_path / ".nfs01").touch()
    check_output_dir(tmp_path)
    whole_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    whole_run(tmp_path / "b")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("below", ["", "run", "a/b/run"])
def test_an_output_dir_that_is_a_file_or_below_one_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("content")
    with pytest.raises(InputError, match=r"--output_dir .*/file.*: .*/file is a file; give a folder"):
        check_output_dir(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "content"


def test_an_output_dir_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runlog, "_can_create", lambda folder: False)  # a read-only mount
    with pytest.raises(InputError, match="is not writable; give another folder with --output_dir"):
        check_output_dir(tmp_path / "new" / "run")


def test_a_run_that_cannot_be_moved_aside_is_refused_and_left_alone(tmp_path, monkeypatch):
    whole_run(tmp_path / "run")
    before = snapshot(tmp_path / "run")

    def refuse(*_):
        raise OSError(16, "Device or resource busy")  # the folder is a mount point

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(InputError, match=r"the run in it cannot be moved aside \(.*busy.*another --output_dir"):
        open_log(tmp_path / "run")
    assert snapshot(tmp_path / "run") == before


def test_checking_leaves_nothing_behind(tmp_path):
    check_output_dir(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("continues", [False, True])
def test_a_second_run_in_a_folder_that_is_being_written_to_is_refused(tmp_path, continues):
    log = open_log(tmp_path / "run")
    with pytest.raises(InputError, match=r"another run is writing to .*/run; wait for it"):
        open_log(tmp_path / "run", continues=continues)
    train(log, range(4))
    log.finish()
    assert len(rows(tmp_path / "run")) == 4
    assert not (tmp_path / "backup").exists()
    open_log(tmp_path / "run", first_step=4, continues=True).finish()  # the lock went with the run


def test_processes_may_look_at_a_folder_at_the_same_time(tmp_path):
    """Those of a torchrun of the user all do, before any of them writes."""
    whole_run(tmp_path / "run")
    with open(tmp_path / "run" / ".lock", "a+") as lock:
        runlog.fcntl.flock(lock, runlog.fcntl.LOCK_SH)  # another process looks
        check_output_dir(tmp_path / "run")


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    log = open_log(tmp_path / "run")
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"1")
        signal.pause()
    try:
        os.read(ready, 1)
        log._lock.close()  # the run was killed
        open_log(tmp_path / "run", continues=True).finish()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(runlog.fcntl, "flock", refuse)
    whole_run(tmp_path / "run")
    assert finished_result(tmp_path / "run", 4, 4, world())["steps"] == 4


def test_a_run_that_has_not_ended_has_no_result(tmp_path):
    train(open_log(tmp_path / "run"), range(2))
    assert finished_result(tmp_path / "run", 2, 2, world()) is None


def test_a_finished_run_that_goes_on_or_had_another_length_has_no_result_yet(tmp_path, capsys):
    log = open_log(tmp_path / "run")
    train(log, range(4))
    log.finish()
    assert finished_result(tmp_path / "run", 4, 4, world())["steps"] == 4
    assert "is complete: 4 of 4 steps are done" in capsys.readouterr().out
    assert finished_result(tmp_path / "run", 4, 8, world()) is None
    assert finished_result(tmp_path / "run", 8, 8, world()) is None


def test_scores_are_reported_under_the_names_of_the_original_scripts(tmp_path, capsys):
    log = open_log(tmp_path / "run", reported_scores={"Train Accuracy": "pixel_accuracy", "mIoU": "miou"})
    train(log, range(4))
    log.eval({"miou": 0.25, "pixel_accuracy": 0.5})
    assert log.finish()["scores"] == ["miou", "pixel_accuracy"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1] == ["Final Train Accuracy : 0.5000", "Final mIoU : 0.2500"]
    report = (tmp_path / "run" / "Net_bs8_1p_acc.log").read_text().splitlines()
    assert report[7:9] == ["TrainAccuracy = 0.5000", "mIoU = 0.2500"]
    assert report[9].startswith("ActualLoss = ") and log.best == 0.25


# ---- the terminal


@pytest.fixture
def terminal():
    """A terminal of 150 columns: the file to write to, and a function that reads what it shows."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    os.set_blocking(ours, False)
    screen = os.fdopen(theirs, "w")

    def shown() -> str:
        screen.flush()
        text = b""
        while True:
            try:
                text += os.read(ours, 65536)
            except BlockingIOError:
                return text.decode()

    yield screen, shown
    screen.close()
    os.close(ours)


def test_a_terminal_shows_a_bar_with_rate_loss_learning_rate_and_time_left(tmp_path, monkeypatch, terminal, capsys):
    screen, shown = terminal
    monkeypatch.setattr(sys, "stderr", screen)
    log = open_log(tmp_path / "run", total=40, first_step=10)
    train(log, range(10, 20), lambda step: 2.5)
    last = shown().split("\r")[-1]
    assert re.search(r"\d+%\|.*\| \d+/40 \[\d+:\d+<", last), last  # passed and left
    assert re.search(r"[\d.]+ images/s, loss 2\.500, lr 0\.12500, wait \d+%, [\d.]+ GiB", last), last
    log.eval(SCORES)
    train(log, range(20, 40))
    log.finish()
    out = capsys.readouterr().out
    assert "step 15/40" not in out  # the bar shows it
    assert "evaluation at step 20" in out and "Final Performance images/sec" in out
    assert "step 15/40" in (tmp_path / "run" / "train.log").read_text()
    assert "40/40" in shown()


def test_elsewhere_there_is_no_bar(tmp_path, capsys):
    whole_run(tmp_path / "run")
    out, err = capsys.readouterr()
    assert err == ""
    assert "\r" not in out
    assert out.count("images/s ") == 4


def test_an_evaluation_alone_shows_no_bar_on_a_terminal(tmp_path, monkeypatch, terminal):
    screen, shown = terminal
    monkeypatch.setattr(sys, "stderr", screen)
    log = open_log(tmp_path / "run", total=0)
    log.eval(SCORES)
    log.finish()
    assert shown() == ""
