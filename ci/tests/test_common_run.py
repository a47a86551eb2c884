"""common/run.py: what a run does and in which order, with a folder in small; `launch` is in test_common_world.py."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests import small_folder
from ci.tests.operators import Operators
from ci.tests.runs import last_checkpoint, metric_rows
from ci.tests.small_folder import Network, Pictures, arguments, build, from_reference, main
from common import run as run_module
from common.data.loading import Feed
from common.data.pictures import Datasets
from common.device.launch import CHECKED
from common.device.world import World
from common.errors import InputError
from common.nets.backbone import ResNet
from common.record.saving import Saver
from common.run import Run
from common.start import carry_out
from common.step.norm import CpuSyncBatchNorm

SHAPE = (2, 3, *small_folder.IMAGE_SIZE)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No torchrun, wherever the tests run."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", CHECKED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(tmp_path):
    """started(name=value ...) -> (run, data sets, network) with an optimizer, where its loop would begin."""

    def start(processes: int = 1, **flags) -> tuple[Run, Datasets, Network]:
        run = Run(arguments(tmp_path / "run", **flags), small_folder, processes)
        data, model = run.build(build)
        run.join()
        run.prepare(model)
        run.optimizer(model.parameters())
        return run, data, model

    return start


def whole(output_dir: Path, **flags) -> dict:
    return carry_out(main, build, arguments(output_dir, **flags), small_folder)


# ---- how long a run is


@pytest.mark.parametrize(
    "flags, processes, images, length",
    [
        ({}, 1, (2, 2), (4, 8, 8)),
        ({}, 2, (2, 4), (2, 4, 4)),
        ({"total_batch_size": 4}, 2, (2, 4), (2, 4, 4)),
        ({"device_batch_size": 3}, 1, (3, 3), (2, 4, 4)),
        ({"device_batch_size": 1, "accumulate": 2}, 2, (1, 4), (2, 4, 4)),
        ({"max_steps": 3}, 1, (2, 2), (4, 8, 3)),
        ({"max_steps": 99}, 1, (2, 2), (4, 8, 8)),
        ({"preset": "in_steps"}, 1, (2, 2), (4, 5, 5)),
        ({"preset": "in_steps", "max_steps": 2}, 1, (2, 2), (4, 5, 2)),
        ({"preset": "in_steps", "epochs": 3}, 1, (2, 2), (4, 12, 12)),
    ],
)
def test_images_of_a_step_and_steps_of_a_run(tmp_path, flags, processes, images, length):
    """images: (of one device, of all of them); length: steps of an epoch, of the schedule, of this run."""
    run = Run(arguments(tmp_path, **flags), small_folder, processes)
    _, model = run.build(build)
    assert (run.device_batch_size, run.images_per_step) == images
    assert run.length == length
    assert model.shapes == [(images[0], 3, *small_folder.IMAGE_SIZE)]


def test_statistics_over_all_processes_see_the_images_of_all(tmp_path):
    _, model = Run(arguments(tmp_path, sync_bn=1), small_folder, 3).build(build)
    assert model.shapes == [(6, 3, *small_folder.IMAGE_SIZE)]


def test_images_that_do_not_divide_and_too_few_of_them(tmp_path):
    with pytest.raises(InputError, match="--total_batch_size 3 images cannot be shared by 2 devices; give a multiple"):
        Run(arguments(tmp_path, total_batch_size=3), small_folder, 2).build(build)
    with pytest.raises(InputError, match="8 training images are fewer than the 10 of one step"):
        Run(arguments(tmp_path), small_folder, 5).build(build)


def test_another_feed_says_how_long_an_epoch_is_and_gives_the_batches(tmp_path):
    asked = []

    def batches(dataset, steps, world, workers):
        asked.append(tuple(steps))
        for step in range(steps.first_step, steps.total_steps):
            yield step, torch.zeros(SHAPE), torch.zeros(SHAPE[0], *SHAPE[2:], dtype=torch.int64)

    feed = Feed(batches, lambda dataset, images: 3)
    result = carry_out(main, build, arguments(tmp_path / "run", validate=0, seed=7), small_folder, feed)
    assert (result["steps"], asked) == (6, [(2, 7, 0, 6, 1)])


# ---- what is looked at before


def test_the_network_depends_on_the_seed_alone(tmp_path):
    torch.manual_seed(1)
    weights = []
    for seed in (4, 4, 5):
        _, model = Run(arguments(tmp_path, seed=seed), small_folder).build(build)
        weights.append(model.first.weight.detach())
        torch.rand(3)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "flags, looked_at", [({}, ([], [])), ({"check_data": 1}, ([False], [True])), ({"check_data": 1, "evaluate": 1}, 0)]
)
def test_labels_are_opened_where_that_is_asked_for(tmp_path, flags, looked_at, monkeypatch):
    """And the pictures of a validation: training reports one when it comes to it."""
    if "evaluate" in flags:
        whole(tmp_path / "trained", max_steps=1)
        flags, looked_at = flags | {"checkpoint": tmp_path / "trained" / "checkpoints" / "best.pt"}, (None, [True])
    for checked in (False, True):  # by the process that has started this one
        if checked:
            monkeypatch.setenv("LOCAL_RANK", "0")
            monkeypatch.setenv(CHECKED, "1")
            looked_at = tuple(None if looks is None else [] for looks in looked_at)
        data, _ = Run(arguments(tmp_path / "run", **flags), small_folder).build(build)
        assert tuple(pictures and pictures.checked for pictures in data[:2]) == looked_at


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"resume": "nowhere.pt"}, "no checkpoint nowhere.pt"),
        ({"evaluate": 1}, "without --checkpoint; name the file"),
        ({"evaluate": 1, "checkpoint": "nowhere.pt"}, "no checkpoint nowhere.pt"),
        ({}, "is not empty and holds no run"),
    ],
)
def test_what_is_known_at_once_is_said_before_the_data_is_listed(tmp_path, flags, message):
    if not flags:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "a letter").touch()
    with pytest.raises(InputError, match=message):
        Run(arguments(tmp_path / "run", **flags), small_folder)


def test_the_weights_that_a_run_begins_with(tmp_path):
    """Those of --resume, before those of --load_from, before those of ImageNet."""
    whole(tmp_path / "run", max_steps=1)
    last, encoder = tmp_path / "run" / "checkpoints" / "last.pt", ResNet("resnet18", stem_widths=(8, 8, 64))
    torch.save(encoder.state_dict(), tmp_path / "imagenet.pth")

    def begun(imagenet=None, **flags) -> tuple[str, Network]:
        run = Run(arguments(tmp_path / "other", **flags), small_folder)
        run.plan(Pictures(8), small_folder.IMAGE_SIZE)
        model = Network()
        run.load(model, from_reference, encoder, lambda backbone, source: imagenet)
        (note,) = run.notes
        return note, model

    trained = torch.load(last, weights_only=True)["model"]["first.weight"]
    assert begun()[0] == "initial weights: random"
    assert begun(tmp_path / "imagenet.pth")[0].startswith("backbone: all ")
    note, model = begun(tmp_path / "imagenet.pth", load_from=last)
    assert note == f"initial weights: {last}: our Network: 9 tensors taken, none left out, none newly initialised"
    assert torch.equal(model.first.weight, trained)
    note, model = begun(tmp_path / "imagenet.pth", load_from=last, resume=last)
    assert note == f"continuing from {last}"


# ---- how it computes


@pytest.mark.parametrize(
    "flags, weights, logits",
    [
        ({}, torch.float32, torch.float32),
        ({"amp": 0, "opt_level": "O2"}, torch.float32, torch.float32),
        ({"amp": 1, "opt_level": "O0"}, torch.float32, torch.float32),
        ({"amp": 1, "opt_level": "O1", "amp_dtype": "bf16"}, torch.float32, torch.bfloat16),
        ({"amp": 1, "opt_level": "O1"}, torch.float32, torch.float16),
        ({"amp": 1, "opt_level": "O2", "amp_dtype": "bf16"}, torch.bfloat16, torch.bfloat16),
        ({"amp": 1, "opt_level": "O2"}, torch.float16, torch.float16),
        ({"amp": 1, "opt_level": "O2", "precision_mode": "must_keep_origin_dtype"}, torch.float32, torch.float32),
    ],
)
def test_the_opt_level_decides_about_weights_and_operators(started, tmp_path, flags, weights, logits):
    run, data, model = started(**flags, max_steps=1, validate=0)
    for _, images, target in run.steps(data.train):
        with run.autocast():
            outputs = run.network(images)
            run.step(small_folder.training_loss(outputs, target))
        run.evaluate(None)
    assert (model.first.weight.dtype, model.norm.weight.dtype) == (weights, torch.float32)
    assert outputs[0].dtype == logits
    assert last_checkpoint(tmp_path / "run")["model"]["first.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    "wanted, processes, kind",
    [(1, 2, CpuSyncBatchNorm), (0, 2, nn.BatchNorm2d), (1, 1, nn.BatchNorm2d)],
)
def test_batch_norms_are_synchronised_where_that_is_asked_for(tmp_path, wanted, processes, kind):
    run = Run(arguments(tmp_path, sync_bn=wanted), small_folder, processes)
    _, model = run.build(build)
    run.world = World(torch.device("cpu"), 0, processes)
    run.prepare(model)
    assert type(model.norm) is kind


def test_the_network_is_laid_out_as_the_device_wants_it(started):
    for flag, layout in ((1, torch.channels_last), (0, torch.contiguous_format)):
        _, _, model = started(channels_last=flag)
        assert model.first.weight.is_contiguous(memory_format=layout)


def test_a_step_does_not_wait_for_the_device(started):
    """Between two lines of the log, which fetch the losses."""
    run, data, _ = started(log_every_steps=100, validate=0, amp=1)
    waits = []
    for step, images, target in run.steps(data.train):
        if 4 < step < 7:  # after the line that ends the warm-up of images/s, and before the last one
            with Operators() as operators, run.autocast():
                run.step(small_folder.training_loss(run.network(images), target))
            waits += [words for words in operators.unwanted if "depends on values" in words]
        else:
            run.step(small_folder.training_loss(run.network(images), target))
    assert waits == []


def test_the_network_is_compiled_where_that_is_asked_for(started, monkeypatch):
    asked, made = [], {"compiled": nn.Identity(), "recorded": nn.Identity()}

    for name, network in made.items():

        def shorten(model, so_far, world, shape, autocast, name=name, network=network):
            asked.append((name, model, so_far, shape))
            return network, f"the network is {name}"

        monkeypatch.setattr(run_module, name, shorten)
    run, data, model = started(compile=1)
    run.args.cuda_graph = True  # refused for a CPU
    next(run.steps(data.train))
    shape = (2, 3, *small_folder.IMAGE_SIZE)
    assert asked == [("compiled", model, model, shape), ("recorded", model, made["compiled"], shape)]
    assert run.network is made["recorded"] and run.model is model
    log = (Path(run.args.output_dir) / "train.log").read_text()
    assert log.index("the network is compiled") < log.index("the network is recorded")


# ---- its loop


@pytest.mark.parametrize(
    "every, steps", [(3, [2, 5, 7]), (4, [3, 7]), (8, [7]), (100, [7]), (1, [0, 1, 2, 3, 4, 5, 6, 7]), (0, [])]
)
def test_what_is_done_every_so_many_steps_comes_after_the_last_one_too(tmp_path, every, steps):
    run = Run(arguments(tmp_path), small_folder)
    run.build(build)
    assert [step for step in range(8) if run.due(step, every)] == steps


@pytest.mark.parametrize(
    "flags, saved",
    [
        ({}, [3, 6, 8]),
        ({"save_every_steps": 2}, [2, 3, 4, 6, 8]),
        ({"save_every_epochs": 1}, [3, 4, 6, 8]),
        ({"save_every_steps": 5, "save_every_epochs": 2}, [3, 5, 6, 8]),
        ({"max_steps": 4}, [3, 4]),
        ({"validate": 0}, [3, 6, 8]),
    ],
)
def test_a_checkpoint_comes_with_each_evaluation_and_as_often_as_asked_for_and_never_twice(
    tmp_path, monkeypatch, flags, saved
):
    """An evaluation is due every third step of eight; an epoch has four."""
    steps, real = [], Saver._write

    def write(saver, name, state):
        if name == "last.pt":
            steps.append((state["steps_done"], state["images_per_step"]))
        real(saver, name, state)

    monkeypatch.setattr(Saver, "_write", write)
    whole(tmp_path / "run", **flags)
    assert steps == [(step, 2) for step in saved]
    evaluated = [row["step"] for row in metric_rows(tmp_path / "run", "eval")]
    assert evaluated == ([] if "validate" in flags else [3, 4] if "max_steps" in flags else [3, 6, 8])


def test_an_evaluation_counts_every_pixel_once(tmp_path):
    whole(tmp_path / "run", max_steps=1)
    (row,) = metric_rows(tmp_path / "run", "eval")
    height, width = small_folder.IMAGE_SIZE
    assert row["pixels"] == 3 * height * width


def test_the_losses_are_logged_by_name(tmp_path):
    whole(tmp_path / "run", max_steps=2)
    for row in metric_rows(tmp_path / "run", "train"):
        assert row["loss"] == pytest.approx(row["loss_main"] + row["loss_aux0"]) and row["loss_aux0"] > 0


# ---- where it was, and how it ends


def test_a_run_that_is_complete_is_not_done_again(tmp_path, capsys):
    result = whole(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert whole(tmp_path / "run", resume="auto") == result
    assert capsys.readouterr().out == f"the run in {tmp_path / 'run'} is complete: 8 of 8 steps are done\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_that_goes_on_in_another_folder_leaves_the_first_one(tmp_path):
    """There it has no best score yet, whose weights lie in the first folder."""
    whole(tmp_path / "first", max_steps=3)
    before = last_checkpoint(tmp_path / "first")
    whole(tmp_path / "second", resume=tmp_path / "first" / "checkpoints" / "last.pt")
    assert [row["step"] for row in metric_rows(tmp_path / "second", "train")] == [4, 5, 6, 7, 8]
    assert (tmp_path / "second" / "checkpoints" / "best.pt").exists()
    assert last_checkpoint(tmp_path / "first")["steps_done"] == before["steps_done"] == 3


@pytest.mark.parametrize("flags, complete", [({}, True), ({"max_steps": 3}, False), ({"max_steps": 8}, True)])
def test_a_run_that_is_cut_off_is_not_complete(started, flags, complete):
    run, data, _ = started(**flags, validate=0)
    for _, images, target in run.steps(data.train):
        run.step(small_folder.training_loss(run.network(images), target))
    assert run.is_complete is complete
    run.finish()


def test_a_run_that_was_complete_before_is_not_complete_here(started, tmp_path):
    """What comes at the end of a training is not done again."""
    whole(tmp_path / "run")
    run, data, _ = started(resume="auto")
    assert list(run.steps(data.train)) == [] and not run.is_complete


def test_more_scores_are_reported(started, tmp_path):
    run, data, _ = started(max_steps=1)
    for _, images, target in run.steps(data.train):
        run.step(small_folder.training_loss(run.network(images), target))
        run.evaluate(data.val)
    result = run.finish({"test_miou": 0.25})
    assert result["test_miou"] == 0.25 and list(result["scores"])[-1] == "test_miou"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_miou"] == 0.25


def test_the_best_weights_on_one_more_split(started, tmp_path):
    """Not those that the training ended with."""
    run, data, model = started(max_steps=1)
    for _, images, target in run.steps(data.train):
        run.step(small_folder.training_loss(run.network(images), target))
        run.evaluate(data.val)
    with torch.no_grad():
        model.last.bias += torch.tensor([99.0, 0.0, 0.0])  # every pixel of the first class
    other = Network()
    scores = run.evaluate_best(other, data.val, "test")
    assert {name.removeprefix("test_"): score for name, score in scores.items()} == pytest.approx(
        {name: run.log.scores[name] for name in run.log.scores}
    )
    assert torch.equal(other.first.weight, last_checkpoint(tmp_path / "run")["model"]["first.weight"])


def test_a_split_that_is_not_there_and_weights_that_are_not(started, capsys):
    run, data, _ = started(max_steps=1, validate=0)
    for _, images, target in run.steps(data.train):
        run.step(small_folder.training_loss(run.network(images), target))
    assert run.evaluate_best(Network(), None, "test") == {}
    assert run.evaluate_best(Network(), Pictures(2), "test") == {}
    said = capsys.readouterr().out
    assert "the split test is not evaluated: there is no test/" in said
    assert "the split test is not evaluated: no weights are best" in said


def test_an_evaluation_of_trained_weights(tmp_path):
    trained = whole(tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    result = whole(tmp_path / "scored", evaluate=1, checkpoint=weights)
    assert result["case"] == "Small_bs2_1p_eval" and result["steps"] == 0
    assert {name: result[name] for name in result["scores"]} == pytest.approx(
        {name: trained[name] for name in trained["scores"]}
    )
    (row,) = metric_rows(tmp_path / "scored", "eval")
    assert row["pixels"] == metric_rows(tmp_path / "run", "eval")[-1]["pixels"]


@pytest.mark.parametrize("flags, purpose", [({}, "acc"), ({"validate": 0}, "perf")])
def test_the_report_says_what_a_run_was_for(tmp_path, flags, purpose):
    assert whole(tmp_path / "run", **flags, max_steps=1)["case"] == f"Small_bs2_1p_{purpose}"


# ---- what is refused first


@pytest.mark.parametrize("flags", [{}, {"evaluate": True, "checkpoint": __file__}])
def test_the_device_is_asked_before_any_data_whatever_the_run_does(flags, tmp_path, monkeypatch):
    def refuse(args):
        raise InputError("the device does not support that")

    monkeypatch.setattr(run_module, "check_device_options", refuse)
    with pytest.raises(InputError, match="the device does not support that"):
        Run(arguments(tmp_path / "run", **flags), small_folder)
    assert not (tmp_path / "run").exists()


def test_cuda_graphs_are_for_cuda(tmp_path):
    with pytest.raises(InputError, match="--cuda_graph: the device is cpu, and only CUDA has such graphs"):
        Run(arguments(tmp_path / "run", cuda_graph=1), small_folder)
