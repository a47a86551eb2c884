"""What flags and chips mean for a run on the simulated NPU; with the smallest of the models."""

import json

import pytest
import torch

from ci.tests.npu.test_runs import RUNS
from ci.tests.test_contract import data, last_checkpoint, metric_rows, train  # noqa: F401  a fixture among them
from common.data import _stream_beside
from common.device import setup
from common.errors import InputError

FOLDER = "AttentionUNet"

pytestmark = pytest.mark.usefixtures("npu")


def test_the_device_is_set_up_for_ready_made_kernels(npu, monkeypatch):
    """No compilation for each new shape, no private memory formats, and the float32 that was asked for."""
    modes = []
    monkeypatch.setattr(npu, "set_compile_mode", lambda **options: modes.append(options))
    for hf32 in (None, True, False):
        type(npu.config)._allow_internal_format = True
        setup("npu", hf32=hf32)
        assert type(npu.config)._allow_internal_format is False
        if hf32 is not None:
            assert npu.conv.allow_hf32 is npu.matmul.allow_hf32 is hf32
    assert modes == [{"jit_compile": False}] * 3


def test_auto_is_the_npu(npu):
    assert setup("auto").device == torch.device("npu", 0)
    assert setup("npu", device_list=[3]).device == torch.device("npu", 3)
    assert npu.current_device() == 3
    with pytest.raises(InputError, match="device_list"):
        setup("npu", device_list=[99])
    npu.set_device(0)


def test_channels_last_is_refused_in_words():
    with pytest.raises(InputError, match="channels_last"):
        setup("npu", channels_last=True)


def test_the_profile_of_a_run(data, tmp_path, capsys):  # noqa: F811  the fixture that is imported
    train(FOLDER, data, tmp_path / "run", device="npu", prof_test=1, validate=0)
    trace = json.loads((tmp_path / "run" / "output.prof").read_text())
    assert any(event.get("name", "").startswith("aten::") for event in trace["traceEvents"])
    assert "output.prof" in capsys.readouterr().out


def test_batches_made_beside_the_steps_keep_their_memory(data, tmp_path):  # noqa: F811  the fixture that is imported
    """Between two lines the host is steps ahead; memory that a step may still read would be given to a later batch."""
    from npu_simulation import streams

    _stream_beside.cache_clear()
    before = len(streams._streams)
    train(FOLDER, data, tmp_path / "run", device="npu", amp=0, log_every_steps=8)
    assert len(streams._streams) == before + 1, "memory of a stream is used again on that stream alone"


def test_memory_is_reported_as_the_devices(data, tmp_path, npu):  # noqa: F811  the fixture that is imported
    train(FOLDER, data, tmp_path / "run", **RUNS["float32"] | {"validate": 0})
    most = npu.max_memory_allocated() / 2**30
    shares = [value for name, value in metric_rows(tmp_path / "run", "train")[-1].items() if "memory" in name]
    assert shares and all(0 < value <= most * 1.01 for value in shares)


def test_a_chip_without_bfloat16_is_an_error_in_words(data, tmp_path, monkeypatch):  # noqa: F811  the fixture that is imported
    from npu_simulation import rules

    monkeypatch.setattr(rules, "BFLOAT16", False)
    with pytest.raises(InputError, match="bf16"):
        train(FOLDER, data, tmp_path / "run", **RUNS["O1 bf16"])


def test_a_chip_that_saturates_skips_steps_that_overflow(data, tmp_path, monkeypatch):  # noqa: F811  the fixture that is imported
    """Its numbers stay finite: only the flag of the hardware tells."""
    from npu_simulation import rules

    monkeypatch.setattr(rules, "INF_NAN", False)
    train(FOLDER, data, tmp_path / "run", **RUNS["overflow"])
    assert metric_rows(tmp_path / "run", "train")[-1]["skipped_steps"] == 4


