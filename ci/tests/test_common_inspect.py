"""common/tools/checkpoint.py: what is said of a checkpoint, and of a file that is none."""

from pathlib import Path

import pytest
import torch

from ci.tests import small_folder
from ci.tests.small_folder import arguments, build, main
from ci.tests.test_common_tensors import flip
from common.start import carry_out
from common.tools.checkpoint import main as command


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that was stopped after three steps of eight, and went on with another rate to the fourth."""
    folder = tmp_path_factory.mktemp("inspect") / "run"
    for flags in ({"max_steps": 3}, {"max_steps": 4, "lr": 0.5, "resume": "auto", "resume_anyway": 1}):
        carry_out(main, build, arguments(folder, **flags), small_folder)
    return folder


def said(path: Path, capsys) -> dict[str, str]:
    """What `inspect` prints of a file, by the name of its line."""
    capsys.readouterr()
    command(["inspect", str(path)])
    lines = capsys.readouterr().out.splitlines()
    return {line[:10].rstrip(): line[12:] for line in lines}


def refusal(path: Path, capsys) -> str:
    """The one line that is said instead, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command(["inspect", str(path)])
    printed = capsys.readouterr()
    assert end.value.code == 2 and not printed.out and printed.err.count("\n") == 1
    return printed.err


def test_a_training_state_says_what_it_is_and_what_made_it(run, capsys):
    path = run / "checkpoints" / "last.pt"
    lines = said(path, capsys)
    score = torch.load(path, weights_only=True)["best"]
    assert lines["file"].startswith(f"{path}, 0.0 MiB") and lines["kind"] == "training state (segmentation-zoo-2)"
    assert lines["model"] == "Network" and lines["weights"] == "9 tensors, 144 values"
    assert lines["step"] == "4 of 8, of 2 images each" and lines["score"] == f"{score:.4f}, the best so far"
    assert lines["finite"] == "all values" and lines["checksum"] == "right"
    assert lines["preset"] == "default" and "--lr=0.5" in lines["flags"].split()
    assert lines["training"].startswith("8 pictures, names ") and lines["validation"].startswith("3 pictures")
    assert lines["changed"] == "after step 3: --lr: 0.1, now 0.5"
    assert lines["made by"].startswith(("commit ", "version "))


def test_weights_are_called_that(run, capsys):
    assert said(run / "checkpoints" / "best.pt", capsys)["kind"] == "weights (segmentation-zoo-2)"


def test_a_checkpoint_of_the_first_version_is_described(run, tmp_path, capsys):
    content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    del content["made_by"]
    torch.save({**content, "format": "segmentation-zoo-1"}, tmp_path / "last.pt")
    lines = said(tmp_path / "last.pt", capsys)
    assert lines["kind"] == "training state (segmentation-zoo-1)" and lines["step"] == "4, of 2 images each"
    assert lines["made by"] == "not said: written by an earlier version" and "flags" not in lines


def test_weights_of_another_program_are_described(tmp_path, capsys):
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, tmp_path / "theirs.pt")
    lines = said(tmp_path / "theirs.pt", capsys)
    assert lines["kind"] == "file of another program, or weights alone" and lines["weights"] == "2 tensors, 10 values"
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert said(tmp_path / "old.pt", capsys)["checksum"] == "none in the file"
    torch.save({"a": torch.tensor([1.0, torch.nan])}, tmp_path / "theirs.pt")
    assert "not finite: a (1 of 2 values)" in refusal(tmp_path / "theirs.pt", capsys)


def test_a_file_that_is_damaged_is_one_line_and_exit_code_2(run, tmp_path, capsys):
    path = tmp_path / "last.pt"
    whole = (run / "checkpoints" / "last.pt").read_bytes()
    path.write_bytes(whole)
    flip(path, "data/0")
    assert "last.pt is damaged in model.first.weight, whose checksum is wrong" in refusal(path, capsys)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut off" in refusal(path, capsys)
    path.write_bytes(b"")
    assert "(0 bytes)" in refusal(path, capsys)
    path.unlink()
    assert "no checkpoint" in refusal(path, capsys)
