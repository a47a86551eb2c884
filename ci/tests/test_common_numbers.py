"""common/record/numbers.py: metrics.jsonl and TensorBoard's events, of runs that go on too."""

import errno
import json
import sys

import numpy as np
import pytest
import torch

from ci.tests.common_workers import CLASSES, Scenes, seeded_model, world
from ci.tests.logged import (
    CONFIG,
    METRIC,
    SCORES,
    events,
    kill,
    open_log,
    rows,
    scalars,
    standing_clock,
    train,
    whole_run,
)  # fmt: skip
from common.record.files import Appended
from common.record.numbers import Before, curves_written, cut_rows
from common.scores.evaluate import Evaluation, evaluate
from common.scores.metrics import ConfusionMatrix


@pytest.fixture
def clock(monkeypatch):
    return standing_clock(monkeypatch)


def test_a_run_that_continues_keeps_what_was_before_its_first_step_and_drops_the_rest(tmp_path, capsys):
    folder = tmp_path / "run"
    log = open_log(folder, total=8)
    train(log, range(2))
    log.eval(METRIC)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"state")
    train(log, range(2, 5), lambda step: 9.0)  # then it is killed while it writes
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 6, "lo')
    kill(log)

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


def test_the_scores_that_are_kept_are_those_of_the_last_evaluation_and_nothing_else_of_its_row(tmp_path):
    whole_run(tmp_path / "run")  # evaluated after two steps
    assert cut_rows(tmp_path / "run", 3)[:2] == (SCORES, 2)
    assert cut_rows(tmp_path / "run", 1)[:2] == ({}, None)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]
    assert cut_rows(tmp_path / "none", 3) == Before()


def test_the_pixels_of_an_evaluation_are_those_that_are_counted(tmp_path):
    """An image that two processes count, or one counts twice, is seen there."""
    images = Scenes(3)
    labelled = sum(int((target != 255).sum()) for _, target, _ in (images[index] for index in range(3)))
    twice = torch.utils.data.ConcatDataset([images, images])
    twice.finish = images.finish
    log = open_log(tmp_path / "run")
    for dataset in (images, twice):
        log.eval(evaluate(seeded_model(), dataset, ConfusionMatrix(CLASSES), Evaluation(world(), batch_size=2)))
    assert [row["pixels"] for row in rows(tmp_path / "run")] == [labelled, 2 * labelled]
    first, second = (
        {name: row[name] for name in row if name not in ("pixels", "time", "elapsed_seconds")}
        for row in rows(tmp_path / "run")
    )
    assert first == second  # the scores would not tell


# ---- a run in several pieces


def second_piece(folder, clock, **changes):
    """The log of a run that goes on after four of its six steps, ten minutes after it was killed in its fifth."""
    log = open_log(folder, total=6)
    train(log, range(4), lambda step: 3.0, clock)
    log.eval(METRIC)
    train(log, range(4, 5), lambda step: 9.0, clock)
    kill(log)
    clock.seconds += 600
    return open_log(folder, total=6, first_step=4, best=0.25, continues=True, **changes)


