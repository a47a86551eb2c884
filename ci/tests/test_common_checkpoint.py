"""common/record/checkpoint.py: what a run writes, what is no checkpoint, and a run that comes back as it was."""

import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests.common_workers import Normalised, seeded_model, world
from ci.tests.folders import FOLDERS, carry_out
from common.errors import InputError
from common.record.checkpoint import (
    Progress,
    continues_run,
    find_resume,
    load_model,
    load_weights,
    read,
    read_resumable,
    resume,
    save,
)
from common.step.amp import Amp
from common.step.schedule import set_lr

IMAGES_PER_STEP = 8


def started(level="O0", lr=0.1, model=None, fused=True, scale="dynamic", rank=0) -> Amp:
    """A network and its optimizer before the first step."""
    model = model or seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=fused)
    return Amp(model, optimizer, level, scale, world(rank, rank + 1))


def train(amp, steps):
    losses = []
    for step in steps:
        images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        with amp.autocast():
            loss = amp.model(images).float().square().mean() * (float("inf") if step == 1 else 1)
        amp.step(loss)
        losses.append(loss.item())
    return losses


def saved(folder, level="O0", steps=4, is_best=False, best=0.25, rank=0) -> Amp:
    """What has been trained for some steps and saved."""
    amp = started(level, rank=rank)
    train(amp, range(steps))
    save(folder, amp, Progress(steps, best, IMAGES_PER_STEP), is_best)
    return amp


def last(folder) -> Path:
    return folder / "checkpoints" / "last.pt"


def own_options(amp) -> list[dict]:
    """What the optimizer's groups hold besides their weights."""
    return [{key: value for key, value in group.items() if key != "params"} for group in amp.optimizer.param_groups]


# ---- writing


def test_only_the_best_so_far_is_written_to_best(tmp_path):
    saved(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["last.pt"]
    model = saved(tmp_path, steps=5, is_best=True, best=0.5).model
    best = read(tmp_path / "checkpoints" / "best.pt")
    assert (best["best"], best["steps_done"]) == (0.5, 5)
    assert "optimizer" not in best and "amp" not in best
    saved(tmp_path, steps=6)
    assert read(tmp_path / "checkpoints" / "best.pt")["steps_done"] == 5
    assert read(last(tmp_path))["steps_done"] == 6
    assert all(torch.equal(value, best["model"][name]) for name, value in model.state_dict().items())


def test_only_the_main_process_writes(tmp_path):
    saved(tmp_path, rank=1)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_the_file_holds_no_pickled_objects_and_float32_weights(tmp_path, level):
    saved(tmp_path, level, is_best=True)
    for name in ("last.pt", "best.pt"):
        content = torch.load(tmp_path / "checkpoints" / name, weights_only=True)
        assert content["images_per_step"] == IMAGES_PER_STEP
        assert (content["model_class"], content["options"]) == ("Normalised", {"width": 3})
        for key, value in content["model"].items():
            assert value.dtype == (torch.int64 if key.endswith("tracked") else torch.float32)


# ---- resuming


def momentum(amp) -> list[torch.Tensor]:
    state = amp.optimizer.state
    return [state[weight]["momentum_buffer"] for group in amp.optimizer.param_groups for weight in group["params"]]


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, level):
    amp = saved(tmp_path, level)
    expected = train(amp, range(4, 8))

    other = started(level)
    nn.init.constant_(other.model.head.bias, 3.0)
    content = read_resumable(last(tmp_path), seeded_model(), IMAGES_PER_STEP)
    assert resume(content, other) == Progress(4, 0.25, IMAGES_PER_STEP)
    assert train(other, range(4, 8)) == expected
    for name, value in amp.model_state().items():
        assert torch.equal(value, other.model_state()[name]), name
    for ours, theirs in zip(momentum(amp), momentum(other), strict=True):
        assert torch.equal(ours, theirs)
    assert amp.state_dict() == other.state_dict()
    assert amp.skipped_steps.item() == 1


def test_a_run_without_a_score_so_far_has_none(tmp_path):
    saved(tmp_path, best=None)
    assert resume(read(last(tmp_path)), started()) == Progress(4, None, IMAGES_PER_STEP)


def test_a_resumed_run_uses_its_own_rates_and_its_own_way_to_compute(tmp_path):
    """What is on the command line holds, and a device without fused optimizers can continue a run of one that has."""
    amp = started(lr=0.1)
    set_lr(amp.optimizer, 0.5)  # which leaves the initial rate in the group
    train(amp, range(3))
    save(tmp_path, amp, Progress(3, None, IMAGES_PER_STEP))
    other = started(lr=0.025, fused=False)
    before = own_options(other)
    resume(read(last(tmp_path)), other)
    assert own_options(other) == before
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(momentum(other), momentum(amp), strict=True))
    set_lr(other.optimizer, 0.5)
    assert other.optimizer.param_groups[0]["lr"] == 0.0125


