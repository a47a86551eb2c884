"""common/record/folder.py: the folder of a run, who holds it, and runs that were there before."""

import fcntl
import json
import os
import re
import signal

import pytest

from ci.tests.common_workers import world
from ci.tests.logged import CONFIG, kill, open_log, rows, snapshot, train, whole_run
from common.errors import InputError
from common.record import folder as folder_module
from common.record.folder import check_output_dir, finished_result


def test_an_older_run_is_moved_aside_whole_also_twice_in_one_second(tmp_path):
    folder = tmp_path / "run"
    kept = []
    for number in range(3):
        whole_run(folder, config={"number": number})
        os.utime(folder / "config.json", (1_700_000_000, 1_700_000_000))
        kept.append(snapshot(folder))
    whole_run(folder, config={"number": 3})
    moved = sorted((tmp_path / "backup").iterdir())
    assert len(moved) == 3
    assert all(re.fullmatch(r"run-\d{8}-\d{6}(-[23])?", path.name) for path in moved)
    assert sorted(map(str, kept)) == sorted(str(snapshot(path)) for path in moved)
    assert json.loads((folder / "config.json").read_text())["values"] == {**CONFIG, "number": 3}
    assert len(rows(folder, "train")) == 4


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("precious")
    for attempt in (lambda: check_output_dir(folder), lambda: open_log(folder), lambda: check_output_dir(folder, True)):
        with pytest.raises(InputError, match="thesis is not empty and holds no run.*give a new or empty folder"):
            attempt()
    assert os.listdir(folder) == ["chapter1.txt"]
    assert os.listdir(tmp_path) == ["thesis"]


def test_an_empty_folder_and_one_of_hidden_files_can_be_used(tmp_path):
    (tmp_path / ".nfs01").touch()
    check_output_dir(tmp_path)
    whole_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    whole_run(tmp_path / "b")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("below", ["", "run", "a/b/run"])
def test_an_output_dir_that_is_a_file_or_below_one_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("content")
    with pytest.raises(InputError, match=r"--output_dir .*/file.*: .*/file is a file; give a folder"):
        check_output_dir(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "content"


def test_an_output_dir_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_can_create", lambda folder: False)  # a read-only mount
    with pytest.raises(InputError, match="is not writable; give another folder with --output_dir"):
        check_output_dir(tmp_path / "new" / "run")


def test_a_run_that_cannot_be_moved_aside_is_refused_and_left_alone(tmp_path, monkeypatch):
    whole_run(tmp_path / "run")
    before = snapshot(tmp_path / "run")

    def refuse(*_):
        raise OSError(16, "Device or resource busy")  # the folder is a mount point

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(InputError, match=r"the run in it cannot be moved aside \(.*busy.*another --output_dir"):
        open_log(tmp_path / "run")
    assert snapshot(tmp_path / "run") == before


def test_checking_leaves_nothing_behind(tmp_path):
    check_output_dir(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("continues", [False, True])
def test_a_second_run_in_a_folder_that_is_being_written_to_is_refused(tmp_path, continues):
    log = open_log(tmp_path / "run")
    with pytest.raises(InputError, match=r"another run is writing to .*/run; wait for it"):
        open_log(tmp_path / "run", continues=continues)
    train(log, range(4))
    log.finish()
    assert len(rows(tmp_path / "run")) == 4
    assert not (tmp_path / "backup").exists()
    open_log(tmp_path / "run", first_step=4, continues=True).finish()  # the lock went with the run


def test_processes_may_look_at_a_folder_at_the_same_time(tmp_path):
    """Those of a torchrun of the user all do, before any of them writes."""
    whole_run(tmp_path / "run")
    with open(tmp_path / "run" / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # another process looks
        check_output_dir(tmp_path / "run")


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    log = open_log(tmp_path / "run")
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"1")
        signal.pause()
    try:
        os.read(ready, 1)
        kill(log)
        open_log(tmp_path / "run", continues=True).finish()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_module.fcntl, "flock", refuse)
    whole_run(tmp_path / "run")
    assert finished_result(tmp_path / "run", 4, 4, world())["steps"] == 4


def test_a_run_that_has_not_ended_has_no_result(tmp_path):
    train(open_log(tmp_path / "run"), range(2))
    assert finished_result(tmp_path / "run", 2, 2, world()) is None


def test_a_finished_run_that_goes_on_or_had_another_length_has_no_result_yet(tmp_path, capsys):
    log = open_log(tmp_path / "run")
    train(log, range(4))
    log.finish()
    assert finished_result(tmp_path / "run", 4, 4, world())["steps"] == 4
    assert "is complete: 4 of 4 steps are done" in capsys.readouterr().out
    assert finished_result(tmp_path / "run", 4, 8, world()) is None
    assert finished_result(tmp_path / "run", 8, 8, world()) is None
