"""Two processes on two simulated NPUs, joined by `hccl`, and the launch scripts on a machine with CANN."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ci.tests.folders import FOLDERS, ROOT, module
from ci.tests.npu.conftest import SIMULATION
from ci.tests.npu.test_runs import small_steps
from ci.tests.npu.workers import sync_batch_norm_step
from ci.tests.test_contract import command_line, data, last_checkpoint, metric_rows  # noqa: F401  a fixture among them
from common.args import format_value

FLAGS = {"amp": 0, "log_every_steps": 1, "max_steps": 2, "devices": 2}

pytestmark = pytest.mark.usefixtures("npu")


# (model, --sync_bn): statistics of each process, as it is by default, and of both
PAIRS = [(folder, 1) for folder in FOLDERS] + [("ICNet", 0), ("AttentionUNet", 0)]


def runs_of(device: str, data, root: Path) -> list:  # noqa: F811  the fixture that is imported
    """[model, flags] of the runs that two processes make."""
    runs = []
    for folder, sync_bn in PAIRS:
        own = module(folder, "presets").PRESETS["tiny"]
        flags = {
            **FLAGS,
            **small_steps(folder),
            "device": device,
            "sync_bn": sync_bn,
            "validate": int(folder == "BiSeNetv1"),
        }
        flags |= {"total_batch_size": 4} if "total_batch_size" in own else {"device_batch_size": 2}
        runs.append([folder, command_line(data(folder), root / device / f"{folder}-{sync_bn}", **flags)])
    return runs


@pytest.fixture(scope="module")
def two_processes(data, tmp_path_factory) -> Path:  # noqa: F811  the fixture that is imported
    """The folder with what two processes on NPUs, and two on the CPU, have written."""
    root = tmp_path_factory.mktemp("two")
    for device in ("npu", "cpu"):
        (root / device).mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command = [sys.executable, "-m", "ci.tests.npu.workers", device, str(root / device)]
        workers = []
        for rank in range(2):
            environment = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }  # fmt: skip
            worker = subprocess.Popen(
                [*command, json.dumps(runs_of(device, data, root))], cwd=ROOT, text=True,
                env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            workers.append(worker)
        texts = [worker.communicate(timeout=300)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], "\n".join(text[-6000:] for text in texts)
    return root


@pytest.mark.parametrize("folder, sync_bn", PAIRS)
def test_two_npus_train_like_two_processes_on_the_cpu(two_processes, folder, sync_bn):
    ours, theirs = (two_processes / device / f"{folder}-{sync_bn}" for device in ("npu", "cpu"))
    rows, others = metric_rows(ours, "train"), metric_rows(theirs, "train")
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [1, 2]
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=3e-2)
    assert len(metric_rows(ours, "eval")) == len(metric_rows(theirs, "eval"))
    assert last_checkpoint(ours)["model"].keys() == last_checkpoint(theirs)["model"].keys()


def test_what_hccl_does(two_processes):
    for rank in range(2):
        seen = torch.load(two_processes / "npu" / f"seen_by_{rank}.pt", weights_only=True)
        assert (seen["world"], seen["backend"], seen["device"]) == ((rank, 2), "hccl", rank)
        assert seen["sum"] == [3, 20]
        assert seen["gathered"] == [[0.0, 0.0], [1.0, 1.0]]
        assert seen["objects"] == [{"rank": 0}, {"rank": 1}]
        assert "contiguous" in seen["refused"]["strided"]
        assert "int64" in seen["refused"]["int64 gather"]
        assert seen["refused"]["cpu"]


def test_sync_batch_norm_is_batch_norm_over_all_images(two_processes):
    whole = sync_batch_norm_step("cpu", slice(0, 5))
    parts = [
        torch.load(two_processes / "npu" / f"seen_by_{rank}.pt", weights_only=True)["sync_batch_norm"]
        for rank in range(2)
    ]
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias"):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name], rtol=1e-4, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["variance"], whole["variance"], rtol=1e-5, atol=1e-6)


# ---- launch scripts


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a machine with CANN below the home folder: its set_env.sh, once sourced, makes the NPU known.

    Before that, no plugin is there: a run on an NPU proves that env_npu.sh has found and sourced it.
    """
    cann = tmp_path / "home" / "Ascend" / "cann"
    cann.mkdir(parents=True)
    script = f'export ASCEND_HOME_PATH={cann}\\nexport PYTHONPATH="{SIMULATION}:$PYTHONPATH"\\n'
    (cann / "set_env.sh").write_text(script.replace("\\n", "\n"), encoding="utf-8")
    unset = ("PYTHONPATH", "ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "TASK_QUEUE_ENABLE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return {**environment, "HOME": str(tmp_path / "home"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def start(script: Path, environment: dict[str, str], words: list[str]) -> str:
    """The output of a launch script, which must end well."""
    done = subprocess.run(
        ["bash", str(script), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def words_of(folder: str, data_path: Path, output_dir: Path, **flags) -> list[str]:
    """Values of the preset `tiny`, as flags for the script of another preset."""
    presets = module(folder, "presets").PRESETS
    left_out = {"data_path", "output_dir", "epochs", "total_steps"}
    tiny = {name: value for name, value in presets["tiny"].items() if value != presets["full_1p"][name]}
    values = {name: value for name, value in tiny.items() if name not in left_out}
    values |= {"data_path": data_path, "output_dir": output_dir, "workers": 0, "device": "npu", **flags}
    return [f"--{name}={format_value(value)}" for name, value in values.items()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_script_for_one_npu(folder, machine, data, tmp_path):  # noqa: F811  the fixture that is imported
    words = words_of(folder, data(folder), tmp_path / "run", max_steps=1, validate=0)
    text = start(ROOT / folder / "test" / "train_full_1p.sh", machine, words)
    assert "1 x Ascend910B3" in text
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def test_the_scripts_for_several_npus(machine, data, tmp_path):  # noqa: F811  the fixture that is imported
    """They start torchrun by themselves; the evaluation reads what the training wrote."""
    folder = "BiSeNetv1"
    words = words_of(folder, data(folder), tmp_path / "run", devices=2, max_steps=2, log_every_steps=1)
    text = start(ROOT / folder / "test" / "train_full_8p.sh", machine, words)
    assert "2 x Ascend910B3" in text
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    words = words_of(folder, data(folder), tmp_path / "score", devices=2, checkpoint=weights)
    start(ROOT / folder / "test" / "train_eval_8p.sh", machine, words)
    assert len(metric_rows(tmp_path / "score", "eval")) == 1


def test_torch_loads_the_plugin_by_itself():
    """As it does the real one, unless it is told not to."""
    code = "import torch, sys; print('torch_npu' in sys.modules and torch.npu.is_available())"
    for autoload, shown in (("1", "True"), ("0", "False")):
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == shown, done.stderr


def test_auto_takes_the_npu(data, tmp_path):  # noqa: F811  the fixture that is imported
    words = words_of("AttentionUNet", data("AttentionUNet"), tmp_path / "run", max_steps=1, device="auto", validate=0)
    done = subprocess.run(
        [sys.executable, ROOT / "AttentionUNet" / "train.py", "--preset=tiny", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "1 x Ascend910B3" in done.stdout


def test_a_plugin_without_devices_is_one_line_of_error(data, tmp_path):  # noqa: F811  the fixture that is imported
    words = words_of("AttentionUNet", data("AttentionUNet"), tmp_path / "run", max_steps=1)
    done = subprocess.run(
        [sys.executable, ROOT / "AttentionUNet" / "train.py", "--preset=tiny", *words],
        capture_output=True, text=True, env={**os.environ, "SIMULATED_NPU_DEVICES": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torch_npu sees no device" in done.stderr
