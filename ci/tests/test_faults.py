"""Values that only pass through a run: what the faults of `ci.mutations` would change and no other test sees."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests import small_folder
from ci.tests.folders import FOLDERS, built, carry_out, module, parsed
from ci.tests.logged import open_log, train
from ci.tests.recipes import RECIPES
from ci.tests.runs import in_two_processes, last_checkpoint, metric_rows
from common import run as run_module
from common import start as start_module
from common.device.placement import data_parallel
from common.device.world import World, setup
from common.errors import Diverged
from common.nets.backbone import ResNet
from common.record import log as log_module
from common.samples.layout import draw
from common.scores.metrics import ConfusionMatrix
from common.step.amp import Amp
from common.step.norm import synchronize_batch_norm

PRETRAINED = [folder for folder in FOLDERS if hasattr(module(folder, "weights"), "imagenet_file")]


@pytest.fixture
def given(tmp_path) -> Callable[[str], dict]:
    """given(folder) -> flags of a tiny run on four training pictures and a validation picture, in tmp_path / "run"."""

    def flags(folder: str) -> dict:
        data = draw(module(folder, "presets").LAYOUT, tmp_path / "data", train_images=4, val_images=1, size=(64, 96))
        place = {"data_path": data, "output_dir": tmp_path / "run"}
        return {"preset": "tiny", "device": "cpu", "workers": 0, "seed": 3, **place}

    return flags


def small_run(output_dir: Path, main: Callable = small_folder.main, **flags) -> dict:
    """The result of a run of the folder in small: eight steps, evaluated every third."""
    return start_module.carry_out(main, small_folder.build, small_folder.arguments(output_dir, **flags), small_folder)


# ---- from the command line of a folder


@pytest.mark.parametrize("folder", PRETRAINED)
def test_imagenet_weights_are_those_of_the_encoder(folder, given, tmp_path):
    torch.manual_seed(0)
    _, _, donor = built(folder, **given(folder))
    (encoder,) = (layer for layer in donor.modules() if isinstance(layer, ResNet))
    weights = {name: torch.zeros_like(value) for name, value in encoder.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    run, _, model = built(folder, **given(folder), pretrained=tmp_path / "weights.pth")
    assert "backbone: all" in run.notes[0]
    (encoder,) = (layer for layer in model.modules() if isinstance(layer, ResNet))
    assert not any(value.any() for value in encoder.state_dict().values())


def test_the_label_resize_reaches_the_loss(given):
    flags = given("ICNet") | {"max_steps": 1, "validate": 0}
    losses = [carry_out("ICNet", **flags, label_resize=kind)["loss"] for kind in ("aligned", "bilinear")]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("kind, resized", [("aligned", "aligned_labels"), ("nearest", "nearest_labels")])
def test_labels_are_resized_as_asked_for(kind, resized):
    model = module("ICNet", "model")
    torch.manual_seed(0)
    logits, target = torch.randn(1, 19, 4, 4), torch.randint(19, (1, 16, 16))
    term, *_ = model.loss_terms((logits, logits, logits), target, kind, 255)
    expected = torch.nn.functional.cross_entropy(logits, getattr(model, resized)(target, (4, 4)))
    torch.testing.assert_close(term, expected)


def test_the_weight_decay_reaches_adam(given, tmp_path):
    carry_out("AttentionUNet", **given("AttentionUNet"), max_steps=1, validate=0, weight_decay=0.25)
    (group,) = last_checkpoint(tmp_path / "run")["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.25


def test_the_network_is_the_one_that_is_asked_for(given):
    options = {"arch": "R2U_Net", "t": 1, "base_channels": 4, "image_size": 32}
    _, _, model = built("AttentionUNet", **given("AttentionUNet") | options)
    assert model.options == {"num_classes": 1, **options}


def test_the_backbone_that_arch_names_is_built(given):
    _, _, model = built("DeeplabV3", **given("DeeplabV3"), arch="deeplabv3_r50")
    assert model.options["backbone"] == "resnet50"  # the preset has resnet18


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.folder}-{recipe.preset}")
def test_a_preset_starts_the_processes_that_its_recipe_is_for(recipe):
    args = parsed(recipe.folder, preset=recipe.preset)
    assert args.devices * args.nnodes == recipe.world_size


def test_the_augmentation_is_the_one_that_is_asked_for(given):
    flags = {"augmentation_prob": 0.125, "mask_resize": "bilinear", "image_size": 32}
    _, data, _ = built("AttentionUNet", **given("AttentionUNet") | flags)
    assert {name: getattr(data.train, name) for name in flags} == flags


def test_the_last_epochs_of_the_schedule_are_those_that_are_asked_for():
    train = module("AttentionUNet", "train")
    factor = train.learning_rate_schedule(parsed("AttentionUNet", epochs=10, decay_epochs=2), steps_per_epoch=3)
    assert [factor(step) for step in (0, 26, 27, 29)] == [1, 1, 0.5, 0.5]


def test_the_best_weights_are_tested_on_the_test_split(given, monkeypatch):
    seen = []

    def evaluate_best(run, model, dataset, name) -> dict:
        seen.append((dataset is run.datasets.test, name))
        return {"test_jaccard": 0.5}

    monkeypatch.setattr(run_module.Run, "evaluate_best", evaluate_best)
    result = carry_out("AttentionUNet", **given("AttentionUNet"), epochs=1)
    assert seen == [(True, "test")] and result["test_jaccard"] == 0.5


# ---- in a run


def test_each_loss_is_minimised(tmp_path):
    """The gradients of two terms, of one weight each, are 1 and 2."""
    changes = []

    def main(args, run, data, model) -> dict:
        run.prepare(model)
        run.optimizer([{"params": list(model.parameters()), "lr": 1.0, "momentum": 0.0}])
        weights = model.first.bias, model.last.bias
        before = [weight.detach().clone() for weight in weights]
        for _ in run.steps(data.train):
            run.step({"main": weights[0].sum(), "aux0": 2 * weights[1].sum()})
        changes.extend((old - weight.detach()).mean().item() for old, weight in zip(before, weights, strict=True))
        return run.finish()

    small_run(tmp_path / "run", main, max_steps=1)
    assert changes == pytest.approx([1, 2])


def test_a_checkpoint_waits_until_the_losses_before_it_are_looked_at(tmp_path, monkeypatch):
    """There is a line every fourth step alone, an evaluation every third, and a checkpoint after each."""
    losses, real = [], small_folder.training_loss

    def second_is_nan(*arguments) -> dict:
        losses.append(real(*arguments))
        return losses[-1] if len(losses) < 2 else losses[-1] | {"main": losses[-1]["main"] * float("nan")}

    monkeypatch.setattr(small_folder, "training_loss", second_is_nan)
    with pytest.raises(Diverged, match="at step 2 of 8"):
        small_run(tmp_path / "run", log_every_steps=4, save_every_steps=1, validate=0)
    assert last_checkpoint(tmp_path / "run")["steps_done"] == 1


def test_the_best_weights_are_those_of_the_best_score_also_of_the_steps_before(tmp_path, monkeypatch):
    scores = iter((0.5, 0.75, 0.625, 0.6875))
    monkeypatch.setattr(ConfusionMatrix, "scores", lambda _: {"miou": next(scores)})

    def best_steps() -> int:
        return torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)["steps_done"]

    small_run(tmp_path / "run", epochs=3, max_steps=9)
    assert best_steps() == 6
    small_run(tmp_path / "run", epochs=3, max_steps=10, resume="auto")
    assert [row["best"] for row in metric_rows(tmp_path / "run", "eval")] == [0.5, 0.75, 0.75, 0.75]
    assert best_steps() == 6
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"] == 0.75


def test_final_scores_are_those_of_an_evaluation_after_the_last_step(tmp_path):
    scored = small_run(tmp_path / "run", max_steps=3)
    assert scored["scores"] and scored["miou"] == scored["best"]
    result = small_run(tmp_path / "run", resume="auto", validate=0)
    assert (result["steps"], result["scores"], result["best"]) == (8, [], scored["best"])


# ---- over several processes


def test_a_line_tells_the_mean_over_the_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "sum_over_ranks", lambda losses: losses + 3.0)  # those of the other process
    log = open_log(tmp_path / "run", at=World(torch.device("cpu"), 0, 2))
    train(log, [0])
    (row,) = metric_rows(tmp_path / "run", "train")
    assert row["loss"] == 2.0
    log.finish()


def gradient_of_one_image(folder: Path) -> None:
    """What one of several processes has after the backward pass of an image full of its rank."""
    world, model = setup("cpu"), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    network = data_parallel(model, world, optimizer)
    network(torch.full((1, 3), float(world.rank))).sum().backward()
    torch.save(model.weight.grad, folder / f"of_{world.rank}.pt")


def test_gradients_are_averaged_over_the_processes(tmp_path):
    in_two_processes(tmp_path, gradient_of_one_image, tmp_path)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"of_{rank}.pt"), torch.full((1, 3), 0.5))


def trained_in_double(folder: Path, norm: bool) -> None:
    """Three steps of what `Run` puts together, on this process's share of six images; writes the weights."""
    world = setup("cpu") if "RANK" in os.environ else World(torch.device("cpu"))
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 4, 3, padding=1), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    model = nn.Sequential(*layers).double()
    images, target = torch.randn(3, 6, 3, 5, 7).double(), torch.randint(2, (3, 6, 5, 7))
    synchronize_batch_norm(model, world)
    amp = Amp(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "O0", "dynamic", world)
    network = data_parallel(model, world, amp.optimizer)
    for step in range(3):
        share = slice(world.rank, None, world.size)
        amp.step(torch.nn.functional.cross_entropy(network(images[step, share]), target[step, share]))
    torch.save(model.state_dict(), folder / f"{world.rank}_of_{world.size}.pt")


@pytest.mark.parametrize("norm", [False, True])
def test_two_processes_train_like_one_with_the_same_images_in_a_step(tmp_path, norm):
    """Without batch norm, and with statistics over all processes: in float64 what is left is no more than rounding."""
    trained_in_double(tmp_path, norm)
    in_two_processes(tmp_path, trained_in_double, tmp_path, norm)
    alone = torch.load(tmp_path / "0_of_1.pt")
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}_of_2.pt")
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-6, atol=1e-9)
