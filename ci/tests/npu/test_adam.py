"""Optimizers on the simulated NPU: below Ascend 950, torch's fused Adam is registered and runs on the host."""

import pytest
import torch

from common.device import npu as plugin
from common.device.world import World
from common.step.amp import Amp
from common.step.optimizer import fused_optimizer
from common.tools import doctor

KINDS = {
    torch.optim.SGD: {"lr": 0.1, "momentum": 0.9},
    torch.optim.Adam: {"lr": 0.1, "betas": (0.5, 0.999)},
    torch.optim.AdamW: {"lr": 0.1},
}


def training(kind, source: str, level: str = "O0") -> tuple[torch.optim.Optimizer, Amp, torch.nn.Module]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 2, 1)).npu()
    world = World(torch.device("npu", 0))
    optimizer = fused_optimizer(kind, model.parameters(), world, source, **KINDS[kind])
    return optimizer, Amp(model, optimizer, level, "128", world), model


def test_adam_is_fused_on_the_chips_that_compute_it(npu, monkeypatch):
    assert not training(torch.optim.Adam, "torch")[0].param_groups[0]["fused"]
    assert training(torch.optim.SGD, "torch")[0].param_groups[0]["fused"]
    monkeypatch.setattr(npu, "get_device_name", lambda device: "Ascend950PR_9579")
    assert training(torch.optim.Adam, "torch")[0].param_groups[0]["fused"]
    # the plugin's takes a step that is to be skipped
    assert not training(torch.optim.AdamW, "torch")[0].param_groups[0]["fused"]


def test_the_simulated_device_takes_fused_adam_to_the_host(npu, counters):
    weights = torch.ones(3, device="npu", requires_grad=True)
    weights.grad = torch.ones(3, device="npu")
    optimizer = torch.optim.Adam([weights], lr=0.1, fused=True)
    optimizer.step()
    counters.reset()
    with pytest.warns(UserWarning, match="'aten::_fused_adam_' is not currently supported") as said:
        optimizer.step()
    assert counters.waits["fallback to the host"] == 1
    assert counters.waits["copy to the host"] >= 4  # weights, gradient and both moments
    assert plugin.fallback_operator(str(said[0].message)) == "aten::_fused_adam_"
    assert plugin.fallback_operator("Device do not support double dtype now") is None


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
@pytest.mark.parametrize("source", ["torch", "torch_npu", "off"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_no_optimizer_copies_anything_to_the_host(kind, source, level, npu, counters):
    optimizer, amp, model = training(kind, source, level)
    images = torch.randn(2, 3, 8, 8).npu()
    for step in range(3):
        if step == 1:
            counters.reset()
        with amp.autocast():
            loss = model(images).float().square().mean()
        amp.step(loss)
    assert counters.waits["copy to the host"] == counters.waits["fallback to the host"] == 0


@pytest.mark.parametrize("hidden", [False, True])
def test_the_doctor_names_an_operator_that_runs_on_the_host(npu, monkeypatch, capsys, hidden):
    """Also where the plugin's warnings are hidden."""
    if hidden:
        monkeypatch.setenv("TORCH_NPU_WARNING_DISABLE", "1")
    monkeypatch.setattr(plugin, "has_fused_adam", lambda device: True)
    assert doctor.main(["--device", "npu"]) == 1
    output = capsys.readouterr().out
    assert "float32, Adam                FAILS: aten::_fused_adam_ runs on the host" in output
    assert "the training step on npu in float32: FAILS: aten::_fused_adam_" in output
    assert ("TORCH_NPU_WARNING_DISABLE=1: torch_npu does not say what" in output) is hidden