def test_the_result_is_of_all_pieces(tmp_path, clock):
    log = second_piece(tmp_path / "run", clock)
    clock.seconds += 5  # until the first step
    log.restart_clock()
    train(log, range(4, 6), lambda step: 1.0, clock, seconds=4.0)
    result = log.finish()
    # five steps of a second, one of them in vain, then five seconds and two steps of four; not the time in between
    assert result["duration_seconds"] == 5 + 5 + 8
    # of each piece the last step that is kept counts, after the warm-up: 8 images in 1 s and in 4 s
    assert result["images_per_second"] == 16 / 5
    assert [row["elapsed_seconds"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 4, 14, 18]


def test_a_piece_without_a_step_has_the_loss_and_the_rate_of_the_one_before(tmp_path, clock):
    log = open_log(tmp_path / "run")
    train(log, range(4), lambda step: 3.0, clock)
    kill(log)
    result = open_log(tmp_path / "run", first_step=4, continues=True).finish()
    assert (result["loss"], result["images_per_second"], result["duration_seconds"]) == (3.0, 8.0, 4)


def test_the_time_of_a_run_begins_with_its_process(tmp_path, clock):
    log = open_log(tmp_path / "run", started=clock.seconds - 7)
    train(log, range(4), clock=clock)
    assert log.finish()["duration_seconds"] == 11


def test_config_says_what_each_piece_ran_with_and_what_changed(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data_path", "a b"])
    log = second_piece(tmp_path / "run", clock, config={"lr": 0.5, "seed": 7})
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["values"] == CONFIG | {"lr": 0.5, "seed": 7}
    first, second = config["pieces"]
    assert (first["first_step"], first["values"], "changed" in first) == (0, CONFIG, False)
    assert (second["first_step"], second["values"], second["command"]) == (
        4,
        config["values"],
        "train.py --data_path 'a b'",
    )
    assert second["changed"] == {"values": {"lr": [0.125, 0.5], "seed": [None, 7]}, "environment": {}}
    train(log, range(4, 6), clock=clock)
    result = log.finish()
    assert (result["seed"], result["command"]) == (7, second["command"])
    assert result["git_commit"] == config["environment"]["git_commit"]


def test_the_first_piece_of_an_earlier_version_is_kept(tmp_path, clock):
    whole_run(tmp_path / "run", clock)
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["pieces"]
    path.write_text(json.dumps(config))
    open_log(tmp_path / "run", first_step=2, continues=True, config={"lr": 0.5})
    first, second = json.loads(path.read_text())["pieces"]
    assert (first["values"], second["changed"]["values"]) == (CONFIG, {"lr": [0.125, 0.5]})


def points(folder) -> list[tuple[str, int]]:
    return sorted((value.tag, event.step) for event in events(folder) for value in event.summary.value)


def test_a_killed_run_has_its_curves_and_pictures_on_the_disk(tmp_path):
    log = open_log(tmp_path / "run")
    train(log, range(2))
    log.eval(METRIC)
    assert {("train/loss", 1), ("train/loss", 2), ("eval/miou", 2)} <= set(scalars(tmp_path / "run"))
    log.pictures([np.zeros((2, 3, 3), np.uint8)])
    assert ("examples/0", 2) in points(tmp_path / "run")


def test_curves_that_are_missing_are_added_from_the_rows_and_no_others(tmp_path, clock):
    kill(second_piece(tmp_path / "run", clock))
    assert [points(tmp_path / "run").count(point) for point in (("train/loss", 4), ("eval/miou", 4))] == [1, 1]
    (file, _) = sorted((tmp_path / "run" / "events").iterdir())
    expected = scalars(tmp_path / "run")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # cut off within an event
    assert len(curves_written(tmp_path / "run" / "events")) < len(expected)
    file.unlink()
    open_log(tmp_path / "run", total=6, first_step=4, continues=True)
    expected = {point: value for point, value in expected.items() if 1 <= point[1] <= 4}
    assert expected and {point: scalars(tmp_path / "run")[point] for point in expected} == expected


def test_a_full_disk_ends_no_training_and_what_it_did_not_take_is_written_later(tmp_path, monkeypatch, capsys):
    log, real, full = open_log(tmp_path / "run", total=6), Appended.append, [True]

    def append(file, text: str) -> None:
        if not full:
            return real(file, text)
        file._kept += text.encode()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Appended, "append", append)
    train(log, [0, 1])
    log.pictures([np.zeros((2, 2, 3), np.uint8)])
    full.clear()
    train(log, [2, 3])
    full.append(True)
    train(log, [4])
    full.clear()
    train(log, [5])
    log.finish()
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1, 2, 3, 4, 5, 6]
    assert [step for name, step in scalars(tmp_path / "run") if name == "train/loss"] == [1, 2, 3, 4, 5, 6]
    said = capsys.readouterr().out
    assert said.count("warning: metrics and events are not written (No space left on device)") == 2
    assert "step 1/6" in (tmp_path / "run" / "train.log").read_text()
