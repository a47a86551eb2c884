"""common/record/checkpoint.py and resuming.py: what is a checkpoint and what is none, and a run that comes back."""

import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ci.tests.common_workers import Normalised, seeded_model, world
from ci.tests.folders import FOLDERS, carry_out
from common.errors import InputError
from common.record.checkpoint import FIELDS, TRAINING_FIELDS, Progress, load_model, load_weights, read, state_of
from common.record.resuming import continues_run, find_resume, read_newest, resume
from common.record.tensors import Unusable
from common.step.amp import Amp
from common.step.schedule import set_lr
from common.trained import load_trained

IMAGES_PER_STEP = 8
CODE = {"commit": "0123456789abcdef", "changed": False, "version": None}
MADE_BY = {"preset": "default", "flags": {}, "data": {}, "code": CODE, "schedule_steps": 9, "changes": []}


def started(level="O0", lr=0.1, model=None, fused=True, scale="dynamic") -> Amp:
    """A network and its optimizer before the first step."""
    model = model or seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=fused)
    return Amp(model, optimizer, level, scale, world())


def train(amp, steps):
    losses = []
    for step in steps:
        images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        with amp.autocast():
            loss = amp.model(images).float().square().mean() * (float("inf") if step == 1 else 1)
        amp.step(loss)
        losses.append(loss.item())
    return losses


def save(folder, amp, progress) -> None:
    """Write last.pt and best.pt."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    for name, state in zip(("best.pt", "last.pt"), state_of(amp, progress, MADE_BY), strict=True):
        torch.save(state, folder / "checkpoints" / name)


def saved(folder, level="O0", steps=4, best=0.25) -> Amp:
    """What has been trained for some steps and saved."""
    amp = started(level)
    train(amp, range(steps))
    save(folder, amp, Progress(steps, best, IMAGES_PER_STEP))
    return amp


def read_resumable(path, model, images_per_step) -> dict:
    return read_newest([path], model, images_per_step).content


def last(folder) -> Path:
    return folder / "checkpoints" / "last.pt"


def own_options(amp) -> list[dict]:
    """What the optimizer's groups hold besides their weights."""
    return [{key: value for key, value in group.items() if key != "params"} for group in amp.optimizer.param_groups]


# ---- writing


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_the_file_holds_no_pickled_objects_and_float32_weights(tmp_path, level):
    saved(tmp_path, level)
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


def test_a_checkpoint_of_another_network_is_refused_with_both_shapes(tmp_path):
    saved(tmp_path)
    wider = Normalised()
    wider.head = nn.Conv2d(3, 9, 1)
    expected = r"of another shape: .* head\.weight \(\[4, 3, 1, 1\] in the file, \[9, 3, 1, 1\] needed\)"
    with pytest.raises(InputError, match=expected) as error:
        read_resumable(last(tmp_path), wider, IMAGES_PER_STEP)
    assert "\n" not in str(error.value)


def test_an_optimizer_of_other_groups_is_refused(tmp_path):
    saved(tmp_path)
    model = seeded_model()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    with pytest.raises(InputError, match=r"parameter groups of \[4\] tensors, and this run one of \[1, 1, 1, 1\]"):
        resume(read(last(tmp_path)), Amp(model, optimizer, "O0", "1", world()))


def test_the_state_of_an_optimizer_of_other_weights_is_refused(tmp_path):
    saved(tmp_path)
    content = read(last(tmp_path))
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(7)
    with pytest.raises(InputError, match=r"momentum_buffer \[7\] for a weight of \[\d"):
        resume(content, started())


