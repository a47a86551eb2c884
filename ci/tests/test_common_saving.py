"""common/record/saving.py: which checkpoints a run keeps, and what it does where one cannot be written."""

import errno
import json
import os
import signal
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ci.tests import small_folder
from ci.tests.runs import last_checkpoint, metric_rows
from ci.tests.small_folder import arguments, build, main
from common.data.order import Length
from common.device.exits import exit_codes
from common.device.world import World
from common.errors import Diverged, InputError, NotSaved
from common.record import saving
from common.record.checkpoint import read
from common.record.saving import Saver
from common.start import carry_out


def whole(output_dir: Path, **flags) -> dict:
    """The folder in small: eight steps, evaluated every third; a checkpoint after each one."""
    flags = {"save_every_steps": 1, "validate": 0, **flags}
    return carry_out(main, build, arguments(output_dir, **flags), small_folder)


def kept(output_dir: Path) -> dict[str, int]:
    """The checkpoints of a run, with the step that each is of; all of them whole."""
    return {path.name: read(path)["steps_done"] for path in sorted((output_dir / "checkpoints").iterdir())}


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


# ---- which are kept


@pytest.mark.parametrize(
    "keep, expected",
    [(1, {}), (2, {"last-7.pt": 7}), (4, {"last-5.pt": 5, "last-6.pt": 6, "last-7.pt": 7}), (99, None)],
)
def test_older_ones_are_kept_under_the_name_of_their_step(tmp_path, keep, expected):
    whole(tmp_path / "run", keep=keep)
    expected = {f"last-{step}.pt": step for step in range(1, 8)} if expected is None else expected
    assert kept(tmp_path / "run") == {**expected, "last.pt": 8}


def test_best_is_written_where_a_score_is_the_best_so_far(tmp_path, monkeypatch):
    scores = iter((0.5, 0.25, 0.75))
    monkeypatch.setattr("common.scores.metrics.ConfusionMatrix.scores", lambda _: {"miou": next(scores)})
    whole(tmp_path / "run", validate=1, max_steps=6)
    assert kept(tmp_path / "run")["best.pt"] == 3
    content = read(tmp_path / "run" / "checkpoints" / "best.pt")
    assert content["best"] == 0.5 and not {"optimizer", "amp"} & content.keys()
    whole(tmp_path / "run", validate=1, resume="auto")
    assert kept(tmp_path / "run") == {"best.pt": 8, "last-7.pt": 7, "last.pt": 8}


def test_a_run_that_continues_keeps_the_one_that_it_continues_from(tmp_path):
    whole(tmp_path / "run", max_steps=3, keep=1)
    whole(tmp_path / "run", max_steps=4, resume="auto")
    assert kept(tmp_path / "run") == {"last-3.pt": 3, "last.pt": 4}