def test_a_checkpoint_of_other_options_is_refused_with_both_sides_named(tmp_path):
    saved(tmp_path)
    wider = Normalised()
    wider.head = nn.Conv2d(3, 9, 1)
    with pytest.raises(InputError, match=r"\{'width': 3\}.*size mismatch for head.weight") as error:
        resume(read(last(tmp_path)), started(model=wider))
    assert "\n" not in str(error.value)


def test_an_optimizer_of_other_groups_is_refused(tmp_path):
    saved(tmp_path)
    model = seeded_model()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    with pytest.raises(InputError, match="parameter groups"):
        resume(read(last(tmp_path)), Amp(model, optimizer, "O0", "1", world()))


def test_weights_alone_and_checkpoints_of_another_network_cannot_be_continued(tmp_path):
    saved(tmp_path, is_best=True)
    with pytest.raises(InputError, match=r"best\.pt holds weights and no training state.*--load_from"):
        read_resumable(tmp_path / "checkpoints" / "best.pt", seeded_model(), IMAGES_PER_STEP)
    torch.save(seeded_model().state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(InputError, match=r"foreign\.pth holds weights and no training state"):
        read_resumable(tmp_path / "foreign.pth", seeded_model(), IMAGES_PER_STEP)
    other = nn.Linear(1, 1)
    other.options = {}
    with pytest.raises(InputError, match=r"last\.pt is of a run of Normalised .* this is one of Linear \{\}"):
        read_resumable(last(tmp_path), other, IMAGES_PER_STEP)


def test_a_run_of_steps_of_another_size_cannot_be_continued(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match="in steps of 8 images, this is one in steps of 16;"):
        read_resumable(last(tmp_path), seeded_model(), 16)


def test_load_model_builds_what_the_file_holds(tmp_path):
    model = saved(tmp_path).model
    built_with = []

    def build_model(width):
        built_with.append(width)
        return Normalised()

    loaded = load_model(last(tmp_path), build_model, dict, {"width": 99})
    assert built_with == [3]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_load_model_refuses_a_checkpoint_that_the_folder_does_not_build(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match=r"a checkpoint of Normalised \{'width': 3\}, which this folder does not"):
        load_model(last(tmp_path), lambda depth: None, dict, {})


def test_find_resume(tmp_path):
    assert find_resume("", tmp_path) is None
    assert find_resume("auto", tmp_path) is None
    saved(tmp_path)
    assert find_resume("auto", str(tmp_path)) == last(tmp_path)
    assert find_resume(str(last(tmp_path)), tmp_path / "else" / "where") == last(tmp_path)
    assert find_resume("", tmp_path) is None


@pytest.mark.parametrize("name", ["nowhere.pt", "folder"])
def test_a_checkpoint_to_resume_that_is_named_and_is_not_there_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"no checkpoint .*{name}; give a file"):
        find_resume(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_is_refused_before_anything_else_is_opened(folder, tmp_path):
    """Neither the data set, which is not there, nor the folder of the run, which could not be made."""
    (tmp_path / "file").touch()
    missing, flags = tmp_path / "nowhere.pt", {"preset": "tiny", "device": "cpu", "output_dir": tmp_path / "file"}
    with pytest.raises(InputError, match=r"no checkpoint .*nowhere\.pt; give a file"):
        carry_out(folder, resume=missing, data_path=tmp_path / "no_data", **flags)
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_whose_checkpoints_lie_on_another_disk_is_the_same_run(tmp_path):
    saved(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for output_dir in (tmp_path / "run", tmp_path / "link"):
        assert continues_run(find_resume("auto", output_dir), tmp_path / "run")
    assert not continues_run(find_resume("auto", tmp_path / "run"), tmp_path / "disk")


# ---- files that are none


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def write_bad(kind: str, path: Path) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("lr: 0.1\n")
    elif kind == "cut off":
        torch.save(seeded_model().state_dict(), path)
        path.write_bytes(path.read_bytes()[:-700])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Trap(path.parent / "sprung")}, protocol=2))
    elif kind == "objects":
        torch.save({"state_dict": seeded_model().state_dict(), "args": Namespace(lr=1)}, path)
    elif kind == "trap":
        torch.save({"model": Trap(path.parent / "sprung")}, path)


