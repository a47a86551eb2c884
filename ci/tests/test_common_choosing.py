"""common/record/choosing.py: which evaluation is the best one, and when a run has had enough of them."""

import math

import pytest

from ci.tests import small_folder
from ci.tests.runs import last_checkpoint
from common.errors import InputError
from common.record.choosing import Choice
from common.run import Run
from common.start import carry_out

# every third of 30 steps; the best is the third one
SCORES = [0.5, 0.4, 0.6, 0.3, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9]


def test_the_best_is_the_largest_of_a_score_and_the_smallest_of_a_loss():
    rows = [(0.5, 2.0, 0.1), (math.nan, math.nan, math.nan), (0.4, 1.0, 0.3), (0.6, 1.5, 0.2)]
    expected = {
        "": [True, False, False, True],
        "miou": [True, False, False, True],
        "eval_loss": [True, False, True, False],
        "car": [True, False, True, False],
    }
    for name, wanted in expected.items():
        choice = Choice(name)
        found = [choice.takes({"miou": miou, "eval_loss": loss}, {"car": car}) for miou, loss, car in rows]
        assert found == wanted, name
        assert choice.evaluations_since == wanted[::-1].index(True)
    assert Choice("", best=0.55, evaluations_since=3).takes({"miou": 0.5}, {}) is False


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(...) -> the result of a run of 30 steps in tmp_path/run whose evaluations score `SCORES`."""

    def train(**flags) -> dict:
        args = small_folder.arguments(tmp_path / "run", preset="in_steps", total_steps=30, **flags)
        done = last_checkpoint(tmp_path / "run")["steps_done"] if flags.get("resume") else 0
        scores = iter(SCORES[done // 3 :])
        monkeypatch.setattr("common.scores.metrics.ConfusionMatrix.scores", lambda _: {"miou": next(scores)})
        return carry_out(small_folder.main, small_folder.build, args, small_folder)

    return train


def test_a_run_ends_after_so_many_evaluations_without_a_better_score(train, tmp_path, capsys):
    result = train(stop_after=2)
    assert result["steps"] == 15 and result["best"] == 0.6
    assert result["stopped_early"] == "no better score in 2 evaluations"
    assert "no better score in the last 2 evaluations: the run ends here" in capsys.readouterr().out
    assert train(stop_after=2, resume="auto") == result  # complete
    assert "is complete: 15 of 15 steps are done" in capsys.readouterr().out
    longer = train(stop_after=0, resume="auto")
    assert longer["steps"] == 30 and longer["best"] == 0.9 and "stopped_early" not in longer


def test_what_was_before_an_interruption_counts(train, tmp_path):
    train(max_steps=12, stop_after=2)
    assert last_checkpoint(tmp_path / "run")["evaluations_since_best"] == 1
    assert train(stop_after=2, resume="auto")["steps"] == 15


def test_flags_that_ask_for_what_no_evaluation_says_are_refused(tmp_path):
    def built(**flags):
        run = Run(small_folder.arguments(tmp_path / "run", **flags), small_folder)
        run.build(small_folder.build)

    with pytest.raises(InputError, match="--stop_after needs evaluations"):
        built(stop_after=1, validate=0)
    with pytest.raises(InputError, match=r"--best_by iou: give one of miou, .*eval_loss, a, b, c"):
        built(best_by="iou")
    built(best_by="b")