def test_weights_alone_and_checkpoints_of_another_network_cannot_be_continued(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match=r"best\.pt holds weights and no training state.*--load_from"):
        read_resumable(tmp_path / "checkpoints" / "best.pt", seeded_model(), IMAGES_PER_STEP)
    torch.save(seeded_model().state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(InputError, match=r"foreign\.pth holds weights and no training state"):
        read_resumable(tmp_path / "foreign.pth", seeded_model(), IMAGES_PER_STEP)
    other = nn.Linear(1, 1)
    other.options = {"bias": True}  # the options of one network are not those of another
    with pytest.raises(InputError, match=r"is of a run of Normalised \{'width': 3\}, this is one of Linear \{'bias'"):
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


@pytest.mark.parametrize("given, said", [(["width"], 1), ([], 0)])
def test_options_of_the_command_line_that_are_not_the_files_are_said(tmp_path, given, said):
    saved(tmp_path)
    args, lines = Namespace(checkpoint=last(tmp_path), given=["lr", *given]), []
    load_trained(args, lambda width: Normalised(), dict, {"width": 99}, lines.append)
    assert lines[1:] == [f"--width 99 is not used: {last(tmp_path)} has 3"] * said


def test_load_model_refuses_a_checkpoint_that_the_folder_does_not_build(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match=r"a checkpoint of Normalised \{'width': 3\}, which this folder does not"):
        load_model(last(tmp_path), lambda depth: None, dict, {})


def test_find_resume(tmp_path):
    assert find_resume("", tmp_path) == find_resume("auto", tmp_path) == []
    saved(tmp_path)
    assert find_resume("auto", str(tmp_path)) == [last(tmp_path)]
    with pytest.raises(InputError, match=r"is a folder and no checkpoint; give a file of it: .*last\.pt$"):
        find_resume(str(tmp_path), tmp_path)
    assert find_resume(str(last(tmp_path)), tmp_path / "else" / "where") == [last(tmp_path)]
    assert find_resume("", tmp_path) == []
    names = ["last-9.pt", "last-10.pt", "last-x.pt", "last-11.pt.old"]
    for name in names:
        (tmp_path / "checkpoints" / name).touch()
    found = find_resume("auto", tmp_path)
    assert [path.name for path in found] == ["last.pt", "last-10.pt", "last-9.pt"]
    last(tmp_path).unlink()
    assert find_resume("auto", tmp_path) == found[1:]


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
        assert continues_run(find_resume("auto", output_dir)[0], tmp_path / "run")
    assert not continues_run(find_resume("auto", tmp_path / "run")[0], tmp_path / "disk")


# ---- fields


def spoilt(folder, field, value) -> Path:
    """A last.pt with another value in a field; None: without the field."""
    saved(folder)
    content = torch.load(last(folder), weights_only=True)
    if value is None:
        del content[field]
    else:
        content[field] = value
    torch.save(content, last(folder))
    return last(folder)


@pytest.mark.parametrize("field", list({**FIELDS, **TRAINING_FIELDS}))
def test_a_field_that_is_missing_is_named(tmp_path, field):
    with pytest.raises(Unusable, match=rf"last\.pt is spoilt: its field {field} is missing"):
        read(spoilt(tmp_path, field, None))


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("steps_done", -5, "is -5 and not a whole number of at least 0"),
        ("steps_done", "x", "is 'x' and not a whole"),
        ("steps_done", True, "is True and not a whole"),
        ("images_per_step", 0, "is 0 and not a whole number of at least 1"),
        ("best", float("nan"), "is nan and not a finite number"),
        ("best", "good", "is 'good' and not a finite number"),
        ("model", [torch.zeros(1)], "is a list and not a dictionary of tensors"),
        ("model", {"head.weight": 1.0}, "is a dict and not a dictionary of tensors"),
        ("options", [], "is a list and not a dictionary"),
        ("model_class", 3, "is 3 and not a name"),
        ("made_by", {"flags": {}}, "is a dict and not a description of the run"),
        ("made_by", MADE_BY | {"code": {}}, "is a dict and not a description of the run"),
        ("made_by", MADE_BY | {"data": {"training": {"pairs": 8}}}, "is a dict and not a description of the run"),
        ("made_by", MADE_BY | {"changes": ["--lr"]}, "is a dict and not a description of the run"),
        ("optimizer", {"state": {}}, "is a dict and not the state of an optimizer"),
        ("optimizer", {"state": {0: 1}, "param_groups": []}, "is a dict and not the state of an optimizer"),
        ("optimizer", {"state": {}, "param_groups": [{"lr": 1}]}, "is a dict and not the state of an optimizer"),
        ("amp", {"scaler": {}, "dynamic": 1, "skipped_steps": 0}, "is a dict and not the state of mixed precision"),
        ("amp", {"scaler": {}, "dynamic": True, "skipped_steps": -1}, "is a dict and not the state of mixed"),
    ],
)
def test_a_field_of_another_type_or_value_is_named(tmp_path, field, value, words):
    with pytest.raises(Unusable, match=rf"last\.pt is spoilt: its field {field} {words}") as error:
        read(spoilt(tmp_path, field, value))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_the_version_before_needs_no_field_of_this_one(tmp_path):
    path = spoilt(tmp_path, "made_by", None)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": "segmentation-zoo-1"}, path)
    assert read(path)["steps_done"] == 4


@pytest.mark.parametrize("version, error", [("3", "has the format segmentation-zoo-3 of a newer version"), ("x", None)])
def test_a_checkpoint_of_a_version_to_come_is_not_taken_for_a_damaged_one(tmp_path, version, error):
    path = spoilt(tmp_path, "format", f"segmentation-zoo-{version}")
    if error is None:
        assert read(path)["steps_done"] == 4
        return
    with pytest.raises(InputError, match=error) as raised:
        read(path)
    assert not isinstance(raised.value, Unusable)


@pytest.mark.parametrize("where", ["model", "optimizer"])
def test_values_that_are_not_finite_are_refused_with_their_tensor(tmp_path, where):
    saved(tmp_path)
    content = torch.load(last(tmp_path), weights_only=True)
    tensor = (
        content["model"]["head.weight"] if where == "model" else content["optimizer"]["state"][2]["momentum_buffer"]
    )
    tensor.view(-1)[:2] = torch.tensor([float("nan"), float("inf")])
    torch.save(content, last(tmp_path))
    name = {"model": r"model\.head\.weight", "optimizer": r"optimizer\.state\.2\.momentum_buffer"}[where]
    for attempt in (lambda: load_weights(last(tmp_path), Normalised()), lambda: read(last(tmp_path))):
        with pytest.raises(Unusable, match=rf"last\.pt holds values that are not finite: {name} \(2 of 12 values\)"):
            attempt()


