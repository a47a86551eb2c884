"""common/step/amp.py: opt levels, loss scale and skipped steps, against plain loops of float32."""

import copy
import math

import pytest
import torch
from torch import nn

from ci.tests.common_workers import world
from ci.tests.operators import Operators
from common.device.world import World
from common.step.amp import FIRST_SCALE, Amp, autocast, effective_opt_level

STEPS = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.head(self.group(torch.relu(self.norm(self.conv(images)))))


def sgd(model, fused=True):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=fused)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(2, 3, 6, 6, generator=generator)
    return images, torch.randint(4, (2, 6, 6), generator=generator)


def loss_of(model, step, factor=1.0):
    images, target = batch(step)
    return nn.functional.cross_entropy(model(images).float(), target) * factor


def plain_run(fused=True, steps=range(STEPS)):
    """Losses, model and optimizer of a loop without Amp."""
    model = Net()
    optimizer = sgd(model, fused)
    losses = []
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model, optimizer


def start(opt_level="O0", scale="dynamic", dtype="fp16", fused=True, clip_norm=0.0):
    model = Net()
    optimizer = sgd(model, fused)
    return model, optimizer, Amp(model, optimizer, opt_level, scale, world(), dtype, clip_norm)


def train(model, amp, steps=range(STEPS), spoiled=()):
    """Losses of some steps; the gradients of the `spoiled` ones are not finite."""
    losses = []
    for step in steps:
        with amp.autocast():
            loss = loss_of(model, step, math.inf if step in spoiled else 1.0)
        amp.step(loss)
        losses.append(loss.item())
    return losses


def momentum_of(optimizer):
    return [optimizer.state[p].get("momentum_buffer") for group in optimizer.param_groups for p in group["params"]]


def assert_same_weights(model, other):
    for (name, value), other_value in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, other_value), name