def test_precision_modes_of_the_chip(npu, monkeypatch):
    """What --precision_mode says of float32 operators is asked of CANN; by itself nothing is."""
    asked = []
    monkeypatch.setattr(npu, "set_option", asked.append)
    for mode in (None, "allow_mix_precision", "allow_fp32_to_fp16", "must_keep_origin_dtype"):
        setup("npu", precision_mode=mode)
    assert asked == [{"ACL_PRECISION_MODE": "allow_fp32_to_fp16"}, {"ACL_PRECISION_MODE": "must_keep_origin_dtype"}]


FUSED = {"log_every_steps": 2, "validate": 0, "device": "npu"}


@pytest.mark.parametrize("folder", ["AttentionUNet", "BiSeNetv1"])  # Adam and SGD
def test_the_plugins_optimizers_train_like_torchs(folder, data, tmp_path):  # noqa: F811  the fixture that is imported
    """Interrupted after half of the steps; and what they leave is continued by torch's, and the other way round."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, data, whole, **FUSED, amp=0, fused_optimizer="off")  # the same operators, tensor by tensor
    train(folder, data, parts, **FUSED, amp=0, fused_optimizer="torch_npu", save_every_steps=4, max_steps=4)
    train(folder, data, parts, **FUSED, amp=0, fused_optimizer="torch_npu", resume="auto")
    assert last_checkpoint(parts)["steps_done"] == last_checkpoint(whole)["steps_done"] == 8
    ours, theirs = ([row["loss"] for row in metric_rows(run, "train")] for run in (parts, whole))
    assert ours == theirs
    assert len(set(ours)) == len(ours) == 4
    train(folder, data, parts, **FUSED, amp=0, resume="auto", epochs=3)  # torch's own takes the state over
    train(folder, data, parts, **FUSED, amp=0, resume="auto", epochs=4, fused_optimizer="torch_npu")  # and back
    assert last_checkpoint(parts)["steps_done"] == 16


@pytest.mark.parametrize("opt_level, dtype", [("O1", "fp16"), ("O2", "fp16"), ("O1", "bf16")])
def test_the_plugins_optimizers_in_mixed_precision(data, tmp_path, opt_level, dtype):  # noqa: F811  the fixture that is imported
    """As torch's, with weights and gradients in tensors of their own, and with float32 masters at O2."""
    mixed = {**FUSED, "amp": 1, "opt_level": opt_level, "amp_dtype": dtype, "loss_scale": "128"}
    for source in ("torch", "torch_npu"):
        train(FOLDER, data, tmp_path / source, **mixed, fused_optimizer=source)
    ours, theirs = (metric_rows(tmp_path / source, "train") for source in ("torch_npu", "torch"))
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert ours[-1]["loss"] != ours[0]["loss"]


@pytest.mark.parametrize("devices", [("npu", "cpu"), ("cpu", "npu")], ids=" to ".join)
@pytest.mark.parametrize("infinite", [True, False], ids=["inf", "saturating"])
def test_a_loss_scale_continues_on_another_device(devices, infinite, data, tmp_path, monkeypatch):  # noqa: F811  the fixture that is imported
    """Dynamic, after an overflow: the scale and its counter are those that the other chip left."""
    from npu_simulation import rules

    monkeypatch.setattr(rules, "INF_NAN", infinite)
    mixed = {"amp": 1, "opt_level": "O1", "amp_dtype": "fp16", "validate": 0, "log_every_steps": 1}
    states = []
    for device, more in zip(
        devices, ({"max_steps": 4, "save_every_steps": 4}, {"resume": "auto", "max_steps": 6}), strict=True
    ):
        train(FOLDER, data, tmp_path / "run", **mixed, device=device, **more)
        states.append(last_checkpoint(tmp_path / "run")["amp"])
    assert states[0]["dynamic"] and states[1]["dynamic"]
    before, after = (state["scaler"] for state in states)
    skipped = states[1]["skipped_steps"] - states[0]["skipped_steps"]
    assert after["scale"] == before["scale"] / 2**skipped
    if not skipped:
        assert after["_growth_tracker"] == before["_growth_tracker"] + 2
