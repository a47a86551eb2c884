"""What flags and chips mean for a run on the simulated NPU; with the smallest of the models."""

import json
import runpy
import sys

import pytest
import torch

from ci.tests.folders import ROOT, command_line, module
from ci.tests.npu.test_runs import RUNS
from ci.tests.runs import last_checkpoint, metric_rows
from ci.tests.test_contract import data, train  # noqa: F401  a fixture among them
from common import dry_run
from common.args import parse_args
from common.data.loading import _stream_beside
from common.device.world import Modes, setup
from common.errors import InputError
from common.start import launch

FOLDER = "AttentionUNet"

pytestmark = pytest.mark.usefixtures("npu", "narrow")


def test_the_device_is_set_up_for_ready_made_kernels(npu, monkeypatch):
    """No compilation for each new shape, no private memory formats, and the float32 that was asked for."""
    modes = []
    monkeypatch.setattr(npu, "set_compile_mode", lambda **options: modes.append(options))
    for hf32 in (None, True, False):
        type(npu.config)._allow_internal_format = True
        setup("npu", modes=Modes(hf32=hf32))
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


def test_a_dry_run_measures_on_the_device(npu, data, tmp_path, monkeypatch, capsys):  # noqa: F811  the imported fixture
    for name, value in {"SECONDS": 0, "WARMUP_STEPS_OF_OTHERS": 1, "STEPS_OF_OTHERS": 2}.items():
        monkeypatch.setattr(dry_run, name, value)
    words = command_line(preset="tiny", device="npu", workers=0, data_path=data(FOLDER), output_dir=tmp_path / "run")
    script, presets = module(FOLDER, "train"), module(FOLDER, "presets")
    launch(script.main, script.build, parse_args(presets, [*words, "--dry_run"]), presets)
    said = capsys.readouterr().out
    assert "2 steps in fp16 (O2) with the data loader (--workers 0), after 1 of warm-up, on one Ascend" in said
    assert "GiB, device" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["train", "evaluate", "predict"])
def test_the_environment_chooses_the_card(npu, data, tmp_path, monkeypatch, capsys, what):  # noqa: F811  the fixture that is imported
    """As the original scripts for one card do; and the log says so."""
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    flags = {"device": "npu", "epochs": 1, "max_steps": 1, "validate": 0, "amp": 0}
    train(FOLDER, data, tmp_path / "run", **flags)
    assert "ASCEND_DEVICE_ID" not in capsys.readouterr().out
    monkeypatch.setenv("ASCEND_DEVICE_ID", "3")
    chosen = []
    monkeypatch.setattr(npu, "set_device", lambda device: chosen.append(torch.device(device).index))
    if what == "predict":
        image = module(FOLDER, "data").validation_images(data(FOLDER))[0]
        words = ["--checkpoint", weights, "--input", image, "--output", tmp_path / "pictures", "--device", "npu"]
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words)])
        runpy.run_path(str(ROOT / FOLDER / "predict.py"), run_name="__main__")
    else:
        more = flags if what == "train" else {"device": "npu", "evaluate": 1, "checkpoint": weights}
        train(FOLDER, data, tmp_path / "second", **more)
        said = "on NPU 3 by ASCEND_DEVICE_ID; --device_list chooses another one\n"
        assert capsys.readouterr().out.count(said) == 1
        assert (tmp_path / "second" / "train.log").read_text().count(said) == 1
        train(FOLDER, data, tmp_path / "third", **more, device_list=0)
        assert "ASCEND_DEVICE_ID" not in capsys.readouterr().out
    assert chosen[0] == 3 and set(chosen[1:]) <= {3, 0}


def test_channels_last_is_refused_in_words():
    with pytest.raises(InputError, match="channels_last"):
        setup("npu", modes=Modes(channels_last=True))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_profile_of_a_run(data, tmp_path, capsys, monkeypatch, steps):  # noqa: F811  the fixture that is imported
    """The plugin is used as it wants to be, and what it leaves in the current folder is deleted."""
    monkeypatch.chdir(tmp_path)
    train(FOLDER, data, tmp_path / "run", device="npu", prof_test=1, prof_steps=steps, validate=0)
    trace = json.loads((tmp_path / "run" / "output.prof").read_text())
    assert any(event.get("name", "").startswith("aten::") for event in trace["traceEvents"])
    output = capsys.readouterr().out
    assert f"profile of {steps} step" in output and "no profile" not in output
    assert "Incorrect schedule" not in output and "reset aic metrics" not in output
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


@pytest.mark.parametrize("visible", [None, "0,1"])
def test_a_profiler_that_does_not_start(data, tmp_path, capsys, monkeypatch, visible):  # noqa: F811  the fixture that is imported
    """The plugin's prints that and goes on; records of another process stay."""
    from npu_simulation import profiler

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiler, "STARTS", False)
    if visible:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    theirs = tmp_path / "export_only_prof_dir" / "machine_1_20260101000000000_ascend_pt"
    if visible:
        theirs.mkdir(parents=True)
    train(FOLDER, data, tmp_path / "run", device="npu", prof_test=1, validate=0)
    output = capsys.readouterr().out
    remedy = "unset ASCEND_RT_VISIBLE_DEVICES" if visible else "check that CANN's toolkit is complete"
    assert f"no profile was written; the profiler says above why; {remedy}" in output and "profile of" not in output
    assert not (tmp_path / "run" / "output.prof").exists()
    left = tmp_path / "export_only_prof_dir"
    assert [*left.iterdir()] == [theirs] if visible else not left.exists()


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
        setup("npu", modes=Modes(precision_mode=mode))
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
    train(
        folder, data, parts, **FUSED, amp=0, resume="auto", resume_anyway=1, epochs=3
    )  # torch's own takes the state over
    train(
        folder, data, parts, **FUSED, amp=0, resume="auto", resume_anyway=1, epochs=4, fused_optimizer="torch_npu"
    )  # and back
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
