"""common/dry_run.py and common/recipe.py: what --dry_run says of a small run, and that it leaves all as it was."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ci.tests import small_folder
from ci.tests.small_folder import arguments, build, main
from common import dry_run
from common.args import parse_args
from common.data.loading import batches
from common.errors import ExitCode
from common.recipe import noting_changes, recipe
from common.start import carry_out, launch


@pytest.fixture
def clock(monkeypatch) -> None:
    """A clock on which a batch takes one second, the work on it three, and nothing else any time."""
    now = [0.0]

    def pass_seconds(seconds: float) -> None:
        now[0] += seconds

    def slow_batches(*arguments):
        for item in batches(*arguments):
            pass_seconds(1)
            yield item

    loss = small_folder.training_loss
    monkeypatch.setattr(small_folder, "training_loss", lambda *pair: pass_seconds(3) or loss(*pair))
    monkeypatch.setattr(dry_run, "batches", slow_batches)
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def started(output_dir: Path, **flags) -> None:
    launch(main, build, arguments(output_dir, dry_run=1, **flags), small_folder)


def files(folder: Path) -> dict[Path, int]:
    """What there is, and of each file when it was written. Whether a folder can be written to is tried in it."""
    return {path: path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


def said(output: str) -> dict[str, str]:
    """The first word of each line -> the rest of it."""
    lines = (line.strip().split(maxsplit=1) for line in output.splitlines())
    return {line[0]: line[-1] for line in lines if line}


def test_time_and_waiting_are_those_of_whole_steps_after_the_warm_up(tmp_path, clock, capsys):
    """Of two parts each: eight seconds, of which two are waiting; after 24 the measurement is not long enough."""
    dry_run_seconds = 24.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "SECONDS", dry_run_seconds)
        started(tmp_path / "run", accumulate=2, devices=2, epochs=7, device_batch_size=1, max_steps=5, seeds=3)
    heard = capsys.readouterr()
    assert "measuring some steps, for 24 seconds or longer" in heard.err  # slow devices are silent for minutes
    lines = said(heard.out)
    assert lines["steps"] == (
        "2 per epoch, 5 in all (2.5 epochs), of a schedule of 14, each of 4 images: "
        "1 (per device) x 2 (devices) x 2 (--accumulate)"
    )
    assert lines["measured"].startswith("4 steps in float32 with the data loader (--workers 0), after 1 of warm-up, on")
    assert lines["measured"].endswith("one of 2, without what they exchange in each step")
    assert lines["speed"] == "8 s for a step, 0.25 images/s, data wait 25%"
    assert lines["time"].startswith(
        "0:00:16 for an epoch, 0:00:40 for the 5 steps of the run, 0:02:00 for the runs of 3 seeds; evaluations"
    )
    assert lines["begins"] == "initial weights: random" and lines["--seeds"].split() == ["3", "command", "line"]
    assert lines["--output_dir"].startswith(str(tmp_path / "run" / "seed-0"))
    assert not files(tmp_path)


def test_a_run_in_the_folder_stays_and_what_it_has_done_is_left_out(tmp_path, clock, capsys):
    carry_out(main, build, arguments(tmp_path / "run", max_steps=3), small_folder)
    before, _ = files(tmp_path), capsys.readouterr()
    started(tmp_path / "run", resume="auto", max_minutes=1e-9, save_every_steps=1, prof=1)
    lines = said(capsys.readouterr().out)
    assert lines["steps"].startswith(
        "4 per epoch, 8 in all (2 epochs); 3 of them are done (--resume), each of 2 images"
    )
    assert "0:00:20 for the 5 steps of the run;" in lines["time"] and "continuing from" in lines["begins"]
    started(tmp_path / "run")
    assert "0:00:32 for the 8 steps of the run;" in said(capsys.readouterr().out)["time"]
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        ({"evaluate": 1}, {}, "--dry_run is for training, and --evaluate trains nothing"),
        ({}, {"LOCAL_RANK": "0"}, "--dry_run measures one device in one process; start it without torchrun or srun"),
        ({"seeds": 2, "validate": 0}, {}, "--seeds compares scores, and --no_validate has none"),
        ({"device_batch_size": 9}, {}, "8 training images are fewer than the 9 of one step"),
    ],
)
def test_what_has_no_training_is_refused_in_one_line(tmp_path, monkeypatch, capsys, flags, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        started(tmp_path / "run", **flags)
    error = capsys.readouterr().err
    assert end.value.code == ExitCode.INPUT and words in error and error.count("\n") == 1
    assert not files(tmp_path)


def test_a_signal_ends_it_in_order_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loss = small_folder.training_loss

    def interrupted(*pair):
        asked[0].ask(2)
        return loss(*pair)

    asked = []
    monkeypatch.setattr(small_folder, "training_loss", interrupted)
    monkeypatch.setattr(dry_run._Measurement, "__init__", _noting(dry_run._Measurement.__init__, asked))
    with pytest.raises(SystemExit) as end:
        started(tmp_path / "run")
    assert end.value.code == ExitCode.STOPPED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "dry run interrupted: nothing was changed"
    assert not files(tmp_path)


def _noting(real, asked: list):
    def init(measurement, run):
        asked.append(run.stop)
        real(measurement, run)

    return init


def test_each_value_has_its_origin(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"lr": 0.5, "epochs": 3}))
    args = parse_args(small_folder, [f"--config={file}", "--epochs=2"])
    with noting_changes(args):
        args.backbone = "other"
    rows = {name: (value, origin) for rows in recipe(vars(args)).values() for name, value, origin in rows}
    assert rows["lr"] == (0.5, "config file") and rows["epochs"] == (2, "command line")
    assert rows["backbone"] == ("other", "data and other flags")
    assert rows["device_batch_size"] == (2, "preset default") and rows["seed"] == (0, "default")
    assert not rows.keys() & {"given", "origins", "preset"}
    earlier = {name: value for name, value in vars(args).items() if name not in ("given", "origins")}
    assert {origin for rows in recipe(earlier).values() for *_, origin in rows} == {"not recorded"}
