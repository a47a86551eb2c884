"""common/tools/runs.py: what is said of the runs in a folder, and what is deleted of them."""

import fcntl
import io
import json

import pytest

from ci.tests import small_folder
from ci.tests.small_folder import arguments, build, main
from common.errors import InputError
from common.record.past import network_of
from common.record.spread import read_group
from common.start import carry_out, launch
from common.tools.runs import describe, find_runs, prunable
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
    (output / "foreign").mkdir()  # other programs have a config.json too
    (output / "foreign" / "config.json").write_text('{"values": "of another program"}')
    with pytest.raises(InputError, match=r"foreign holds no run \(no readable config\.json\)"):
        read_group(output / "foreign")
    (moved, run) = find_runs([output])
    with open(run / "metrics.jsonl", "a") as rows:
        rows.write('{"kind": "train", "step": null}\n{"kind": "train", "best": "?"}\n')  # edited by hand
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
    assert describe(run)[1] == "Small", "as of a run that is finished"
    config = json.loads((run / "config.json").read_text())
    assert network_of({"values": {"arch": "icnet"}}, {}) == "icnet" and network_of({**config, "network": ""}, {}) == "-"
    with open(run / "train.log", "a") as log:
        log.write("stopped by SIGTERM after step 8 of 8; continue with the same command and --resume auto\n")
    assert describe(run)[-1] == "stopped by SIGTERM after step 8 of 8"
    with open(run / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert describe(run)[-1] == "running"


def test_the_reason_of_an_early_end_is_told(output, tmp_path, monkeypatch, capsys):
    run, loss, calls = tmp_path / "run", small_folder.training_loss, []
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "stopped_early": "no better score in 2 evaluations"}))
    assert describe(run)[-1] == "finished: no better score in 2 evaluations"
    assert run / "checkpoints" / "last-7.pt" in prunable([run])

    def failing(*pair):
        calls.append(pair)
        if len(calls) > 2:
            raise RuntimeError("out of memory:\na page about it")
        return loss(*pair)

    monkeypatch.setattr(small_folder, "training_loss", failing)
    with pytest.raises(SystemExit) as end:
        launch(main, build, arguments(tmp_path / "broken"), small_folder)
    assert end.value.code == 1 and "failed after" not in capsys.readouterr().out
    (tmp_path / "broken" / ".lock").unlink()  # a process that has ended holds it no more
    expected = "failed after step 2: out of memory (out of memory: a page about it)"
    assert describe(tmp_path / "broken")[-1] == expected


def test_a_run_of_several_seeds_names_the_others(tmp_path):
    for seed in (9, 10):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "config.json").write_text(json.dumps({"values": {"seed": seed}}))
    (tmp_path / "seed-11").mkdir()  # not begun
    assert describe(tmp_path / "seed-10")[-2] == "10 of 9, 10"
    (tmp_path / "seed-10").rename(tmp_path / "alone")
    assert describe(tmp_path / "alone")[-2] == "10" and describe(tmp_path / "seed-9")[-2] == "9"


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
