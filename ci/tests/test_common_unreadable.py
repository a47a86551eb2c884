"""A picture that can no longer be read while a run trains or evaluates: what has been done is kept, and is said."""

import os
from pathlib import Path

import pytest
import torch

from ci.tests import small_folder
from ci.tests.runs import assert_same_state, in_two_processes, last_checkpoint, metric_rows
from ci.tests.small_folder import Pictures, arguments, build, main
from common.data.loading import AHEAD
from common.data.order import StepRange, StepSampler
from common.device.world import World
from common.errors import ExitCode, InputError, Stopped, Unreachable
from common.run import Run
from common.start import carry_out, launch

BAD_STEP = 6  # counted from 1: the one whose batch holds the bad picture
BAD_EPOCH = 1
GONE = Unreachable("cannot read the image a.png (Input/output error, 4 times); see to the disk")
ALONE = World(torch.device("cpu"))
DAMAGED = InputError("cannot read the image a.png (it is cut off); unpack it again")


def spoil(monkeypatch, error: InputError, world: World, batch: int, validation: bool = False) -> None:
    """Have a picture of step BAD_STEP fail, or the last one of the validation, as its file does."""
    real = Pictures.__getitem__
    (((_, index), *_),) = StepSampler(8, StepRange(batch, 0, BAD_STEP - 1, BAD_STEP), world)

    def item(pictures, key):
        if key == (2 if validation else (BAD_EPOCH, index)):
            raise error
        return real(pictures, key)

    monkeypatch.setattr(Pictures, "__getitem__", item)


def code_of(output_dir: Path, **flags) -> int:
    try:
        launch(main, build, arguments(output_dir, **flags), small_folder)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_done_is_kept_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys, workers):
    carry_out(main, build, arguments(tmp_path / "whole", validate=0), small_folder)
    with monkeypatch.context() as patch:
        spoil(patch, GONE, ALONE, batch=2)
        assert code_of(tmp_path / "run", validate=0, workers=workers) == ExitCode.STOPPED
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and str(GONE) in said.err
    assert f"stopped by data that cannot be read after step {BAD_STEP - AHEAD} of 8; continue with" in said.out
    assert last_checkpoint(tmp_path / "run")["steps_done"] == BAD_STEP - AHEAD
    assert code_of(tmp_path / "run", validate=0, resume="auto") == 0
    assert_same_state(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))


def test_a_damaged_picture_is_input_that_cannot_work_and_loses_no_step(tmp_path, monkeypatch, capsys):
    """A new try would find it again: a queue is not to put the job back."""
    spoil(monkeypatch, DAMAGED, ALONE, batch=2)
    assert code_of(tmp_path / "run", validate=0) == ExitCode.INPUT
    assert f"error: {DAMAGED}" in capsys.readouterr().err
    assert last_checkpoint(tmp_path / "run")["steps_done"] == BAD_STEP - AHEAD


def test_an_evaluation_that_cannot_be_done_is_done_when_the_run_goes_on(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil(patch, GONE, ALONE, batch=2, validation=True)
        assert code_of(tmp_path / "run") == ExitCode.STOPPED
    assert last_checkpoint(tmp_path / "run")["steps_done"] == 3
    assert code_of(tmp_path / "run", resume="auto") == 0
    assert [row["step"] for row in metric_rows(tmp_path / "run", "eval")] == [3, 6, 8]


def test_a_picture_that_is_gone_when_it_is_to_be_shown_ends_no_run(tmp_path, monkeypatch):
    real, reads = Pictures.__getitem__, []

    def item(pictures, key):
        if key == 0:
            reads.append(key)
            if len(reads) % 2 == 0:  # each evaluation reads it, and then shows it; the last one twice
                raise GONE
        return real(pictures, key)

    monkeypatch.setattr(Pictures, "__getitem__", item)
    assert code_of(tmp_path / "run") == 0 and len(reads) == 7
    assert [row["step"] for row in metric_rows(tmp_path / "run", "eval")] == [3, 6, 8]


def as_one_of_two(output_dir: Path) -> None:
    run = Run(arguments(output_dir, validate=0, device_batch_size=1, save_every_minutes=0), small_folder, 2)
    built = run.build(build)
    run.join()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        if run.world.rank == 1:
            spoil(patch, GONE, run.world, batch=1)
        main(run.args, run, *built)
    os._exit(0)


def test_one_of_two_processes_that_cannot_read_ends_both_after_the_same_step(tmp_path):
    in_two_processes(tmp_path, as_one_of_two, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["steps_done"] == BAD_STEP - 1
    assert str(GONE) in (tmp_path / "said_by_1").read_text() and str(GONE) not in (tmp_path / "said_by_0").read_text()
    assert f"stopped by data that cannot be read after step {BAD_STEP - 1} of 8" in (tmp_path / "said_by_0").read_text()
