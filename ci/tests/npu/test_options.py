"""What flags and chips mean for a run on the simulated NPU; with the smallest of the models."""

import json

import pytest
import torch

from ci.tests.npu.test_runs import RUNS
from ci.tests.test_contract import data, metric_rows, train  # noqa: F401  a fixture among them
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

    before = len(streams._streams)
    train(FOLDER, data, tmp_path / "run", device="npu", amp=0, log_every_steps=8, validate=0)
    assert len(streams._streams) == before + 1


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