@pytest.mark.parametrize("kind", ["empty", "text", "cut off", "pickle", "objects", "trap"])
def test_a_file_that_is_no_checkpoint_is_refused_and_nothing_in_it_is_executed(tmp_path, kind):
    path = tmp_path / "some.pt"
    write_bad(kind, path)
    reason = r"some\.pt (is damaged, cut off|holds objects other than tensors).* no file of weights; give another"
    with pytest.raises(InputError, match=reason) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


def test_the_trap_of_these_tests_works(tmp_path):
    write_bad("pickle", tmp_path / "some.pt")
    pickle.loads((tmp_path / "some.pt").read_bytes())["model"].close()
    assert (tmp_path / "sprung").exists()


def test_missing_files_and_files_of_something_else(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint .*nowhere\.pt; give a file"):
        read(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="no checkpoint"):
        read(tmp_path)  # a folder
    for content, name in ((torch.zeros(3), "Tensor"), ([1, 2], "list"), ({}, "dict")):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(InputError, match=rf"x\.pt holds a {name} and no weights"):
            read(tmp_path / "x.pt")


# ---- weights


def trained_state():
    amp = started()
    train(amp, range(3))
    return amp.model.state_dict()


def assert_loaded(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_load_weights_of_our_checkpoints(tmp_path):
    trained = saved(tmp_path, is_best=True).model
    for name in ("last.pt", "best.pt"):
        model = Normalised()
        load_weights(tmp_path / "checkpoints" / name, model, from_reference=lambda content: pytest.fail("not foreign"))
        assert_loaded(model, trained.state_dict())


def test_load_weights_of_the_reference_goes_through_its_translation(tmp_path):
    state = trained_state()
    torch.save({"net": OrderedDict((f"module.{name}", value) for name, value in state.items())}, tmp_path / "r.pth")
    model = Normalised()
    load_weights(
        tmp_path / "r.pth", model, lambda content: {k.removeprefix("module."): v for k, v in content["net"].items()}
    )
    assert_loaded(model, state)


def test_a_plain_state_dict_needs_no_translation_and_no_batch_counters(tmp_path):
    state = trained_state()
    torch.save({name: value for name, value in state.items() if "tracked" not in name}, tmp_path / "old.pth")
    model = Normalised()
    load_weights(tmp_path / "old.pth", model)
    assert_loaded(model, state | {"norm.num_batches_tracked": torch.tensor(0)})


def test_missing_unexpected_and_misshaped_weights_are_counted_and_named(tmp_path):
    state = trained_state()
    del state["norm.weight"], state["head.bias"]
    state |= {"head.weight": torch.zeros(7, 3, 1, 1), **{f"fc.{i}": torch.zeros(1) for i in range(5)}}
    torch.save(state, tmp_path / "w.pth")
    model = seeded_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(tmp_path / "w.pth", model)
    message = str(error.value)
    assert "2 missing: head.bias, norm.weight" in message
    assert "5 unexpected: fc.0, fc.1, fc.2, ..." in message
    assert "1 of another shape: head.weight" in message
    assert "w.pth" in message and "Normalised {'width': 3}" in message and "\n" not in message
    assert_loaded(model, before)  # nothing is half loaded


def test_our_checkpoint_of_other_options_is_refused_naming_them(tmp_path):
    saved(tmp_path, is_best=True)
    wider = Normalised()
    wider.options = {"width": 5}
    wider.head = nn.Conv2d(3, 9, 1)
    with pytest.raises(InputError, match=r"a Normalised \{'width': 3\}.*Normalised \{'width': 5\}: 2 of another shape"):
        load_weights(tmp_path / "checkpoints" / "best.pt", wider)


def test_skipped_names_keep_their_values_and_may_be_missing_or_misshaped(tmp_path):
    state = trained_state()
    torch.save(
        {**state, "head.weight": torch.zeros(9, 3, 1, 1), "head.extra": torch.zeros(1), "aux.w": torch.zeros(1)},
        tmp_path / "w.pth",
    )
    model = seeded_model()
    own = model.head.weight.clone()
    load_weights(tmp_path / "w.pth", model, skip=("head.", "aux."))
    assert torch.equal(model.head.weight, own)
    assert torch.equal(model.norm.weight, state["norm.weight"])
    with pytest.raises(InputError, match=r"1 unexpected: aux\.w"):
        load_weights(tmp_path / "w.pth", model, skip=("head.",))


def test_a_training_state_that_is_no_weights_is_refused(tmp_path):
    torch.save({"norm.weight": "text", "state": {}, "param_groups": []}, tmp_path / "o.pth")
    with pytest.raises(InputError, match=r"missing: head\.bias, .*2 unexpected: param_groups, state; .*norm\.weight"):
        load_weights(tmp_path / "o.pth", seeded_model())