def test_a_run_whose_last_checkpoint_is_damaged_continues_from_the_one_before(tmp_path, capsys):
    """And comes to the end of one that was left alone. The damaged one is not kept."""
    whole(tmp_path / "run", max_steps=4)
    damage(tmp_path / "run" / "checkpoints" / "last.pt")
    whole(tmp_path / "run", resume="auto", max_steps=5, save_every_steps=0)
    said = (tmp_path / "run" / "train.log").read_text()
    assert "passed over: " in said and "last.pt is damaged" in said and "last-3.pt" in said
    assert kept(tmp_path / "run") == {"last-3.pt": 3, "last.pt": 5}
    assert [row["step"] for row in metric_rows(tmp_path / "run", "train")] == [1, 2, 3, 4, 5]
    whole(tmp_path / "other", max_steps=5)
    ours, theirs = (last_checkpoint(tmp_path / name)["model"] for name in ("run", "other"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_evaluation_does_not_fall_back(tmp_path):
    whole(tmp_path / "run", max_steps=4)
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    damage(weights)
    with pytest.raises(InputError, match=r"last\.pt is damaged, cut off"):
        whole(tmp_path / "scored", evaluate=1, checkpoint=weights)


def test_a_run_that_goes_back_drops_what_came_after(tmp_path):
    whole(tmp_path / "run", max_steps=6, keep=5)
    whole(tmp_path / "run", max_steps=4, keep=5, resume=tmp_path / "run" / "checkpoints" / "last-3.pt")
    assert kept(tmp_path / "run") == {"last-2.pt": 2, "last-3.pt": 3, "last.pt": 4}


def test_a_file_system_without_links_keeps_them_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    whole(tmp_path / "run", max_steps=3)
    assert kept(tmp_path / "run") == {"last-2.pt": 2, "last.pt": 3}


def test_auto_that_finds_nothing_says_so(tmp_path):
    whole(tmp_path / "run", max_steps=1, resume="auto")
    said = (tmp_path / "run" / "train.log").read_text()
    assert f"--resume auto: no checkpoint in {tmp_path / 'run'}, the run starts anew" in said
    whole(tmp_path / "run", max_steps=2, resume="auto")
    assert (tmp_path / "run" / "train.log").read_text().count("the run starts anew") == 1


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_process_that_is_killed_while_it_saves_leaves_one_that_is_whole(tmp_path, call):
    """At each call that brings last.pt to the disk and gives it its name."""
    whole(tmp_path / "run", max_steps=2)
    real = getattr(os, call)

    def killing(file, *arguments, **options):
        names = [os.readlink(f"/proc/self/fd/{file}") if call == "fsync" else file, *arguments]
        if any("last.pt" in Path(name).name for name in names):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(file, *arguments, **options)

    child = os.fork()
    if child == 0:
        try:
            setattr(os, call, killing)
            whole(tmp_path / "run", resume="auto")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "run")["steps_done"] == 2
    whole(tmp_path / "run", resume="auto")
    assert kept(tmp_path / "run") == {"last-7.pt": 7, "last.pt": 8}


# ---- where it cannot be written


def failing_at(monkeypatch, steps: set[int], error: OSError, file: str = "last.pt") -> None:
    """A disk that takes no file of these steps."""
    real = torch.save

    def save(state, target):
        if state["steps_done"] in steps and ("optimizer" in state) == (file == "last.pt"):
            target.write(b"the first part")
            raise error
        real(state, target)

    monkeypatch.setattr(torch, "save", save)


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("error", [FULL, READ_ONLY, PermissionError(errno.EACCES, "Permission denied")])
def test_a_save_that_fails_is_said_and_the_training_goes_on(tmp_path, monkeypatch, error):
    failing_at(monkeypatch, {3, 4, 5}, error)
    assert whole(tmp_path / "run")["steps"] == 8
    said = (tmp_path / "run" / "train.log").read_text()
    lines = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 3
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    because = f"{path} of step 3 is not written: {error.strerror}"
    assert lines[0] == f"warning: {because}; training goes on, and the next checkpoint is tried"
    assert kept(tmp_path / "run") == {"last-7.pt": 7, "last.pt": 8}


def test_a_last_save_that_fails_ends_the_run_with_1_and_keeps_the_one_before(tmp_path, monkeypatch, capsys):
    failing_at(monkeypatch, {7, 8}, FULL)
    with pytest.raises(SystemExit) as left, exit_codes():
        whole(tmp_path / "run")
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "last.pt of step 8 is not written: No space left on device; make room on the disk, and continue" in line
    assert kept(tmp_path / "run") == {"last-5.pt": 5, "last.pt": 6}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8
    monkeypatch.undo()
    assert whole(tmp_path / "run", resume="auto")["steps"] == 8
    assert kept(tmp_path / "run")["last.pt"] == 8


def test_best_weights_that_could_not_be_written_are_not_forgotten(tmp_path, monkeypatch):
    scores = iter((0.5, 0.25, 0.25))
    monkeypatch.setattr("common.scores.metrics.ConfusionMatrix.scores", lambda _: {"miou": next(scores)})
    failing_at(monkeypatch, {3}, FULL, "best.pt")
    with pytest.raises(NotSaved, match=r"best\.pt of step 3 is not written: No space left") as error:
        whole(tmp_path / "run", validate=1)
    assert "last.pt" not in str(error.value) and kept(tmp_path / "run") == {"last-7.pt": 7, "last.pt": 8}


def test_the_disk_is_asked_for_room_before_anything_is_written(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    written = []
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: Usage)
    monkeypatch.setattr(torch, "save", lambda *_: written.append(1))
    with pytest.raises(NotSaved, match="not written: it needs 1 MiB, and 0 MiB are free on the disk"):
        whole(tmp_path / "run", max_steps=1)
    assert not written


def test_a_file_that_does_not_read_as_it_was_written_does_not_take_the_place(tmp_path, monkeypatch):
    real = torch.save

    def save(state, target):
        real(state, target)
        if state["steps_done"] == 2:
            target.seek(-400, os.SEEK_END)
            target.truncate()

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(NotSaved, match="step 2 is not written: it does not read as it was written"):
        whole(tmp_path / "run", max_steps=2)
    assert kept(tmp_path / "run") == {"last.pt": 1}


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """Statistics of a batch norm can be nan where no loss is."""

    def spoil(args, run, data, model) -> dict:
        run.prepare(model)
        run.optimizer(model.parameters())
        for step, images, target in run.steps(data.train):
            run.step(small_folder.training_loss(run.network(images), target))
            if step == 1:
                model.norm.running_var[0] = float("inf")
        return run.finish()

    with pytest.raises(Diverged, match=r"model\.norm\.running_var \(1 of 4 values\) is not finite after step 2 of 8"):
        carry_out(spoil, build, arguments(tmp_path / "run", save_every_steps=1, validate=0), small_folder)
    assert kept(tmp_path / "run") == {"last.pt": 1}


# ---- by the clock


@pytest.mark.parametrize("minutes, saved", [(0, {8}), (0.5, {3, 6, 8}), (10, {8})])
def test_a_checkpoint_comes_after_so_many_minutes(tmp_path, monkeypatch, minutes, saved):
    """Counted from the one before, whatever it came for. Each step takes ten seconds."""
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    steps, real = set(), saving.Saver._write
    monkeypatch.setattr(saving.Saver, "_write", lambda saver, *of: steps.add(of[1]["steps_done"]) or real(saver, *of))

    def timed(args, run, data, model) -> dict:
        run.prepare(model)
        run.optimizer(model.parameters())
        for step, images, target in run.steps(data.train):
            run.step(small_folder.training_loss(run.network(images), target))
            clock[0] += 10
            if run.due(step, 8):
                run.evaluate(None)
        return run.finish()

    carry_out(timed, build, arguments(tmp_path / "run", save_every_minutes=minutes, validate=0), small_folder)
    assert steps == saved


@pytest.mark.parametrize(("rank", "expected"), [(0, [True, False, False]), (1, [False] * 3)])
def test_the_clock_of_the_main_process_asks_once_for_each_checkpoint(rank, expected, monkeypatch):
    amp = SimpleNamespace(world=World(torch.device("cpu"), rank, 2))
    args = Namespace(save_every_minutes=2, output_dir="x")
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    saver = Saver(args, amp, None, Length(1, 9, 9), {})
    assert not saver.asks()
    clock[0] = 120.0
    assert [saver.asks() for _ in range(3)] == expected
