"""Runs that are logged and not trained: what the tests of common/record/ share."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tensorboardX.proto.event_pb2 import Event

from ci.tests.common_workers import world
from common.device import memory
from common.record import log as log_module
from common.record.course import Course
from common.record.log import RunLog
from common.record.report import Title

OPTIMIZER = SimpleNamespace(param_groups=[{"lr": 0.125}, {"lr": 1.25}])
CONFIG = {"lr": 0.125, "amp": None, "log_every_steps": 1}
REPORT = "Net_bs8_1p_acc.log"
PIXELS = 64


class Counted(NamedTuple):
    """A metric whose pixels are counted."""

    by_name: dict
    by_class: dict = {}

    def scores(self) -> dict[str, float]:
        return self.by_name

    def class_scores(self) -> dict[str, float]:
        return self.by_class

    def pixels(self) -> int:
        return PIXELS


def scored(**scores: float) -> Counted:
    return Counted(scores)


SCORES = {"miou": 0.25, "pixel_accuracy": 0.5}
METRIC = Counted(SCORES)


def standing_clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still unless a test moves it, and a process that holds three quarters of a GiB."""
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(perf_counter=lambda: now.seconds, time=lambda: now.seconds)
    monkeypatch.setattr(log_module, "time", fake)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 3 << 28)
    return now


def open_log(folder: Path, total: int = 4, every: int = 1, *, at=None, config=None, title=None, **course) -> RunLog:
    """The log of a run of `total` steps with a line after `every` so many, in epochs of two steps of eight images.

    at: the process of it. config and course: what is not as usual.
    """
    course = {"total_steps": total, "steps_per_epoch": 2, "images_per_step": 8} | course
    config = CONFIG | {"log_every_steps": every} | (config or {})
    return RunLog(folder, at or world(), Course(**course), config, title or Title("Net"))


def train(log: RunLog, steps, loss=lambda step: 1.0, clock=None, seconds: float = 1.0, amp=None) -> None:
    """Note these 0-based steps. loss: step -> the loss, or its terms by name. seconds: of a step, on the clock."""
    for step in steps:
        if clock:
            clock.seconds += seconds
        terms = loss(step) if isinstance(loss(step), dict) else {"main": loss(step)}
        log.train(step, {name: torch.tensor(value) for name, value in terms.items()}, OPTIMIZER, amp)


def whole_run(folder: Path, clock=None, **changes) -> dict:
    """The result of a run that is evaluated half way."""
    log = open_log(folder, **changes)
    train(log, range(2), clock=clock)
    log.eval(METRIC)
    train(log, range(2, 4), clock=clock)
    return log.finish()


def kill(log: RunLog) -> None:
    """End a run as a signal does: what it holds is free, nothing more is written."""
    log._lock.close()


def fake_amp(loss_scale, is_dynamic: bool = True) -> SimpleNamespace:
    """Mixed precision with the scale that `loss_scale` returns."""
    skipped = torch.tensor(0)
    return SimpleNamespace(opt_level="O1", loss_scale=loss_scale, is_dynamic=is_dynamic, skipped_steps=skipped)


# ---- what is read of a folder afterwards


def rows(folder: Path, kind: str | None = None) -> list[dict]:
    """The lines of metrics.jsonl, all of which have to be JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    return [row for row in found if kind in (None, row["kind"])]


def events(folder: Path) -> list[Event]:
    """The TensorBoard records of a folder, read by the format's definition: length, crc, data, crc."""
    found = []
    for path in sorted((folder / "events").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(curve, step) -> value of TensorBoard's curves."""
    return {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value if not v.image.height}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