def test_weights_of_others_that_are_not_finite_are_refused_where_they_are_used(tmp_path):
    state = trained_state()
    torch.save({**state, "loss": torch.tensor(float("nan"))}, tmp_path / "w.pth")
    load_weights(tmp_path / "w.pth", Normalised(), lambda content: {k: v for k, v in content.items() if k != "loss"})
    state["norm.running_var"][1] = float("inf")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(Unusable, match=r"w\.pth .* not finite: norm\.running_var \(1 of 3 values\)"):
        load_weights(tmp_path / "w.pth", Normalised())


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64])
def test_weights_of_another_type_are_refused(tmp_path, kind):
    state = trained_state()
    torch.save({**state, "head.weight": state["head.weight"].to(kind)}, tmp_path / "w.pth")
    words = rf"1 of another type: head\.weight \({str(kind)[6:]} in the file, float32 needed\)"
    with pytest.raises(InputError, match=words):
        load_weights(tmp_path / "w.pth", Normalised())


def test_weights_in_half_precision_are_taken(tmp_path):
    state = {name: value.half() if value.is_floating_point() else value for name, value in trained_state().items()}
    torch.save(state, tmp_path / "w.pth")
    model = Normalised()
    load_weights(tmp_path / "w.pth", model)
    assert torch.equal(model.head.weight, state["head.weight"].float())


# ---- the newest that is whole


def newest_of_three(folder, damaged: int) -> list[Path]:
    """Three checkpoints, of which the newest ones are cut off."""
    saved(folder)
    content = torch.load(last(folder), weights_only=True)
    paths = [last(folder), *(folder / "checkpoints" / f"last-{step}.pt" for step in (3, 2))]
    for path, step in zip(paths, (4, 3, 2), strict=True):
        torch.save({**content, "steps_done": step}, path)
    for path in paths[:damaged]:
        path.write_bytes(path.read_bytes()[:-200])
    return paths


@pytest.mark.parametrize("damaged, steps_done", [(0, 4), (1, 3), (2, 2)])
def test_the_newest_that_is_whole_is_taken_and_the_others_are_named(tmp_path, damaged, steps_done):
    paths = newest_of_three(tmp_path, damaged)
    path, content, passed_over = read_newest(find_resume("auto", tmp_path), seeded_model(), IMAGES_PER_STEP)
    assert (path, content["steps_done"]) == (paths[damaged], steps_done)
    assert len(passed_over) == damaged
    for line, bad in zip(passed_over, paths, strict=False):
        assert line.startswith(f"passed over: {bad} is damaged, cut off (")


def test_where_none_is_whole_nothing_is_started(tmp_path):
    newest_of_three(tmp_path, 3)
    with pytest.raises(Unusable, match="none of the 3 checkpoints in .* is whole .*start anew without --resume"):
        read_newest(find_resume("auto", tmp_path), seeded_model(), IMAGES_PER_STEP)


def test_a_file_that_is_named_has_none_besides_it(tmp_path):
    paths = newest_of_three(tmp_path, 1)
    with pytest.raises(
        Unusable, match=r"last-3\.pt, last-2\.pt beside it: --resume auto takes the newest that is whole"
    ):
        read_newest(paths[:1], seeded_model(), IMAGES_PER_STEP)
    with pytest.raises(Unusable, match=r"last\.pt is damaged, cut off"):
        load_weights(paths[0], seeded_model())


def test_one_of_another_run_is_not_passed_over(tmp_path):
    newest_of_three(tmp_path, 0)
    with pytest.raises(InputError, match="in steps of 8 images, this is one in steps of 16") as error:
        read_newest(find_resume("auto", tmp_path), seeded_model(), 16)
    assert not isinstance(error.value, Unusable)


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
        torch.save({"state_dict": seeded_model().state_dict(), "args": SimpleNamespace(lr=1)}, path)
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
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").touch()
    with pytest.raises(InputError, match=rf"is a folder .*{tmp_path}/checkpoints/best\.pt$"):
        read(tmp_path)
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
    trained = saved(tmp_path).model
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
    assert "1 of another shape: head.weight ([7, 3, 1, 1] in the file, [4, 3, 1, 1] needed)" in message
    assert "w.pth" in message and "Normalised {'width': 3}" in message and "\n" not in message
    assert_loaded(model, before)  # nothing is half loaded


def test_our_checkpoint_of_other_options_is_refused_naming_them(tmp_path):
    saved(tmp_path)
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
    with pytest.raises(
        InputError, match=r"missing: head\.bias, .*2 unexpected: param_groups, state; 1 not a tensor: norm\.weight"
    ):
        load_weights(tmp_path / "o.pth", seeded_model())
