"""common/tools/checkpoint.py: what is said of a checkpoint, and of a file that is none."""

import sys
from pathlib import Path

import pytest
import torch

from ci.tests import small_folder
from ci.tests.folders import module
from ci.tests.small_folder import arguments, build, main
from ci.tests.test_common_tensors import flip
from ci.tests.test_foreign_weights import their_name
from common.record.checkpoint import load_model, read
from common.record.tensors import Unusable
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


def converted(capsys, *words) -> str:
    capsys.readouterr()
    command(["convert", *map(str, words)])
    return capsys.readouterr().out


def test_weights_of_another_program_become_a_checkpoint_of_ours(tmp_path, capsys):
    """The folder is found by the tensors; so are the options of its network."""
    build_model, from_reference = (
        module("AttentionUNet", "model").build_model,
        module("AttentionUNet", "weights").from_reference,
    )
    network = build_model(num_classes=3, arch="U_Net", base_channels=2).eval()
    source, target = tmp_path / "U_Net.pkl", tmp_path / "new" / "ours.pt"
    torch.save({their_name(name): value for name, value in network.state_dict().items()}, source)
    line = converted(capsys, source, target)
    assert line.startswith(f"{source}: a network of Image_Segmentation: 156 tensors taken") and f" to {target}" in line
    lines = said(target, capsys)
    assert lines["kind"] == "weights (segmentation-zoo-2)" and lines["checksum"] == "right"
    assert "--arch=U_Net" in lines["model"] and lines["preset"] == "none: converted from U_Net.pkl"
    loaded = load_model(target, build_model, from_reference, {}).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), network(images))
    for words, said_of in (((source, target), "already exists"), ((source, tmp_path / "a.bin"), "end its name in")):
        with pytest.raises(SystemExit):
            converted(capsys, *words)
        assert said_of in capsys.readouterr().err
    torch.save({"a": torch.ones(1)}, source)
    with pytest.raises(SystemExit):
        converted(capsys, source, tmp_path / "b.pt")
    assert "no folder knows what" in capsys.readouterr().err


def test_a_training_state_becomes_weights_in_either_form(run, tmp_path, capsys, monkeypatch):
    last = run / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    assert converted(capsys, last, tmp_path / "a.pt").startswith(f"{last}: our Network; written to")
    assert read(tmp_path / "a.pt").keys() == state.keys() - {"optimizer", "amp"}
    with pytest.raises(SystemExit):
        converted(capsys, last, tmp_path / "b.pt", "--model", "ICNet")
    assert "is a checkpoint of our Network, and --model ICNet builds ICNet; leave" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "safetensors", None)
        patched.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(SystemExit):
            converted(capsys, last, tmp_path / "a.safetensors")
        assert f"{tmp_path / 'a.safetensors'} needs the package safetensors" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]
    pytest.importorskip("safetensors")
    converted(capsys, tmp_path / "a.pt", tmp_path / "a.safetensors")
    before, after = read(tmp_path / "a.pt"), read(tmp_path / "a.safetensors")
    assert all(torch.equal(value, after["model"][name]) for name, value in before.pop("model").items())
    assert before == {name: value for name, value in after.items() if name != "model"}
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    with pytest.raises(Unusable, match=r"a\.safetensors is damaged"):
        read(tmp_path / "a.safetensors")


def test_published_files_are_listed_with_what_is_known_of_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    folder = tmp_path / ".torch" / "models"
    folder.mkdir(parents=True)
    (folder / "resnet50-25c4b509.pth").write_bytes(bytes(1 << 20))
    command(["list"])
    lines = capsys.readouterr().out.splitlines()
    sha1 = "25c4b50959ef024fcc050213a06b614899f94b3d"
    where = folder / "resnet50-25c4b509.pth"
    assert f"ICNet resnet50: {where.name}, SHA-1 {sha1}, size unknown; {where}, 1.0 MiB" in lines
    found = "resnet18-f37072fd.pth, hash begins f37072fd, 44.7 MiB by torchvision; not found"
    assert f"BiSeNetv1 resnet18: {found}" in lines and f"looked in {folder}" in lines
