"""What a user reads when an NPU cannot be used as asked: one line, the exit code 2, and nothing else is done.

SITUATIONS is the table; docs/npu.md explains each of its lines.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ci.tests.folders import ROOT
from ci.tests.runs import as_if_started
from common.device import cuda

TRAIN = ROOT / "AttentionUNet" / "train.py"
SIMULATION = ROOT / "ci" / "simulated_npu"
TORCH = torch.__version__
MINOR = ".".join(TORCH.split(".")[:2])
NEEDS_TORCH = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot define a device in Python",
)


class Situation(NamedTuple):
    """plugin: the body of a torch_npu that is installed, None for none, "simulated" for the simulated one."""

    plugin: str | None
    flags: list[str]
    line: str  # what is printed, after "train.py: error: "
    version: str = f"{MINOR}.0"  # of the plugin
    environment: dict[str, str] = {}
    cann: str = ""  # where a folder of CANN lies, below the home folder


def failing(message: str) -> str:
    return f"raise ImportError({message!r})"


NPU = ["--device=npu"]
CANNOT = "--device npu cannot be used: "
ELSE = "; or use --device cpu" if cuda.problem() else "; or use --device cuda, --device cpu"
SITUATIONS = {
    "plugin missing": Situation(
        None,
        NPU,
        f"{CANNOT}torch_npu is not installed; install the release of it that pairs with torch {TORCH} (docs/npu.md has "
        f"the table){ELSE}",
    ),
    "CANN missing": Situation(
        failing("libhccl.so: cannot open shared object file: No such file or directory"),
        NPU,
        f"{CANNOT}CANN's library libhccl.so is not found, which torch_npu needs; install CANN, and source its "
        f"set_env.sh before the run{ELSE}",
    ),
    "CANN not sourced": Situation(
        failing("libhccl.so: cannot open shared object file: No such file or directory"),
        NPU,
        f"{CANNOT}CANN's library libhccl.so is not found, which torch_npu needs; source HOME/Ascend/cann/set_env.sh "
        f"before the run{ELSE}",
        cann="Ascend/cann",
    ),
    "torch and torch_npu do not pair": Situation(
        failing("torch_npu/lib/libtorch_npu.so: undefined symbol: _ZN2at4impl9maybe_wrapEv"),
        NPU,
        f"{CANNOT}torch_npu 1.11.0 does not pair with torch {TORCH} (torch_npu/lib/libtorch_npu.so: undefined symbol: "
        f"_ZN2at4impl9maybe_wrapEv); install torch 1.11, or the torch_npu of torch {MINOR} (docs/npu.md has the table)"
        f"{ELSE}",
        version="1.11.0",
    ),
    "CANN too old": Situation(
        failing("torch_npu/lib/libtorch_npu.so: undefined symbol: MsprofSysCycleTime"),
        NPU,
        f"{CANNOT}torch_npu {MINOR}.0, torch {TORCH} and CANN 8.0.RC1 do not pair (undefined symbol: "
        f"MsprofSysCycleTime); install versions of one row of the table in docs/npu.md{ELSE}",
        cann="Ascend/ascend-toolkit",
    ),
    "torch for CUDA": Situation(
        "raise RuntimeError('Two accelerators cannot be used at the same time in PyTorch: npu and cuda. You can "
        "install the cpu version of PyTorch to use your npu device')",
        NPU,
        f"{CANNOT}torch {TORCH} is built for CUDA, and torch_npu works with a build for the CPU alone; install torch "
        f"{MINOR} without CUDA, or run with --device cuda{ELSE}",
    ),
    "no device": Situation(
        "simulated",
        NPU,
        f"{CANNOT}torch_npu sees no device; check the driver and the cards with npu-smi info{ELSE}",
        environment={"SIMULATED_NPU_DEVICES": "0"},
    ),
    "fewer devices than asked for": Situation(
        "simulated",
        [*NPU, "--devices=8"],
        "8 devices requested and 2 npu device(s) found; use --devices 2, --device_list with some of 0..1, or "
        "--device cpu",
        environment={"SIMULATED_NPU_DEVICES": "2"},
    ),
    "no such device": Situation(
        "simulated",
        [*NPU, "--device_list=5"],
        "no npu device 5: there are 2, numbered from 0; use --device_list with some of 0..1",
        environment={"SIMULATED_NPU_DEVICES": "2"},
    ),
    "no such device in the environment": Situation(
        "simulated",
        NPU,
        "ASCEND_DEVICE_ID=7 is not an NPU of this machine, which has 2; set it to one of 0..1, unset it, or give "
        "--device_list",
        environment={"SIMULATED_NPU_DEVICES": "2", "ASCEND_DEVICE_ID": "7"},
    ),
    "bf16 on a chip without it": Situation(
        "simulated",
        [*NPU, "--amp_dtype=bf16"],
        "--amp_dtype bf16: Ascend910B has no bfloat16; use --amp_dtype fp16, or --no_amp",
        environment={"SIMULATED_NPU_SOC": "Ascend910B"},
    ),
    "channels_last": Situation(
        "simulated",
        [*NPU, "--channels_last"],
        "--channels_last is on, and an NPU takes contiguous tensors alone; leave the flag out, or give "
        "--no_channels_last",
    ),
    "an optimizer of another device": Situation(
        None,
        ["--device=cpu", "--fused_optimizer=torch_npu"],
        "--fused_optimizer torch_npu is for NPU, and this run is on CPU; use --fused_optimizer torch",
    ),
    "apex on an NPU": Situation(
        "simulated",
        [*NPU, "--fused_optimizer=apex"],
        "--fused_optimizer apex is for CUDA, and this run is on NPU; use --fused_optimizer torch",
    ),
    "CANN sourced and not on the library path": Situation(
        failing("libhccl.so: cannot open shared object file: No such file or directory"),
        NPU,
        f"{CANNOT}CANN's library libhccl.so is not found, which torch_npu needs; CANN in /usr/local/cann is "
        f"incomplete, or LD_LIBRARY_PATH has lost it: source its set_env.sh once more{ELSE}",
        environment={"ASCEND_HOME_PATH": "/usr/local/cann"},
    ),
    "CANN's home is set and the rest of its environment is not": Situation(
        failing(
            "ASCEND_OPP_PATH environment variable is not set. Please check whether the opp package has been "
            "installed. If exist, please run 'source set_env.sh' in the CANN installation path."
        ),
        NPU,
        f"{CANNOT}torch_npu does not find what it needs of CANN: ASCEND_OPP_PATH (not set), HOME/Ascend/cann/runtime "
        "(no such folder), HOME/Ascend/cann/compiler (no such folder); source HOME/Ascend/cann/set_env.sh in this "
        f"shell, or install CANN's toolkit and the operators of the chip (ops, kernels) anew{ELSE}",
        environment={"ASCEND_HOME_PATH": "HOME/Ascend/cann"},
        cann="Ascend/cann",
    ),
}


def environment_of(situation: Situation, folder: Path) -> dict[str, str]:
    """An environment in which torch finds this plugin, by itself if it is let to, and CANN lies in the home folder."""
    plugin = SIMULATION
    if situation.plugin != "simulated":
        plugin = folder / "packages"
        plugin.mkdir()
        if situation.plugin is not None:
            (plugin / "torch_npu").mkdir()
            (plugin / "torch_npu" / "__init__.py").write_text(situation.plugin)
            info = plugin / f"torch_npu-{situation.version}.dist-info"
            info.mkdir()
            metadata = f"Metadata-Version: 2.1\nName: torch-npu\nVersion: {situation.version}\n"
            (info / "METADATA").write_text(metadata)
            (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    if situation.cann:
        cann = folder / situation.cann
        cann.mkdir(parents=True)
        (cann / "set_env.sh").touch()
        (cann / "version.info").write_text("Version=8.0.RC1\n")
    unset = ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "TORCH_DEVICE_BACKEND_AUTOLOAD")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    own = {name: value.replace("HOME", str(folder)) for name, value in situation.environment.items()}
    return environment | {"HOME": str(folder), "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1"} | own


@pytest.mark.parametrize(
    "situation",
    [
        pytest.param(situation, id=name, marks=[NEEDS_TORCH] if situation.plugin == "simulated" else [])
        for name, situation in SITUATIONS.items()
    ],
)
def test_one_line_says_what_is_wrong_and_what_to_do(situation, tmp_path):
    words = ["--preset=tiny", *situation.flags, f"--output_dir={tmp_path / 'run'}"]
    run = as_if_started(TRAIN, *words, environment=environment_of(situation, tmp_path))
    assert run.stderr.replace(str(tmp_path), "HOME") == f"train.py: error: {situation.line}\n"
    assert run.returncode == 2
    assert not (tmp_path / "run").exists()


def test_without_the_plugins_libraries_auto_still_trains(tmp_path):
    """torch would import the plugin by itself, and fail."""
    environment = environment_of(SITUATIONS["CANN missing"], tmp_path)
    run = subprocess.run(
        [sys.executable, TRAIN, "--preset=tiny", "--max_steps=1", "--no_validate",
         "--workers=0", f"--output_dir={tmp_path / 'run'}"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "running on the CPU (--device auto): CANN's library libhccl.so is not found" in run.stdout
    plain = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True)
    assert plain.returncode != 0 and "TORCH_DEVICE_BACKEND_AUTOLOAD" in plain.stderr, "what the run has been spared"


@pytest.mark.parametrize("name", ["npu.md", "npu.zh.md"])
def test_the_document_has_each_of_these_lines(name):
    """By a part of it, in the first table of its chapter on errors; and no part that no line has."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    chapter = text.partition("test_npu_situations.py")[2].partition("\n\n| ")[2].partition("\n\n")[0]
    parts = re.findall(r"^\| `([^`]+)` \|", chapter, re.MULTILINE)
    lines = {situation.line for situation in SITUATIONS.values()}
    assert parts
    assert [part for part in parts if not any(part in line for line in lines)] == []
    assert [line for line in lines if not any(part in line for part in parts)] == []
