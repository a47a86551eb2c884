"""common/record/report.py: the result of a run, its closing lines and its report, and which scores are in them."""

import json

import pytest

from ci.tests.common_workers import world
from ci.tests.logged import METRIC, REPORT, SCORES, kill, open_log, scored, standing_clock, train
from common.record.report import Title


@pytest.fixture
def clock(monkeypatch):
    return standing_clock(monkeypatch)


def test_the_closing_lines_and_the_report_are_those_of_the_reference(tmp_path, clock, capsys):
    log = open_log(tmp_path / "run", at=world(0, 2))
    train(log, range(4), lambda step: 1.23456, clock, seconds=0.5)  # of two processes: the other one adds nothing here
    log.eval(scored(miou=0.68912))
    log.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:-1] == [
        "Final Performance images/sec : 16.00",
        "Final Train Accuracy : 0.6891",
        "E2E Training Duration sec : 2",
    ]
    report = [line.split(" = ") for line in (tmp_path / "run" / "Net_bs8_2p_acc.log").read_text().splitlines()]
    assert [key for key, _ in report] == [
        "Network", "RankSize", "BatchSize", "DeviceType", "CaseName",
        "ActualFPS", "TrainingTime", "TrainAccuracy", "ActualLoss", "E2ETrainingTime",
    ]  # fmt: skip
    values = dict(report)
    assert values.pop("DeviceType")
    # half a second is 500 milliseconds for one step; the mean loss over the two processes is 1.23456 / 2
    assert values == {
        "Network": "Net", "RankSize": "2", "BatchSize": "8", "CaseName": "Net_bs8_2p_acc", "ActualFPS": "16.00",
        "TrainingTime": "500.00", "TrainAccuracy": "0.6891", "ActualLoss": "0.6173", "E2ETrainingTime": "2",
    }  # fmt: skip


def test_an_evaluation_alone_reports_its_own_rate_and_no_loss(tmp_path, clock, capsys):
    log = open_log(tmp_path / "run", total=0, images_per_step=2, title=Title("Net", "eval"))
    log.rate(50, 4.0)
    log.eval(scored(miou=0.5))
    result = log.finish()
    assert (result["images_per_second"], result["loss"], result["miou"]) == (12.5, None, 0.5)
    assert "ActualLoss = n/a\n" in (tmp_path / "run" / "Net_bs2_1p_eval.log").read_text()
    assert "Final Performance images/sec : 12.50" in capsys.readouterr().out


def test_a_performance_run_has_no_accuracy(tmp_path, clock, capsys):
    log = open_log(tmp_path / "run")
    train(log, range(4), clock=clock)
    log.finish()
    assert "Final Train Accuracy : n/a" in capsys.readouterr().out
    assert "TrainAccuracy = n/a\n" in (tmp_path / "run" / REPORT).read_text()


def test_case_names():
    assert Title("Net").case(128, world(0, 8)) == "Net_bs128_8p_acc"
    assert Title("Net", "perf").case(7, world()) == "Net_bs7_1p_perf"


def test_scores_are_reported_under_the_names_of_the_original_scripts(tmp_path, capsys):
    title = Title("Net", reported_scores={"Train Accuracy": "pixel_accuracy", "mIoU": "miou"})
    log = open_log(tmp_path / "run", title=title)
    train(log, range(4))
    log.eval(METRIC)
    assert log.finish()["scores"] == ["miou", "pixel_accuracy"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:-2] == ["Final Train Accuracy : 0.5000", "Final mIoU : 0.2500"]
    report = (tmp_path / "run" / REPORT).read_text().splitlines()
    assert report[7:9] == ["TrainAccuracy = 0.5000", "mIoU = 0.2500"]
    assert report[9].startswith("ActualLoss = ") and log.choice.best == 0.25


# ---- final scores are those of the last step


def resumed(folder, first_step):
    """The log of a run that was evaluated after two steps and killed after `first_step` of four."""
    log = open_log(folder)
    train(log, range(2))
    log.eval(METRIC)
    train(log, range(2, first_step))
    kill(log)
    return open_log(folder, first_step=first_step, best=0.25, continues=True)


@pytest.mark.parametrize("first_step", [2, 3])
def test_a_run_that_goes_on_without_an_evaluation_does_not_report_the_score_of_before(tmp_path, capsys, first_step):
    """As one that is resumed with --no_validate."""
    log = resumed(tmp_path / "run", first_step)
    train(log, range(first_step, 4))
    result = log.finish()
    assert result["scores"] == [] and not set(SCORES) & set(result)
    assert result["best"] == 0.25
    assert json.loads((tmp_path / "run" / "result.json").read_text())["scores"] == []
    assert "Final Train Accuracy : n/a" in capsys.readouterr().out
    assert "TrainAccuracy = n/a\n" in (tmp_path / "run" / REPORT).read_text()


def test_a_run_that_was_killed_after_its_last_evaluation_reports_that_one(tmp_path):
    log = open_log(tmp_path / "run")
    train(log, range(4))
    log.eval(METRIC)
    kill(log)
    result = open_log(tmp_path / "run", first_step=4, best=0.25, continues=True).finish()
    assert {name: result[name] for name in result["scores"]} == SCORES


def test_scores_besides_those_of_the_last_step(tmp_path, capsys):
    """AttentionUNet's of the split test, for example: with or without an evaluation after the last step."""
    more = {"test_miou": 0.125}
    log = open_log(tmp_path / "scored")
    train(log, range(4))
    log.eval(METRIC)
    result = log.finish(more)
    assert {name: result[name] for name in result["scores"]} == SCORES | more
    log = resumed(tmp_path / "run", 2)
    train(log, range(2, 4))
    result = log.finish(more)
    assert {name: result[name] for name in result["scores"]} == more
