"""common/record/health.py: numbers that stop a run, and what is said of them."""

import math

import pytest
import torch

from ci.tests.logged import OPTIMIZER, fake_amp, kill, open_log, train
from common.errors import Diverged
from common.record.health import Health

# ---- a loss that is not finite


@pytest.mark.parametrize("value, word", [(math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("bad", [1, 5, 8, 10])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step(tmp_path, capsys, value, word, bad):
    log = open_log(tmp_path / "run", total=10, every=4)
    with pytest.raises(Diverged, match=rf"the loss is {word} at step {bad} of 10;.*--lr"):
        train(log, range(10), lambda step: value if step + 1 == bad else 1.0)
    assert f"the loss is {word} at step {bad}" in (tmp_path / "run" / "train.log").read_text()
    assert log.step < bad + 4


def test_the_first_of_several_bad_steps_is_named(tmp_path):
    log = open_log(tmp_path / "run", total=10, every=5)
    with pytest.raises(Diverged, match="inf at step 3 of 10"):
        train(log, range(10), lambda step: {2: math.inf, 3: math.nan}.get(step, 1.0))


def test_flush_finds_a_bad_loss_before_a_checkpoint_is_written(tmp_path):
    log = open_log(tmp_path / "run", total=100, every=50)
    train(log, range(20), lambda step: math.nan if step == 18 else 1.0)
    with pytest.raises(Diverged, match="step 19 of 100"):
        log.flush(OPTIMIZER)


def message(folder, terms, **changes) -> str:
    """What is said when the last of four steps has these terms."""
    log = open_log(folder, **changes)
    with pytest.raises(Diverged) as error:
        train(log, range(log.step, 4), lambda step: terms if step == 3 else dict.fromkeys(terms, 1.0))
    kill(log)
    return str(error.value)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"main": 1.0, "aux0": math.nan}, "the loss is nan (its aux0 term) at step 4 of 4;"),
        ({"main": math.inf, "aux0": 1.0, "aux1": 2.0}, "the loss is inf (its main term) at step 4 of 4;"),
        (
            {"main": math.inf, "aux0": 1.0, "aux1": -math.inf},
            "the loss is nan (its main and aux1 terms) at step 4 of 4;",
        ),
        ({"main": 3e38, "aux0": 3e38}, "the loss is inf at step 4 of 4;"),  # each of them is a number
        ({"main": math.nan}, "the loss is nan at step 4 of 4;"),  # there is no other term
    ],
)
def test_the_terms_that_are_not_finite_are_named_where_there_are_several(tmp_path, terms, words):
    assert message(tmp_path / "run", terms).startswith(words)


def test_the_names_are_those_of_the_first_bad_step():
    losses = torch.tensor([[2.0, 1.0, 1.0], [math.nan, 1.0, math.nan], [math.nan, math.nan, 1.0]])
    with pytest.raises(Diverged, match=r"nan \(its aux0 term\) at step 8 of 20"):
        Health(20).check_losses(losses, ["main", "aux0"], last_step=9, has_checkpoint=False)


def test_checkpoints_from_before_are_spoken_of_where_there_are_some(tmp_path):
    first = message(tmp_path / "run", {"main": math.nan})
    assert "no checkpoint was written yet" in first and "from before" not in first
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    again = message(tmp_path / "run", {"main": math.nan}, first_step=2, continues=True)
    assert "the checkpoints of the run are from before" in again and "no checkpoint" not in again
    # the run in the folder is moved aside, with its checkpoints
    anew = message(tmp_path / "run", {"main": math.nan})
    assert "no checkpoint was written yet" in anew and "from before" not in anew


# ---- steps that are skipped


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
