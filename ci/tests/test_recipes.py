"""What each folder's training really does at a step, against the published recipes (`ci.tests.recipes`).

The folder's own `build` and `main` run on the real `Run`, with a network whose weights take no memory and outputs that
are made up: what is looked at are the numbers in the optimizer, the loss, and when evaluations come.
"""

import math
from contextlib import nullcontext

import pytest
import torch

from ci.tests.folders import FOLDERS, module
from ci.tests.recipes import RECIPES
from common.args import parse_args
from common.data.order import Length
from common.data.pictures import Datasets
from common.device.world import World
from common.run import Run
from common.step.amp import effective_opt_level

NEW_MODELS = set(FOLDERS) - {recipe.folder for recipe in RECIPES}  # a folder that is not published has no recipe here
LABELLED = 0.75  # share of the pixels of each target


class WatchedRun(Run):
    """Takes only chosen steps, on made-up outputs, and writes down what it is asked to do."""

    def __init__(self, args, presets, processes, info, chosen, outputs):
        super().__init__(args, presets, processes)
        self.info, self.chosen, self.outputs = info, chosen, outputs
        self.world = World(torch.device("cpu"), 0, processes)
        self.opt_level = "O0"
        self.rates, self.losses, self.evaluations, self.initial = {}, {}, [], None

    def load(self, model, from_reference, encoder=None, imagenet_file=None):
        self.initial = self.args.pretrained if imagenet_file else "none"
        if imagenet_file:
            assert encoder is not None and next(encoder.parameters()).shape[1] == 3, "the encoder takes the pictures"

    def prepare(self, model):
        self.model = model

    def optimizer(self, parameters):
        self.made = super().optimizer(parameters)
        return self.made

    def autocast(self):
        return nullcontext()

    def network(self, images):
        return self.outputs

    def steps(self, train_set):
        channels = self.info.num_classes
        target = torch.randint(max(2, channels), (1, 8, 8), generator=torch.Generator().manual_seed(0))
        target.view(-1)[: round((1 - LABELLED) * target.numel())] = 255
        for step in sorted(self.chosen):
            self._step = step
            yield step, None, target

    def step(self, losses):
        self.rates[self._step] = tuple(group["lr"] for group in self.made.param_groups)
        self.losses = losses

    def evaluate(self, val_set):
        if val_set is not None:
            self.evaluations.append(self._step)

    def evaluate_best(self, model, dataset, name):
        return {}

    @property
    def is_complete(self):
        return False

    def finish(self, more_scores=None):
        return {}


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """watch(recipe, flag ...) -> the run of its preset, with these flags besides, after its chosen steps."""

    def watched(recipe, *flags) -> WatchedRun:
        presets, train = module(recipe.folder, "presets"), module(recipe.folder, "train")
        info, words = module(recipe.folder, "data").INFO, ["--preset", recipe.preset, "--device", "cpu"]
        args = parse_args(presets, [*words, f"--output_dir={tmp_path / 'run'}", *flags])
        of_a_set = {"__len__": lambda _: recipe.images_in_train_set, "info": info, "scored_sizes": lambda _: ()}
        of_a_set |= {"trained_size": None, "split": ""}
        train_set = type("Pictures", (), of_a_set)()
        val_set = train_set if args.validate else None
        build_model = train.build_model
        monkeypatch.setattr(train, "build_datasets", lambda args: Datasets(train_set, val_set))
        monkeypatch.setattr(train, "build_model", lambda *values, **named: on_meta(build_model, values, named))
        logits = torch.zeros(1, info.num_classes, 8, 8)
        outputs = tuple(logits + 0.0 for _ in recipe.loss)
        # every step that an evaluation could follow, those beside the expected ones, and those of the rates
        unit = recipe.steps_per_epoch if args.epochs else 500
        total = recipe.stops_after or recipe.schedule_steps
        ends = range(unit - 1, total, unit)
        near = {step + beside for step in recipe.evaluations for beside in (-1, 0, 1)}
        chosen = {step for step in {*ends, *near, total - 1} if 0 <= step < total} | set(recipe.rates)
        run = WatchedRun(args, presets, recipe.world_size, info, chosen, outputs)
        train.main(args, run, *train.build(args, run))
        return run

    return watched


