"""common/tools/runs.py: what is said of the runs in a folder, and what is deleted of them."""

import fcntl
import io
import json

import pytest

from ci.tests import small_folder
from ci.tests.small_folder import arguments, build, main
from common.start import carry_out
from common.tools.runs import describe, find_runs
from common.tools.runs import main as command


def train(folder, **flags) -> None:
    carry_out(main, build, arguments(folder, **flags), small_folder)


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.pt")}


@pytest.fixture
def output(tmp_path):
    """A finished run with an older checkpoint, and one that was moved aside for it."""
    for _ in range(2):
        train(tmp_path / "run", save_every_steps=1)
    return tmp_path


def test_each_run_has_a_line_with_how_far_it_came_and_how_it_ended(output, capsys):
    (moved, run) = find_runs([output])
    assert moved.parent.name == "backup" and run.name == "run"
    capsys.readouterr()
    command([str(output)])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["run", "model", "preset"] and len(lines) == 2
    assert describe(run)[1:5] == ("Small", "default", "-", "8") and describe(run)[-1] == "finished"
    assert 0 < float(describe(run)[5]) < 1 < float(describe(run)[6])
    result = json.loads((run / "result.json").read_text())
    assert describe(run)[6] == f"{result['images_per_second']:.2f}", "of the whole run, not of its last line"
    (run / "result.json").unlink()
    assert describe(run)[-1].startswith("ended without a word")
    with open(run / "train.log", "a") as log:
        log.write("stopped by SIGTERM after step 8 of 8; continue with the same command and --resume auto\n")
    assert describe(run)[-1] == "stopped by SIGTERM after step 8 of 8"
    with open(run / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert describe(run)[-1] == "running"


@pytest.mark.parametrize("answer, deleted", [("y\n", True), ("n\n", False), ("", False)])
def test_what_is_old_is_deleted_after_a_yes_alone(output, monkeypatch, capsys, answer, deleted):
    before = files(output)
    assert {"run/checkpoints/last-7.pt", "run/checkpoints/last.pt"} < before
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    capsys.readouterr()
    command([str(output), "--prune"])
    said = capsys.readouterr().out
    assert "MiB  " in said and "last-7.pt" in said and "backup" in said and "last.pt\n" not in said
    kept = {"run/checkpoints/last.pt", "run/checkpoints/best.pt"}
    assert files(output) == (kept if deleted else before)


def test_what_may_be_needed_is_not_offered(output, monkeypatch, capsys):
    """The older checkpoints of a run whose last one is damaged, and all of a run that is being written to."""
    moved, run = find_runs([output])
    (run / "checkpoints" / "last.pt").write_bytes(b"")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with open(moved / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command([str(output), "--prune"])
    assert "nothing to delete" in capsys.readouterr().out and moved.exists()


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        command([str(tmp_path / "nowhere")])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
