import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.data.order import Length
from common.run import Run
from common.step.schedule import cosine_epochs, linear_tail, poly, set_lr

SCHEDULES = json.loads((Path(__file__).parent / "golden" / "lr_schedules.json").read_text())


def an_optimizer(*lrs):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], momentum=0.9)


def lrs_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name.startswith("mmseg_poly")])
def test_poly_is_that_of_mmsegmentation_with_and_without_warm_up(name):
    config, rows = SCHEDULES[name]["config"], SCHEDULES[name]["rows"]
    base_lr = config["base_lr"]
    factor = poly(
        config["max_iters"],
        config["power"],
        min_factor=config["min_lr"] / base_lr,
        warmup_steps=config.get("warmup_iters", 0),
        warmup_factor=config.get("warmup_ratio", 0.0),
    )
    assert [base_lr * factor(step) for step, _ in rows] == pytest.approx([lr for _, lr in rows], rel=1e-9)


@pytest.mark.parametrize("name", ["icnet_cosine_lr0.1_200ep", "icnet_cosine_lr0.01_5ep"])
@pytest.mark.parametrize("steps_per_epoch", [1, 24])
def test_cosine_is_that_of_the_modelzoo_runs_throughout_each_epoch(name, steps_per_epoch):
    config, rows = SCHEDULES[name]["config"], SCHEDULES[name]["rows"]
    factor = cosine_epochs(config["epochs"], steps_per_epoch, config["warm_up_epochs"])
    assert len(rows) == config["epochs"]
    for epoch, *lrs in rows:
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            optimizer = an_optimizer(*[config["base_lr"]] * len(lrs))
            set_lr(optimizer, factor(step))
            assert lrs_of(optimizer) == pytest.approx(lrs, rel=1e-9)


@pytest.mark.parametrize("name", ["attunet_linear_lr0.0002_100ep", "attunet_linear_lr0.0016_100ep"])
@pytest.mark.parametrize("steps_per_epoch", [1, 14])
def test_linear_tail_is_that_of_the_upstream_attention_unet_throughout_each_epoch(name, steps_per_epoch):
    config, rows = SCHEDULES[name]["config"], SCHEDULES[name]["rows"]
    factor = linear_tail(config["num_epochs"], steps_per_epoch, config["num_epochs_decay"])
    for epoch, lr in rows:
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert config["base_lr"] * factor(step) == pytest.approx(lr, rel=1e-9)


def test_poly_counted_from_one_is_that_of_the_upstream_icnet_with_its_faster_head():
    config, rows = SCHEDULES["icnet_upstream_poly_lr0.01"]["config"], SCHEDULES["icnet_upstream_poly_lr0.01"]["rows"]
    factor = poly(config["max_iters"], config["power"])
    optimizer = an_optimizer(config["base_lr"], 10 * config["base_lr"])
    for iteration, *lrs in rows:
        step = iteration - 1
        set_lr(optimizer, factor(step + 1))
        assert lrs_of(optimizer) == pytest.approx(lrs, rel=1e-9, abs=0)


def test_poly_counted_from_one_is_that_of_awesome_semantic_segmentation_without_warm_up():
    name = "semseg_warmup_poly_lr0.0001_w0"
    config, rows = SCHEDULES[name]["config"], SCHEDULES[name]["rows"]
    factor = poly(config["max_iters"], config["power"])
    optimizer = an_optimizer(config["base_lr"], 10 * config["base_lr"])
    for iteration, *lrs in rows:
        set_lr(optimizer, factor(iteration))
        assert lrs_of(optimizer) == pytest.approx(lrs, rel=1e-9, abs=0)


def test_first_last_and_middle_factors_known_by_hand():
    assert poly(100, power=1.0)(0) == 1
    assert poly(100, power=1.0)(25) == pytest.approx(0.75)
    assert poly(100, power=2.0)(50) == pytest.approx(0.25)
    assert poly(100)(100) == 0
    assert poly(100, power=1.0, warmup_steps=10)(0) == 0
    assert poly(100, power=1.0, warmup_steps=10)(5) == pytest.approx(0.5 * 0.95)
    assert cosine_epochs(8, 10)(40) == pytest.approx(0.5)
    assert cosine_epochs(8, 10)(20) == pytest.approx(0.5 + 2**0.5 / 4)
    assert [linear_tail(4, 5, 2)(step) for step in (0, 10, 14, 15, 19)] == [1, 1, 1, 0.5, 0.5]
    assert linear_tail(4, 5, 0)(19) == 1
    assert cosine_epochs(5, 10, warmup_epochs=3)(29) == pytest.approx(3 / 4)


@pytest.mark.parametrize("schedule", [poly(10), poly(10, min_factor=0.1), cosine_epochs(2, 5), linear_tail(2, 5, 2)])
def test_a_step_beyond_the_end_is_a_finite_small_factor(schedule):
    assert 0 <= schedule(11) <= 0.5
    assert isinstance(schedule(11), float)


def test_a_run_that_ends_during_warm_up_has_a_factor_for_each_step():
    factor = cosine_epochs(2, 4, warmup_epochs=3)
    assert [factor(step) for step in range(8)] == pytest.approx([0.25] * 4 + [0.5] * 4)


def test_set_lr_keeps_the_ratio_of_the_groups_however_often_it_is_called():
    optimizer = an_optimizer(0.01, 0.1)
    for factor in (0.5, 0.0, 0.123, 1.0):
        set_lr(optimizer, factor)
        assert lrs_of(optimizer) == pytest.approx([0.01 * factor, 0.1 * factor], rel=1e-12)


def test_the_initial_rate_survives_saving_and_loading_the_optimizer(tmp_path):
    optimizer = an_optimizer(0.01, 0.1)
    set_lr(optimizer, 0.25)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    restored = an_optimizer(0.01, 0.1)
    restored.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert lrs_of(restored) == pytest.approx([0.0025, 0.025])
    set_lr(restored, 0.5)
    assert lrs_of(restored) == pytest.approx([0.005, 0.05])


@pytest.mark.parametrize(
    ("every_steps", "total_steps", "expected"),
    [
        (3, 9, [2, 5, 8]),
        (3, 10, [2, 5, 8, 9]),  # the last step too
        (1, 4, [0, 1, 2, 3]),
        (0, 5, []),  # 0: never
        (20, 5, [4]),
    ],
)
def test_due_after_every_so_many_steps_and_after_the_last(every_steps, total_steps, expected):
    run = SimpleNamespace(length=Length(1, total_steps, total_steps), parts=SimpleNamespace(is_last=True))
    assert [step for step in range(total_steps) if Run.due(run, step, every_steps)] == expected
    run.parts.is_last = False  # of a step in several parts, the last one alone
    assert not any(Run.due(run, step, every_steps) for step in range(total_steps))
