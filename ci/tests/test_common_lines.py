"""common/record/lines.py: what people read of a run, with and without a terminal."""

import re
import sys

from ci.tests.logged import METRIC, open_log, train, whole_run


def test_a_terminal_shows_a_bar_with_rate_loss_learning_rate_and_time_left(tmp_path, monkeypatch, terminal, capsys):
    screen, shown = terminal
    monkeypatch.setattr(sys, "stderr", screen)
    log = open_log(tmp_path / "run", total=40, first_step=10)
    train(log, range(10, 20), lambda step: 2.5)
    last = shown().split("\r")[-1]
    assert re.search(r"\d+%\|.*\| \d+/40 \[\d+:\d+<", last), last  # passed and left
    assert re.search(r"[\d.]+ images/s, loss 2\.500, lr 0\.12500, wait \d+%, [\d.]+ GiB", last), last
    log.eval(METRIC)
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
    log.eval(METRIC)
    log.finish()
    assert shown() == ""