@pytest.fixture
def fresh_memory_is_nan(monkeypatch):
    """Memory that nothing has been written to may hold anything: here it holds nan."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kw: empty_like(*args, **kw).fill_(math.nan))


@pytest.mark.parametrize("fused", [True, False])
def test_o0_is_a_plain_loop_bit_for_bit(fused):
    expected, plain, plain_optimizer = plain_run(fused)
    model, optimizer, amp = start(fused=fused)
    assert train(model, amp) == expected
    assert_same_weights(model, plain)
    assert all(map(torch.equal, momentum_of(optimizer), momentum_of(plain_optimizer)))
    assert (amp.loss_scale(), amp.skipped_steps.item()) == (1.0, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("scale", ["128", "1024.0"])
def test_a_static_scale_changes_nothing_but_the_range_of_the_gradients(scale):
    model, _, amp = start("O1", scale)
    amp.opt_level = "O0"  # no autocast, so that only the scale differs from a plain loop; it is a power of two
    expected, plain, _ = plain_run()
    assert train(model, amp) == pytest.approx(expected, rel=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert amp.loss_scale() == float(scale)


def test_the_loss_is_really_scaled():
    model, _, amp = start("O1", "128")
    seen = []
    model.head.bias.register_hook(lambda gradient: seen.append(gradient.clone()))
    expected = torch.autograd.grad(loss_of(Net(), 0), Net().head.bias, allow_unused=True)[0]
    other = Net()
    loss_of(other, 0).backward()
    expected = other.head.bias.grad
    amp.opt_level = "O0"
    train(model, amp, range(1))
    torch.testing.assert_close(seen[0], 128 * expected)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("level, dtype, scale", [("O1", "fp16", "dynamic"), ("O1", "fp16", "64"), ("O0", "fp16", "-1")])
@pytest.mark.parametrize("spoiled", [0, 3])
def test_a_step_whose_gradients_overflow_is_as_if_it_had_not_been(
    fresh_memory_is_nan, fused, level, dtype, scale, spoiled
):
    model, optimizer, amp = start(level, scale, dtype, fused)
    train(model, amp, range(spoiled))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    momentum = [None if buffer is None else buffer.clone() for buffer in momentum_of(optimizer)]
    scale_before = amp.loss_scale()

    train(model, amp, [spoiled], spoiled=[spoiled])
    assert all(map(torch.equal, weights, model.parameters()))
    for before, after in zip(momentum, momentum_of(optimizer), strict=True):
        assert after is None or torch.equal(after, torch.zeros_like(after) if before is None else before)
    assert amp.skipped_steps.item() == 1
    dynamic = level != "O0" and scale == "dynamic"
    assert amp.loss_scale() == (scale_before / 2 if dynamic else scale_before)
    assert all(parameter.grad is None for parameter in model.parameters())

    assert all(map(math.isfinite, train(model, amp, range(spoiled + 1, STEPS))))
    assert amp.skipped_steps.item() == 1
    if level == "O0":
        _, plain, _ = plain_run(fused, [step for step in range(STEPS) if step != spoiled])
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fused_and_other_optimizers_agree_also_after_a_skipped_step(fresh_memory_is_nan):
    runs = []
    for fused in (True, False):
        model, _, amp = start("O1", "dynamic", "fp16", fused)
        losses = train(model, amp, spoiled=[0, 3])
        runs.append((losses[4:], amp.loss_scale(), amp.skipped_steps.item(), [p.detach() for p in model.parameters()]))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4)
    assert runs[0][1:3] == runs[1][1:3] == (FIRST_SCALE / 4, 2)
    for fused, other in zip(runs[0][3], runs[1][3], strict=True):
        torch.testing.assert_close(fused, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", ["dynamic", "-1"])
def test_a_dynamic_scale_doubles_after_so_many_good_steps_in_a_row(scale):
    model, _, amp = start("O1", scale)
    amp.scaler.set_growth_interval(2)
    scales = []
    for step in range(7):
        train(model, amp, [step], spoiled=[3])
        scales.append(amp.loss_scale() / FIRST_SCALE)
    # good, good: doubled; good, then spoiled: halved and counted anew; good, good: doubled; good
    assert scales == [1, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("level, scale", [("O0", "1"), ("O1", "dynamic"), ("O1", "128"), ("O2", "dynamic")])
def test_a_step_does_not_wait_for_the_device(level, scale):
    """A skipped one neither."""
    model, _, amp = start(level, scale, clip_norm=0.5)
    train(model, amp, range(1))  # makes what later steps use again
    for factor in (1.0, math.inf):
        with amp.autocast():
            loss = loss_of(model, 1, factor)
        with Operators() as operators:
            amp.step(loss)
        assert "mul" in " ".join(operators.names), "the operators are seen"
        assert [words for words in operators.unwanted if "depends on values" in words] == []
    assert amp.skipped_steps.item() >= 1


@pytest.mark.parametrize("scale", ["1", "256"])
@pytest.mark.parametrize("limit", [0.05, 100.0])
def test_the_norm_of_all_gradients_is_limited_whatever_the_loss_scale(scale, limit):
    """By hand: the gradients, divided by their norm and multiplied by the limit where it is larger."""
    other = Net()
    loss_of(other, 0).backward()
    norm = math.sqrt(sum(parameter.grad.double().square().sum().item() for parameter in other.parameters()))
    assert 0.05 < norm < 100
    model, _, amp = start("O1", scale, clip_norm=limit)
    amp.opt_level = "O0"  # no autocast
    train(model, amp, range(1))
    before = Net()
    for moved, start_weight, parameter in zip(model.parameters(), before.parameters(), other.parameters(), strict=True):
        gradient = parameter.grad * min(1, limit / norm) + 1e-3 * start_weight  # weight decay is not limited
        torch.testing.assert_close(moved, start_weight - 0.1 * gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", ["dynamic", "-1", "512"])
@pytest.mark.parametrize("level, dtype", [("O0", "fp16"), ("O1", "bf16"), ("O2", "bf16")])
def test_without_fp16_there_is_no_scale(level, dtype, scale):
    model, _, amp = start(level, scale, dtype)
    train(model, amp, range(2))
    assert amp.loss_scale() == 1.0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("level, dtype", [("O1", "bf16"), ("O1", "fp16"), ("O2", "bf16"), ("O2", "fp16")])
def test_half_precision_follows_float32(level, dtype, fused):
    expected, plain, _ = plain_run()
    model, _, amp = start(level, "1024", dtype, fused)
    losses = train(model, amp)
    rounding = {"fp16": 2**-10, "bf16": 2**-7}[dtype]
    assert losses == pytest.approx(expected, rel=4 * rounding)
    assert losses != expected
    for name, value in amp.model_state().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=6 * rounding)


@pytest.mark.parametrize("level, dtype", [("O1", torch.bfloat16), ("O1", torch.float16), ("O0", torch.float32)])
def test_operators_run_in_the_precision_of_the_level(level, dtype):
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    with autocast(level, name, world()):
        logits = Net()(batch(0)[0])
    assert logits.dtype == dtype


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_o2_halves_the_weights_outside_norm_layers_and_keeps_float32_masters(dtype):
    model, optimizer, amp = start("O2", "64", dtype)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    initial = Net().state_dict()
    assert all(torch.equal(value, initial[name]) for name, value in amp.model_state().items())
    train(model, amp)
    for name, value in model.state_dict().items():
        is_norm = name.startswith(("norm.", "group."))
        assert value.dtype == (torch.int64 if "tracked" in name else torch.float32 if is_norm else half), name
    for parameter in optimizer.param_groups[0]["params"]:
        assert parameter.dtype == torch.float32
        assert optimizer.state[parameter]["momentum_buffer"].dtype == torch.float32
    state = amp.model_state()
    assert list(state) == list(Net().state_dict())
    for name, value in state.items():
        assert value.dtype == (torch.int64 if "tracked" in name else torch.float32)
        assert torch.equal(value.to(model.state_dict()[name].dtype), model.state_dict()[name]), name
    assert not torch.equal(state["conv.weight"], state["conv.weight"].to(half).float())  # finer than half precision


def test_o2_accumulates_updates_that_half_precision_would_lose():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-12)  # half of the smallest step that fp16 has below 1
    amp = Amp(model, optimizer, "O2", "1", world())
    for _ in range(8):
        with amp.autocast():
            loss = model(torch.ones(1, 1)).sum().float()
        amp.step(loss)
    assert model.weight.item() == 1 - 8 * 2.0**-12


def test_load_model_state_fills_model_and_masters():
    _, trained, _ = plain_run()
    model, optimizer, amp = start("O2", "64")
    amp.load_model_state(trained.state_dict())
    for name, value in amp.model_state().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    assert torch.equal(model.conv.weight, trained.conv.weight.half())
    before = copy.deepcopy(amp.model_state())
    train(model, amp, range(1))
    moved = amp.model_state()["conv.weight"] - before["conv.weight"]
    assert 0 < moved.abs().max() < 0.1  # on from the loaded weights, not from the initial ones


def test_weights_that_two_layers_share_are_float32_in_the_model_state():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    amp = Amp(model, torch.optim.SGD(model.parameters(), lr=0.1), "O2", "1", world())
    assert {value.dtype for value in amp.model_state().values()} == {torch.float32}


@pytest.mark.parametrize("level, scale", [("O0", "1"), ("O1", "dynamic"), ("O2", "dynamic"), ("O2", "128")])
def test_a_run_that_is_put_together_from_its_states_continues_identically(level, scale):
    model, optimizer, amp = start(level, scale)
    amp.scaler.set_growth_interval(4)
    train(model, amp, range(3), spoiled=[1])
    states = copy.deepcopy((amp.model_state(), optimizer.state_dict(), amp.state_dict()))
    expected = train(model, amp, range(3, 8))

    other, other_optimizer, other_amp = start(level, scale)
    other_amp.scaler.set_growth_interval(4)
    other_amp.load_model_state(states[0])
    other_optimizer.load_state_dict(states[1])
    other_amp.load_state_dict(states[2])
    assert train(other, other_amp, range(3, 8)) == expected
    assert_same_weights(other, model)
    assert other_amp.loss_scale() == amp.loss_scale()
    assert other_amp.skipped_steps.item() == amp.skipped_steps.item() == 1


@pytest.mark.parametrize("scale", [2.0**16, 2.0**8])  # of runs that began at another scale, and have come to one
def test_a_dynamic_scale_begins_low_and_a_resumed_one_stays_as_it_was(scale):
    """At 2^16 a short trial may skip all of its steps."""
    model, _, amp = start("O1", "dynamic")
    assert amp.loss_scale() == 2.0**10
    train(model, amp, range(1))
    amp.scaler.update(scale)
    later = start("O1", "dynamic")[2]
    later.load_state_dict(amp.state_dict())
    assert later.loss_scale() == scale


@pytest.mark.parametrize(
    "level, scale, later_level, later_scale, expected",
    [
        ("O0", "dynamic", "O1", "dynamic", FIRST_SCALE),  # 1 is no scale for fp16
        ("O1", "dynamic", "O1", "128", 128.0),
        ("O1", "32", "O1", "128", 128.0),
        ("O1", "32", "O1", "dynamic", FIRST_SCALE),
        ("O1", "dynamic", "O0", "dynamic", 1.0),
    ],
)
def test_a_scale_of_another_kind_is_not_taken_over(level, scale, later_level, later_scale, expected):
    amp = start(level, scale)[2]
    later = start(later_level, later_scale)[2]
    later.load_state_dict(amp.state_dict())
    assert later.loss_scale() == expected


def test_effective_opt_level():
    npu = World(torch.device("cuda", 0))  # any accelerator
    assert effective_opt_level(None, "O1", npu) == "O1"
    assert effective_opt_level(None, "O1", world()) == "O0"
    assert effective_opt_level(True, "O2", world()) == "O2"
    assert effective_opt_level(False, "O2", npu) == "O0"
    assert effective_opt_level(True, "O2", npu, "must_keep_origin_dtype") == "O0"
    assert effective_opt_level(True, "O2", npu, "allow_fp32_to_fp16") == "O2"
    assert effective_opt_level(False, "O2", npu, "allow_mix_precision") == "O0"
