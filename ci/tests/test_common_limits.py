"""common/device/limits.py, and paths that no file can have: said in one line before anything begins."""

import os
import resource
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from ci.tests import small_folder
from ci.tests.small_folder import arguments, build, main
from common.args import parse_args
from common.device import limits
from common.device.limits import check_limits
from common.errors import InputError
from common.record.checkpoint import check_exists
from common.record.folder import check_output_dir
from common.record.resuming import find_resume
from common.scores.export import parse_export_args
from common.scores.predict import parse_predict_args
from common.start import launch
from common.tools.check import parse as parse_check
from common.tools.doctor_machine import machine as machine_of_doctor
from common.tools.doctor_report import Report

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", "free")
PATH_FLAGS = ["data_path", "cache", "load_from", "checkpoint", "output_dir", "resume", "pretrained"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with room for all; machine(file, text) sets a limit of its container."""
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: Usage(1 << 40))
    monkeypatch.setattr(limits, "_available_memory", lambda: 1 << 40)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    check_limits((512, 1024), 8, 16)
    return lambda file, text: (tmp_path / "cgroup" / file).write_text(text)


def test_a_small_shared_memory_is_named_with_what_helps(machine, monkeypatch):
    """16 workers hold two batches of 8 * 512 * 1024 pixels of 4 bytes each: 512 MiB; a container has 64."""
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: Usage(64 << 20))
    words = r"16 workers need at least 512 Mi bytes in /dev/shm, and there are 64 Mi; .*--shm-size=1g.*together: 2\)"
    with pytest.raises(InputError, match=words):
        check_limits((512, 1024), 8, 16)
    check_limits((512, 1024), 8, 2)
    check_limits((512, 1024), 8, 0)


def test_a_container_that_allows_few_processes(machine):
    machine("pids.max", "50\n")
    machine("pids.current", "20\n")
    with pytest.raises(InputError, match="at least 40 processes and threads, and there are 30; raise --pids-limit"):
        check_limits((8, 8), 1, 16)
    machine("pids.max", "max\n")
    check_limits((8, 8), 1, 16)


def test_too_little_memory(machine, monkeypatch):
    monkeypatch.setattr(limits, "_available_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match="4 workers need at least 128 Mi bytes of memory, and there are 100 Mi"):
        check_limits((8, 8), 1, 4)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(machine, monkeypatch):
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 200))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: set_to.append(both))
    check_limits((8, 8), 1, 8)  # 100 and 12 for each
    with pytest.raises(InputError, match="at least 292 open files, and there are 200; raise the limit with ulimit"):
        check_limits((8, 8), 1, 16)
    assert set_to == [(196, 200), (200, 200)]


def test_the_workers_of_all_devices_are_counted_before_other_processes_begin(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("common.start.check_limits", lambda *given: seen.append(given))
    monkeypatch.setattr("common.start.run_torchrun", lambda args: None)
    launch(main, build, arguments(tmp_path / "run", devices=2, workers=3), small_folder)
    assert seen == [(small_folder.IMAGE_SIZE, 2, 6)]


# ---- paths


@pytest.mark.parametrize("flag", PATH_FLAGS)
def test_a_tilde_is_the_home_of_the_user_in_each_flag_alike(flag, monkeypatch):
    from ICNet import presets

    monkeypatch.setenv("HOME", "/home/somebody")
    assert getattr(parse_args(presets, [f"--{flag}=~/x"]), flag) == "/home/somebody/x"


def test_a_tilde_is_the_home_of_the_user_in_the_other_programs_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    words = ["--checkpoint=~/c", "--output=~/o"]
    args = parse_predict_args({}, "", [*words, "--input", "~/a", "~/b"])
    assert (args.checkpoint, args.output) == ("/home/somebody/c", "/home/somebody/o")
    assert args.input == ["/home/somebody/a", "/home/somebody/b"]
    assert parse_export_args({}, "64", "", words).output == "/home/somebody/o"
    assert parse_check(["--model=ICNet", "--json=~/j"])[0].json == "/home/somebody/j"


def test_the_doctor_names_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for place in ("loop", "loop/run", "dangling", "dangling/run"):
        report = Report()
        machine_of_doctor(report, str(tmp_path / place))
        assert f"disk: {tmp_path / place.partition('/')[0]} is a link that leads nowhere" in "".join(report.missing)


def code_of(output_dir: Path, **flags) -> int:
    try:
        launch(main, build, arguments(output_dir, max_steps=1, validate=0, **flags), small_folder)
    except SystemExit as end:
        return end.code
    return 0


def test_links_that_lead_nowhere_and_names_that_are_too_long_are_one_line(tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for place in ("loop", "loop/run", "dangling", "dangling/run", "n" * 300, f"run/{'n' * 300}"):
        assert code_of(tmp_path / place) == 2, place
        for flag in ("resume", "checkpoint", "load_from"):
            flags = {flag: tmp_path / place} | ({"evaluate": 1} if flag == "checkpoint" else {})
            assert code_of(tmp_path / "other", **flags) == 2, (flag, place)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 24 and all(": error: " in line for line in said), said
    assert sorted(os.listdir(tmp_path)) == ["dangling", "loop"]


def test_a_link_is_told_with_where_it_leads(tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match="dangling is a link to nowhere, which is not there"):
        check_output_dir(tmp_path / "dangling")
    with pytest.raises(InputError, match="dangling is a link to nowhere, which is not there"):
        check_exists(tmp_path / "dangling")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").symlink_to("nowhere")
    assert find_resume("auto", tmp_path) == [tmp_path / "checkpoints" / "last.pt"]  # and not a run that starts anew


def test_a_name_that_is_not_utf_8_ends_no_run(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    script = (
        "import sys; from ci.tests import small_folder as s; from common.start import launch\n"
        f"launch(s.main, s.build, s.arguments({folder!r}, max_steps=1, validate=0), s)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9" in done.stdout and (Path(folder) / "result.json").exists()