def on_meta(build_model, values, named) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(*values, **named)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.folder}-{recipe.preset}")
def test_the_training_is_the_published_one(recipe, watch):
    if recipe.folder not in FOLDERS:
        pytest.skip(f"{recipe.folder} is not in this tree")
    run = watch(recipe)
    optimizer, length = run.made, run.length
    assert (run.images_per_step, length.steps_per_epoch) == (recipe.images_per_step, recipe.steps_per_epoch)
    assert length.schedule_steps == recipe.schedule_steps
    assert length.total_steps == (recipe.stops_after or recipe.schedule_steps)
    assert type(optimizer).__name__ == recipe.optimizer
    for group in optimizer.param_groups:
        assert group["weight_decay"] == recipe.weight_decay
        assert group.get("momentum", group.get("betas")) == recipe.momentum
        assert not group.get("nesterov") and not group.get("dampening") and not group.get("amsgrad")
    of_the_optimizer = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(of_the_optimizer) == sorted(map(id, run.model.parameters())), "each weight is trained, once"
    for step, rates in recipe.rates.items():
        assert run.rates[step] == pytest.approx(rates, rel=1e-9, abs=1e-15), step
    assert run.initial.rpartition("/")[2] == recipe.initial_weights.removeprefix("./")
    assert run.args.validate is recipe.validate


@pytest.mark.skipif("ICNet" not in FOLDERS, reason="ICNet is not in this tree")
def test_biases_and_norms_keep_the_rate_of_their_group_without_its_decay(watch):
    (recipe,) = (recipe for recipe in RECIPES if (recipe.folder, recipe.preset) == ("ICNet", "liminn"))
    run = watch(recipe, "--no_norm_decay")
    groups = run.made.param_groups
    assert [group["weight_decay"] for group in groups] == [recipe.weight_decay, 0.0] * 2
    assert [{weight.dim() for weight in group["params"]} for group in groups] == [{4}, {1}] * 2
    encoder = set(map(id, run.model.backbone.parameters()))
    assert [{id(weight) in encoder for weight in group["params"]} for group in groups] == [{True}] * 2 + [{False}] * 2
    assert sum(len(group["params"]) for group in groups) == len(list(run.model.parameters()))
    for step, (backbone, heads) in recipe.rates.items():
        assert run.rates[step] == pytest.approx((backbone, backbone, heads, heads), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.folder}-{recipe.preset}")
def test_evaluations_come_when_they_should(recipe, watch):
    run = watch(recipe)
    assert len(run.evaluations) == recipe.evaluation_count
    if recipe.evaluations:
        assert (*run.evaluations[:2], *run.evaluations[-2:])[-len(recipe.evaluations) :] == recipe.evaluations


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.folder}-{recipe.preset}")
def test_the_loss_is_the_published_one(recipe, watch):
    """Of logits that are all 0 each term is its weight times log C, and log 2 of a probability."""
    run = watch(recipe)
    classes = max(2, run.info.num_classes)
    share = LABELLED if recipe.loss_kind == "mean over all pixels" else 1.0
    expected = {name: weight * share * math.log(classes) for name, weight in recipe.loss.items()}
    assert {name: loss.item() for name, loss in run.losses.items()} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.folder}-{recipe.preset}")
def test_precision_is_the_published_one(recipe):
    args = parse_args(module(recipe.folder, "presets"), ["--preset", recipe.preset])
    on_accelerator = World(torch.device("meta"))
    level = effective_opt_level(args.amp, args.opt_level, on_accelerator, args.precision_mode)
    assert recipe.opt_level is None or level == recipe.opt_level


def test_every_published_preset_of_a_folder_has_a_recipe():
    for folder in FOLDERS:
        if folder not in NEW_MODELS:
            described = {recipe.preset for recipe in RECIPES if recipe.folder == folder}
            names = set(module(folder, "presets").PRESETS)
            published = {name for name in names if not name.startswith("eval_")} - {"quickstart", "tiny", "own"}
            assert published == described


@pytest.mark.skipif("ICNet" not in FOLDERS, reason="ICNet is not in this tree")
def test_a_run_that_is_cut_off_evaluates_where_the_whole_one_would():
    train, args = module("ICNet", "train"), parse_args(module("ICNet", "presets"), ["--preset", "full_8p"])
    whole, cut = (Length(23, 200 * 23, total) for total in (200 * 23, 50 * 23))
    for step in (0, 1000, 46 * 23, 50 * 23 - 1):
        assert train.steps_between_evaluations(args, step, cut) == train.steps_between_evaluations(args, step, whole)
