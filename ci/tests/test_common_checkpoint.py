"""common/checkpoint.py: files that survive a kill, refuse what is no checkpoint, and bring a run back as it was."""

import errno
import os
import pickle
import signal
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests.common_workers import Normalised, seeded_model, world
from common.amp import Amp
from common.checkpoint import (
    continues_run,
    find_resume,
    load_model,
    load_weights,
    read,
    read_resumable,
    resume,
    save,
    write_atomically,
)
from common.errors import InputError
from common.schedule import set_lr

IMAGES_PER_STEP = 8


def started(level="O0", lr=0.1, model=None, fused=True, scale="dynamic"):
    model = model or seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=fused)
    return model, optimizer, Amp(model, optimizer, level, scale, world())


def train(model, optimizer, amp, steps):
    losses = []
    for step in steps:
        images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        with amp.autocast():
            loss = model(images).float().square().mean() * (float("inf") if step == 1 else 1)
        amp.step(loss)
        losses.append(loss.item())
    return losses


def saved(folder, level="O0", steps=4, is_best=False, best=0.25, rank=0):
    model, optimizer, amp = started(level)
    train(model, optimizer, amp, range(steps))
    save(folder, steps - 1, model, optimizer, amp, best, is_best, IMAGES_PER_STEP, world(rank, rank + 1))
    return model, optimizer, amp


# ---- writing


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of the new")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of the new")
        file.flush()
        os.kill(os.getpid(), number)

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            write_atomically(path, write)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))  # what is left over does not disturb the next one
    assert path.read_bytes() == b"new"


def test_only_the_best_so_far_is_written_to_best(tmp_path):
    saved(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["last.pt"]
    model, _, _ = saved(tmp_path, steps=5, is_best=True, best=0.5)
    best = read(tmp_path / "checkpoints" / "best.pt")
    assert (best["best"], best["steps_done"]) == (0.5, 5)
    assert "optimizer" not in best and "amp" not in best
    saved(tmp_path, steps=6)
    assert read(tmp_path / "checkpoints" / "best.pt")["steps_done"] == 5
    assert read(tmp_path / "checkpoints" / "last.pt")["steps_done"] == 6
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


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, level):
    model, optimizer, amp = saved(tmp_path, level)
    expected = train(model, optimizer, amp, range(4, 8))

    other, other_optimizer, other_amp = started(level)
    nn.init.constant_(other.head.bias, 3.0)
    content = read_resumable(tmp_path / "checkpoints" / "last.pt", seeded_model(), IMAGES_PER_STEP)
    assert resume(content, other_optimizer, other_amp) == (4, 0.25)
    assert train(other, other_optimizer, other_amp, range(4, 8)) == expected
    for name, value in amp.model_state().items():
        assert torch.equal(value, other_amp.model_state()[name]), name
    for ours, theirs in zip(
        optimizer.param_groups[0]["params"], other_optimizer.param_groups[0]["params"], strict=True
    ):
        assert torch.equal(optimizer.state[ours]["momentum_buffer"], other_optimizer.state[theirs]["momentum_buffer"])
    assert amp.state_dict() == other_amp.state_dict()
    assert amp.skipped_steps.item() == 1


def test_a_run_without_a_score_so_far_has_none(tmp_path):
    saved(tmp_path, best=None)
    _, optimizer, amp = started()
    assert resume(read(tmp_path / "checkpoints" / "last.pt"), optimizer, amp) == (4, None)


