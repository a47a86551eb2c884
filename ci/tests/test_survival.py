"""ci/faults.py: its short form loses no run, and it would notice a lost one."""

import random
from collections import Counter

import pytest
import torch

from ci import faults
from ci.faults import Bench, Row
from ci.tests.runs import last_checkpoint
from common.record import resuming


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path, faults.SMALL)


def test_the_short_form_loses_no_run(capfd):
    code, (said, _) = faults.main(["--short", "--seed", "1"]), capfd.readouterr()
    assert code == 0, said
    assert "kill -9 at random (small)" in said and "LOST" not in said


def test_a_run_with_another_weight_or_loss_is_lost(bench):
    run = bench.root / "run"
    assert bench.run(run).code == 0 and bench.difference(run) == ""
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(rows.partition("\n")[2])
    assert bench.difference(run) == "the losses of metrics.jsonl differ"
    (run / "metrics.jsonl").write_text(rows)
    content = last_checkpoint(run)
    content["model"]["last.bias"] += 1e-6
    torch.save(content, run / "checkpoints" / "last.pt")
    assert "the last checkpoint differs: /model/last.bias" in bench.difference(run)


def test_what_does_not_come_back_is_lost(bench, monkeypatch):
    monkeypatch.setattr(resuming, "older_checkpoints", lambda folder: {})
    continued, _ = faults.spoilt(bench, faults.torn, 1, random.Random(0))
    assert len(continued.lost) == 1 and continued.codes == Counter([2])


def test_a_signal_that_nobody_heeds_is_noticed(bench, monkeypatch):
    monkeypatch.setattr("common.device.stopping.STOPS", ())
    (row,) = faults.signals(bench, [faults.signal.SIGTERM], random.Random(0))
    assert row.codes == Counter({-15: 3}) and "exit code -15 and not 3" in row.lost[0]


def test_the_table_ends_with_what_was_lost(capsys, monkeypatch):
    rows = [Row("one", 3, ["why"], Counter([3, 3, -9]), "said"), Row("two", 0, [], Counter(), "skipped: no")]
    monkeypatch.setattr(faults, "cases", lambda *_: rows)
    assert faults.main([]) == 1
    _, one, why, two, end = capsys.readouterr().out.splitlines()
    assert one.split() == ["one", "3", "2", "1", "-9,", "3", "x", "2", "said"]
    assert (why, two.split()[:4], end[:16]) == ("    LOST why", ["two", "0", "0", "0"], "3 tried, 1 lost;")
