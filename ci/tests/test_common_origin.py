"""common/record/origin.py: a checkpoint knows what made it, and another run does not continue it unasked."""

import shutil
from pathlib import Path

import pytest
import torch

from ci.tests import small_folder
from ci.tests.runs import last_checkpoint
from ci.tests.small_folder import Pictures, arguments, build, main
from common.errors import InputError
from common.flags import FLAGS
from common.record import origin
from common.record.differences import ANOTHER_RUN, CHANGES, SAME_RUN
from common.record.origin import SAMPLED, compare, fingerprint
from common.start import carry_out

BEGUN = {"max_steps": 2, "validate": 0}


def whole(output_dir: Path, **flags) -> dict:
    return carry_out(main, build, arguments(output_dir, **flags), small_folder)


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run that was stopped after two of eight steps."""
    whole(tmp_path / "run", **BEGUN)
    return tmp_path / "run"


def said(output_dir: Path) -> str:
    return (output_dir / "train.log").read_text()


def test_it_is_decided_of_every_flag_what_a_change_of_it_means():
    known = {name for flags in FLAGS.values() for name in flags}
    assert known == ANOTHER_RUN | CHANGES | SAME_RUN
    assert len(known) == len(ANOTHER_RUN) + len(CHANGES) + len(SAME_RUN)
    assert {"optimizer", "schedule"} <= FLAGS.keys() and not FLAGS["optimizer"].keys() - ANOTHER_RUN


def test_a_checkpoint_tells_what_made_it(begun):
    made_by = last_checkpoint(begun)["made_by"]
    assert made_by["flags"]["lr"] == 0.1 and made_by["flags"]["seed"] == 0 and made_by["preset"] == "default"
    assert made_by["schedule_steps"] == 8 and made_by["changes"] == []
    assert made_by["data"]["training"]["pairs"] == 8 and "validation" not in made_by["data"]
    assert not {"output_dir", "max_steps", "workers"} & made_by["flags"].keys()
    assert made_by["code"]["commit"] or made_by["code"]["version"]


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"lr": 0.5}, "--lr: 0.1, now 0.5"),
        ({"seed": 99}, "--seed: 0, now 99"),
        ({"epochs": 4}, "length of the schedule: 8 steps, now 16"),
        ({"lr": 0.5, "seed": 99}, "--lr: 0.1, now 0.5; --seed: 0, now 99"),
    ],
)
def test_another_run_is_refused_unless_it_is_to_continue_anyway(begun, flags, words):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=rf"last\.pt is of another run: {words}; .*--resume_anyway"):
        whole(begun, **BEGUN | {"max_steps": 3}, **flags, resume="auto")
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before
    whole(begun, **BEGUN | {"max_steps": 3}, **flags, resume="auto", resume_anyway=1)
    for difference in words.split("; "):
        assert f"\nchanged since the checkpoint: {difference}\n" in said(begun)
    assert last_checkpoint(begun)["made_by"]["changes"] == [{"after_step": 2, "differences": words.split("; ")}]
    whole(begun, validate=0, **flags, resume="auto")  # as it goes on now
    assert len(last_checkpoint(begun)["made_by"]["changes"]) == 1


@pytest.mark.parametrize(
    "before, now, kept", [("sgd", "adamw", False), ("adam", "sgd", False), ("adam", "adamw", True)]
)
def test_the_state_of_another_optimizer_is_taken_where_it_fits_and_else_begins_anew(tmp_path, before, now, kept):
    run = tmp_path / "run"
    whole(run, **BEGUN, optimizer=before)
    last = run / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    del content["made_by"]["flags"]["optimizer"]  # as versions before the flag wrote it
    torch.save(content, last)
    with pytest.raises(InputError, match=f"of another run: --optimizer: {before}, now {now}; "):
        whole(run, **BEGUN | {"max_steps": 3}, optimizer=now, resume="auto")
    whole(run, **BEGUN | {"max_steps": 3}, optimizer=now, resume="auto", resume_anyway=1)
    (state, *_) = last_checkpoint(run)["optimizer"]["state"].values()
    assert state.keys() == ({"momentum_buffer"} if now == "sgd" else {"step", "exp_avg", "exp_avg_sq"})
    assert "step" not in state or state["step"] == (3 if kept else 1)


def test_a_run_that_is_complete_is_not_complete_for_other_flags(begun):
    whole(begun, resume="auto")
    with pytest.raises(InputError, match="is of another run: --seed: 0, now 5"):
        whole(begun, resume="auto", seed=5)


@pytest.mark.parametrize("flags", [{"amp": 1}, {"deterministic": 1}, {"compile": 0, "channels_last": 1}])
def test_other_changes_are_said_and_kept(begun, flags):
    whole(begun, **BEGUN | {"max_steps": 3}, **flags, resume="auto")
    (change,) = last_checkpoint(begun)["made_by"]["changes"]
    assert change["after_step"] == 2 and len(change["differences"]) == 1
    assert f"changed since the checkpoint: {change['differences'][0]}" in said(begun)


def test_where_it_computes_and_how_often_it_reports_is_no_difference(begun):
    flags = {"log_every_steps": 2, "save_every_steps": 1, "keep": 4, "workers": 1}
    whole(begun, **BEGUN | {"max_steps": 5}, **flags, resume="auto")
    assert "changed" not in said(begun) and last_checkpoint(begun)["made_by"]["changes"] == []


def test_a_length_in_steps_is_that_in_epochs(begun):
    whole(begun, resume="auto", **BEGUN | {"max_steps": 3}, total_steps=8)
    assert "changed" not in said(begun)


def test_other_data_are_another_run(begun, monkeypatch):
    monkeypatch.setattr(small_folder, "Pictures", lambda length: Pictures(length + 1))
    with pytest.raises(InputError, match="of another run: training data: 8 pictures, now 9"):
        whole(begun, **BEGUN, resume="auto")


def test_a_checkpoint_of_an_earlier_version_is_continued_with_a_word(begun):
    last = begun / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    del content["made_by"]
    torch.save({**content, "format": "segmentation-zoo-1"}, last)
    whole(begun, **BEGUN | {"max_steps": 3}, resume="auto", lr=0.5)
    assert "last.pt is of an earlier version, which does not say what made it: nothing is compared" in said(begun)
    assert last_checkpoint(begun)["made_by"]["flags"]["lr"] == 0.5


def test_another_version_of_the_code_is_said():
    made_by = {"schedule_steps": 1, "data": {}, "flags": {}, "code": {"commit": "a" * 40, "changed": False}}
    now = made_by | {"code": {"commit": "b" * 40, "changed": True}}
    assert compare(made_by, now) == ([], [f"code: commit {'a' * 10}, now commit {'b' * 10} with changes"])


# ---- the fingerprint


@pytest.fixture
def pairs(tmp_path) -> list[tuple[Path, Path]]:
    """A hundred pictures with labels, in two folders."""
    files = [(tmp_path / "data" / "in" / f"{i}.jpg", tmp_path / "data" / "out" / f"{i}.png") for i in range(100)]
    for index, pair in enumerate(files):
        for path in pair:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([index]) * 10)
    return files


def test_moving_the_folder_is_no_difference(pairs, tmp_path):
    before = fingerprint(pairs)
    shutil.move(tmp_path / "data", tmp_path / "elsewhere" / "renamed")
    moved = [
        tuple(tmp_path / "elsewhere" / "renamed" / path.relative_to(tmp_path / "data") for path in pair)
        for pair in pairs
    ]
    assert fingerprint(moved) == before and before["pairs"] == 100


@pytest.mark.parametrize("index", [0, 50, 99])
def test_a_label_of_another_size_and_the_content_of_some_are_found(pairs, index):
    before = fingerprint(pairs)
    content = pairs[index][1].read_bytes()
    pairs[index][1].write_bytes(content + b"x")
    assert fingerprint(pairs) == before | {"labels": fingerprint(pairs)["labels"]} != before


def test_labels_that_were_drawn_anew_are_found(pairs):
    before = fingerprint(pairs)
    for _, label in pairs:
        label.write_bytes(b"0123456789")
    assert fingerprint(pairs)["labels"] != before["labels"]


def test_names_and_their_order_count(pairs):
    before = fingerprint(pairs)["names"]
    others = [pairs[::-1], pairs[:-1], [*pairs[:-1], (pairs[-1][0].with_name("other.jpg"), pairs[-1][1])]]
    assert before not in [fingerprint(other)["names"] for other in others]


def test_few_labels_are_opened(pairs, monkeypatch):
    opened, real = [], Path.read_bytes
    monkeypatch.setattr(origin.Path, "read_bytes", lambda path: opened.append(path) or real(path))
    fingerprint(pairs)
    assert len(opened) == SAMPLED and {path.suffix for path in opened} == {".png"}
    assert {pairs[0][1], pairs[-1][1]} <= set(opened)


def test_few_and_missing_files_are_no_error(pairs):
    pairs[0][1].unlink()
    assert fingerprint(pairs[:2])["pairs"] == 2
    assert fingerprint([])["pairs"] == 0