def test_a_resumed_run_uses_its_own_rates_and_its_own_way_to_compute(tmp_path):
    """What is on the command line holds, and a device without fused optimizers can continue a run of one that has."""
    model, optimizer, amp = started(lr=0.1)
    set_lr(optimizer, 0.5)  # which leaves the initial rate in the group
    train(model, optimizer, amp, range(3))
    save(tmp_path, 2, model, optimizer, amp, None, False, IMAGES_PER_STEP, world())
    _, optimizer, amp = started(lr=0.025, fused=False)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    resume(read(tmp_path / "checkpoints" / "last.pt"), optimizer, amp)
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == before
    assert all("momentum_buffer" in optimizer.state[p] for group in optimizer.param_groups for p in group["params"])
    set_lr(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.0125


def test_a_checkpoint_of_other_options_is_refused_with_both_sides_named(tmp_path):
    saved(tmp_path)
    wider = Normalised()
    wider.head = nn.Conv2d(3, 9, 1)
    _, optimizer, amp = started(model=wider)
    with pytest.raises(InputError, match=r"\{'width': 3\}.*size mismatch for head.weight") as error:
        resume(read(tmp_path / "checkpoints" / "last.pt"), optimizer, amp)
    assert "\n" not in str(error.value)


def test_an_optimizer_of_other_groups_is_refused(tmp_path):
    saved(tmp_path)
    model = seeded_model()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    with pytest.raises(InputError, match="parameter groups"):
        resume(read(tmp_path / "checkpoints" / "last.pt"), optimizer, Amp(model, optimizer, "O0", "1", world()))


def test_weights_alone_and_checkpoints_of_another_network_cannot_be_continued(tmp_path):
    saved(tmp_path, is_best=True)
    last, best = (tmp_path / "checkpoints" / name for name in ("last.pt", "best.pt"))
    with pytest.raises(InputError, match=r"best\.pt holds weights and no training state.*--load_from"):
        read_resumable(best, seeded_model(), IMAGES_PER_STEP)
    torch.save(seeded_model().state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(InputError, match=r"foreign\.pth holds weights and no training state"):
        read_resumable(tmp_path / "foreign.pth", seeded_model(), IMAGES_PER_STEP)
    other = nn.Linear(1, 1)
    other.options = {}
    with pytest.raises(InputError, match=r"last\.pt is of a run of Normalised .* this is one of Linear \{\}"):
        read_resumable(last, other, IMAGES_PER_STEP)


def test_a_run_of_steps_of_another_size_cannot_be_continued(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match="in steps of 8 images, this is one in steps of 16;"):
        read_resumable(tmp_path / "checkpoints" / "last.pt", seeded_model(), 16)


def test_load_model_builds_what_the_file_holds(tmp_path):
    model, _, _ = saved(tmp_path)
    built_with = []

    def build_model(width):
        built_with.append(width)
        return Normalised()

    loaded = load_model(tmp_path / "checkpoints" / "last.pt", build_model, dict, {"width": 99})
    assert built_with == [3]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_load_model_refuses_a_checkpoint_that_the_folder_does_not_build(tmp_path):
    saved(tmp_path)
    with pytest.raises(InputError, match=r"a checkpoint of Normalised \{'width': 3\}, which this folder does not"):
        load_model(tmp_path / "checkpoints" / "last.pt", lambda depth: None, dict, {})


def test_find_resume(tmp_path):
    assert find_resume("", tmp_path) is None
    assert find_resume("auto", tmp_path) is None
    assert find_resume("else/where.pt", tmp_path) == Path("else/where.pt")
    saved(tmp_path)
    assert find_resume("auto", str(tmp_path)) == tmp_path / "checkpoints" / "last.pt"
    assert find_resume("", tmp_path) is None


def test_a_run_whose_checkpoints_lie_on_another_disk_is_the_same_run(tmp_path):
    saved(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "disk")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for output_dir in (tmp_path / "run", tmp_path / "link"):
        assert continues_run(find_resume("auto", output_dir), tmp_path / "run")
    assert not continues_run(find_resume("auto", tmp_path / "run"), tmp_path / "disk")


class FullDisk:
    """A file that takes no more, once it has the first bytes of an archive."""

    def __init__(self, file):
        self.file, self.written = file, 0

    def write(self, data) -> int:
        self.written += len(data)
        if self.written > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_happened(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device.*last.pt") as error:
        write_atomically(path, lambda file: torch.save({"a": torch.zeros(1000)}, FullDisk(file)))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == ["last.pt"] and path.read_bytes() == b"old"


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
    model, optimizer, amp = started()
    train(model, optimizer, amp, range(3))
    return model.state_dict()


def assert_loaded(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_load_weights_of_our_checkpoints(tmp_path):
    trained, _, _ = saved(tmp_path, is_best=True)
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
