"""common/terminal.py: colours and bars, on a terminal alone."""

import io
import sys

import pytest

from ci.tests.common_workers import CLASSES, Scenes, seeded_model, world
from ci.tests.logged import open_log
from common import terminal as module
from common.scores.evaluate import Evaluation, evaluate
from common.scores.metrics import ConfusionMatrix
from common.terminal import marked, progress

LINE = "train.py: error: no such note: x"


def test_a_terminal_has_colours_unless_its_user_wants_none(terminal, monkeypatch):
    screen, _ = terminal
    assert marked(LINE, screen) == "train.py: \x1b[31merror\x1b[0m: no such note: x"
    assert marked("an error, and stopped-by: x", screen) == "an error, and stopped-by: x"
    assert marked(LINE, io.StringIO()) == LINE
    monkeypatch.setenv("TERM", "dumb")
    assert marked(LINE, screen) == LINE
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert marked(LINE, screen) == LINE


def test_the_file_of_a_run_has_no_colours(tmp_path, terminal, monkeypatch):
    screen, shown = terminal
    monkeypatch.setattr(sys, "stdout", screen)
    open_log(tmp_path / "run", total=0).say("warning: it is late")
    assert "\x1b[33mwarning\x1b[0m: it is late" in shown()
    assert "warning: it is late\n" in (tmp_path / "run" / "train.log").read_text()


def test_a_bar_is_drawn_on_a_terminal_and_is_gone_afterwards(terminal, monkeypatch, capsys):
    assert list(progress(range(3), "counting", 3, "file")) == [0, 1, 2] and capsys.readouterr() == ("", "")
    screen, shown = terminal
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress(range(3), "counting", 3, "file")) == [0, 1, 2] and shown() == "", "it takes but a moment"
    monkeypatch.setattr(module, "DELAY_S", 0)
    with pytest.raises(ZeroDivisionError):
        for number in progress(range(3), "counting", 3, "file"):
            assert number == 0 or 1 // 0
    assert "counting:   0%" in (text := shown()) and text.split("\r")[-2].strip() == ""


def test_an_evaluation_shows_how_far_it_is(terminal, monkeypatch):
    screen, shown = terminal
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module, "DELAY_S", 0)
    evaluate(seeded_model(), Scenes(7), ConfusionMatrix(CLASSES), Evaluation(world(), 2))
    assert "evaluating:" in (text := shown()) and "/7 [" in text
