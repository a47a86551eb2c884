"""The recipes on one simulated NPU and on two, joined by `hccl`, and the launch scripts on a machine with CANN."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ci.tests.folders import FOLDERS, ROOT, carry_out, module
from ci.tests.npu.conftest import SIMULATION
from ci.tests.npu.test_runs import assert_same_scores, exact_on_the_cpu
from ci.tests.npu.workers import sync_batch_norm_step
from ci.tests.runs import flat, last_checkpoint, metric_rows
from ci.tests.test_contract import data  # noqa: F401  a fixture
from common.args import format_value

# of every run here: float32, in the layout of an NPU
FLAGS = {"device": "npu", "amp": 0, "channels_last": 0, "log_every_steps": 1, "max_steps": 2}
ALL_STATISTICS = ("AttentionUNet", "DeeplabV3")  # trained with --sync_bn as well
SCRIPTED = "AttentionUNet"  # whose scripts are run: those of all folders are equal byte by byte

pytestmark = pytest.mark.usefixtures("npu", "narrow")


def words_of(folder: str, data_path: Path, output_dir: Path, **flags) -> list[str]:
    """FLAGS and the values of the preset `tiny`, as flags for a run with another preset."""
    presets = module(folder, "presets").PRESETS
    tiny = {name: value for name, value in presets["tiny"].items() if value != presets["full_1p"][name]}
    # presets that differ in their schedule train alike
    schedule = {name: value for name in ("epochs", "total_steps") if (value := presets["tiny"].get(name)) is not None}
    values = {**tiny, **schedule, **FLAGS, "data_path": data_path, "output_dir": output_dir, "workers": 0, **flags}
    if values["device"] == "cpu":
        values |= exact_on_the_cpu(folder)
    return [f"--{name}={format_value(value)}" for name, value in values.items() if value is not None]


def runs_of(device: str, data, root: Path) -> list:  # noqa: F811  the fixture that is imported
    """[model, flags] of the runs that two processes make, each in a folder of `root`."""
    runs = [(folder, f"{folder}-all-statistics", {"sync_bn": 1, "validate": 0}) for folder in ALL_STATISTICS]
    runs += [(folder, folder, {}) for folder in FOLDERS]
    return [
        [folder, ["--preset=full_8p", *words_of(folder, data(folder), root / name, device=device, devices=2, **flags)]]
        for folder, name, flags in runs
    ]


@pytest.fixture(scope="module")
def two_processes(data, tmp_path_factory) -> Path:  # noqa: F811  the fixture that is imported
    """The folder with what two processes on NPUs (`npu`), and two on the CPU (`cpu`), have written."""
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
                [*command, json.dumps(runs_of(device, data, root / device))], cwd=ROOT, text=True,
                env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            workers.append(worker)
        texts = [worker.communicate(timeout=300)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], "\n".join(text[-6000:] for text in texts)
    return root


def assert_same_losses(ours: Path, theirs: Path, devices: int, rel: float = 1e-5) -> None:
    """Two runs of two steps."""
    assert json.loads((ours / "result.json").read_text())["steps"] == 2
    assert f"RankSize = {devices}\n" in next(ours.glob("*p_*.log")).read_text()
    rows, others = metric_rows(ours, "train"), metric_rows(theirs, "train")
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [1, 2]
    for row, other in zip(rows, others, strict=True):
        assert (row["loss"], row["lr"]) == pytest.approx((other["loss"], other["lr"]), rel=rel)


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """After the last step."""
    weights, others = flat(last_checkpoint(ours)["model"]), flat(last_checkpoint(theirs)["model"])
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("folder", ALL_STATISTICS)
def test_batch_statistics_of_two_npus_train_like_those_of_two_processes(two_processes, folder):
    """They are calculated in another way on an NPU."""
    ours, theirs = (two_processes / device / f"{folder}-all-statistics" for device in ("npu", "cpu"))
    assert_same_losses(ours, theirs, devices=2, rel=1e-3)


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


def test_a_step_that_overflows_on_one_saturating_chip_is_skipped_on_both(two_processes):
    """The rate is 1/4 and the loss 4 times the sum of the weights: each step that is made takes 1 from each weight."""
    for rank in range(2):
        seen = torch.load(two_processes / "npu" / f"seen_by_{rank}.pt", weights_only=True)["overflow"]
        assert seen == {"weights": [[[0.0, 0.0]], [[0.0, 0.0]], [[-1.0, -1.0]]], "skipped": [0, 1, 1]}


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


# ---- recipes


@pytest.fixture(scope="module")
def on_the_cpu(data, tmp_path_factory) -> Callable[[str], Path]:  # noqa: F811  the fixture that is imported
    """on_the_cpu(folder) -> what full_1p wrote in two steps and an evaluation, done once."""
    done = {}

    def run(folder: str) -> Path:
        if folder not in done:
            output_dir = tmp_path_factory.mktemp(folder) / "run"
            carry_out(folder, "--preset=full_1p", *words_of(folder, data(folder), output_dir, device="cpu"))
            done[folder] = output_dir
        return done[folder]

    return run


def assert_same_training(ours: Path, theirs: Path, devices: int) -> None:
    assert_same_losses(ours, theirs, devices)
    assert_same_weights(ours, theirs)
    assert_same_scores(ours, theirs)


def assert_same_steps(ours: Path, theirs: Path) -> None:
    """Without an evaluation, which is what a performance run leaves out."""
    assert_same_losses(ours, theirs, devices=1)
    assert_same_weights(ours, theirs)
    assert metric_rows(ours, "eval") == []
    assert json.loads((ours / "result.json").read_text())["images_per_second"] > 0


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_full_training_on_one_npu_equals_the_cpus(folder, data, on_the_cpu, tmp_path):  # noqa: F811  the fixture that is imported
    carry_out(folder, "--preset=full_1p", *words_of(folder, data(folder), tmp_path / "run"))
    assert_same_training(tmp_path / "run", on_the_cpu(folder), devices=1)


@pytest.mark.parametrize("folder", ["AttentionUNet", "DynamicUNet"])  # one of Adam, one of SGD
def test_the_performance_run_on_one_npu_makes_the_same_steps(folder, data, on_the_cpu, tmp_path):  # noqa: F811  the fixture that is imported
    carry_out(folder, "--preset=performance_1p", *words_of(folder, data(folder), tmp_path / "run"))
    assert_same_steps(tmp_path / "run", on_the_cpu(folder))


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_full_training_on_two_npus_equals_two_processes_on_the_cpu(folder, two_processes):
    assert_same_training(two_processes / "npu" / folder, two_processes / "cpu" / folder, devices=2)


# ---- launch scripts


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a machine with CANN below the home folder: its set_env.sh, once sourced, makes the NPU known.

    Before that, no plugin is there: a run on an NPU proves that env_npu.sh has found and sourced it.
    """
    cann = tmp_path / "home" / "Ascend" / "cann"
    for part in ("opp", "runtime", "compiler"):
        (cann / part).mkdir(parents=True)
    variables = {"ASCEND_HOME_PATH": cann, "ASCEND_OPP_PATH": cann / "opp", "PYTHONPATH": f"{SIMULATION}:$PYTHONPATH"}
    script = "".join(f'export {name}="{value}"\n' for name, value in variables.items())
    (cann / "set_env.sh").write_text(script, encoding="utf-8")
    unset = (*variables, "ASCEND_TOOLKIT_HOME", "TASK_QUEUE_ENABLE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return {**environment, "HOME": str(tmp_path / "home"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def start(script: Path, environment: dict[str, str], words: list[str]) -> str:
    """The output of a launch script, which must end well."""
    done = subprocess.run(
        ["bash", str(script), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_the_script_of_the_full_training_takes_the_npu_by_itself(machine, data, on_the_cpu, tmp_path):  # noqa: F811  the fixture that is imported
    words = words_of(SCRIPTED, data(SCRIPTED), tmp_path / "run", device="auto")
    text = start(ROOT / SCRIPTED / "test" / "train_full_1p.sh", machine, words)
    assert "1 x Ascend910B3" in text
    assert_same_training(tmp_path / "run", on_the_cpu(SCRIPTED), devices=1)


def test_the_script_of_several_npus_starts_a_process_on_each(machine, data, two_processes, tmp_path):  # noqa: F811  the fixture that is imported
    words = words_of(SCRIPTED, data(SCRIPTED), tmp_path / "run", devices=2)
    text = start(ROOT / SCRIPTED / "test" / "train_full_8p.sh", machine, words)
    assert "2 x Ascend910B3" in text
    assert_same_training(tmp_path / "run", two_processes / "cpu" / SCRIPTED, devices=2)


def test_the_evaluation_of_a_training_on_several_npus(machine, data, two_processes, tmp_path):  # noqa: F811  the fixture that is imported
    trained = two_processes / "cpu" / SCRIPTED
    weights = trained / "checkpoints" / "last.pt"
    words = words_of(SCRIPTED, data(SCRIPTED), tmp_path / "run", devices=2, checkpoint=weights)
    start(ROOT / SCRIPTED / "test" / "train_eval_8p.sh", machine, words)
    (scores,), (expected,) = metric_rows(tmp_path / "run", "eval"), metric_rows(trained, "eval")
    assert scores["jaccard"] == pytest.approx(expected["jaccard"], abs=1e-3)


def test_torch_loads_the_plugin_by_itself():
    """As it does the real one, unless it is told not to."""
    code = "import torch, sys; print('torch_npu' in sys.modules and torch.npu.is_available())"
    for autoload, shown in (("1", "True"), ("0", "False")):
        environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout.strip() == shown, done.stderr
