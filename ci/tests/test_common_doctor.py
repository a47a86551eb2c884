"""common/tools/doctor*.py: what it finds on a machine without accelerator, and that it is not easily contented."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ci.tests.folders import ROOT, said_without
from common.data import decode
from common.device import npu
from common.device.cores import cpu_cores
from common.tools import doctor, doctor_machine, doctor_packages, trial_step
from common.tools.doctor_devices import REMEDIES, _names, devices, training_step
from common.tools.doctor_processes import processes
from common.tools.doctor_report import Report

COMMAND = [sys.executable, "-m", "common.tools.doctor"]
TORCH = doctor_packages.minor(torch.__version__)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def same_flags_afterwards():
    """The training step turns TF32 off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def run(*arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The command, with `path` before everything else that Python imports."""
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def rows(text: str) -> dict[str, str]:
    """name -> value of all sections."""
    parts = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    return {part[0]: part[-1] for part in parts}


def package(folder, name: str, version: str, body: str) -> None:
    """A package that Python finds in `folder`, with its version for importlib.metadata."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(body)
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# ---- the command


def test_a_machine_without_accelerator_can_train(tmp_path):
    done = run("--device", "cpu", "--json", str(tmp_path / "result.json"), TASK_QUEUE_ENABLE="0", HCCL_IF_IP="10.0.0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    found = rows(done.stdout)
    assert found["torch"].startswith(f"{torch.__version__}, built for")
    assert found["torchvision"].endswith(("compiled operators load", "compiled operators do not load"))
    assert found["CPUs"].startswith(f"{cpu_cores()} that")
    assert found["HCCL_IF_IP"] == "10.0.0.1" and "TORCH_DEVICE_BACKEND_AUTOLOAD" not in found
    assert found["float32"].startswith("right: ") and "fp16" not in found
    assert "  TASK_QUEUE_ENABLE=0: operators go to the NPU one by one" in done.stdout
    assert last_line(done.stdout) == "ready: training can start on cpu"
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["ready"], result["device"], result["problems"]) == (True, "cpu", [])
    assert list(result["sections"]) == [
        "machine", "environment variables", "packages", "devices", "arithmetic of cpu",
        "one training step on cpu, beside the CPU in float64",
    ]  # fmt: skip
    for values in result["sections"].values():
        assert all(f"  {name:<28} {value}\n" in done.stdout for name, value in values.items())


def test_help_does_not_import_torch():
    said = said_without(["torch", "numpy"], ["common/tools/doctor.py"], "--help")
    assert "--device {auto,npu,cuda,gpu,cpu}" in said


@pytest.mark.parametrize(
    "arguments", [["--devices", "0"], ["--json", "/no/such/folder/x.json"], ["--json", "/proc/x"], ["--device", "tpu"]]
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        doctor.parse(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- broken installations


def test_without_torch_everything_else_is_printed(tmp_path):
    package(tmp_path, "torch", "2.9.0", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    package(tmp_path, "torch_npu", "2.9.0", "raise AssertionError('nobody asked for it')")
    done = run(path=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    found = rows(done.stdout)
    assert found["Python"] and found["numpy"][0].isdigit() and found["tqdm"][0].isdigit()
    assert found["torchvision"] == found["torch_npu"].partition("; ")[2] == "not looked at, for lack of torch"
    last = last_line(done.stdout)
    assert last.startswith("NOT READY: torch: does not import (OSError: libtorch_cpu.so: cannot open shared object")
    assert "pip install" in last


def test_a_plugin_that_torch_loads_by_itself_and_cannot(tmp_path):
    package(tmp_path, "torch", "2.9.0", "raise RuntimeError('Failed to load the backend extension: torch_npu. You')")
    done = run(path=str(tmp_path), TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert done.returncode == 1
    assert "unset TORCH_DEVICE_BACKEND_AUTOLOAD" in last_line(done.stdout)
    assert rows(done.stdout)["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "1"


NO_LIBRARY = "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')"
NO_SYMBOL = "raise ImportError('_C.so: undefined symbol: _ZN3c10')"


def test_a_plugin_without_cann_names_the_library_and_the_script(tmp_path):
    package(tmp_path, "torch_npu", "{}.{}.0".format(*TORCH), NO_LIBRARY)
    home = tmp_path / "cann"
    (home / "x86_64-linux").mkdir(parents=True)
    (home / "set_env.sh").touch()
    (home / "x86_64-linux" / "version.info").write_text("Version=8.5.0\n")
    done = run("--device", "npu", path=str(tmp_path), ASCEND_HOME_PATH=str(home))
    assert done.returncode == 1, done.stdout + done.stderr
    found = rows(done.stdout)
    assert found["torch_npu"] == f"{TORCH[0]}.{TORCH[1]}.0, pairs with torch {torch.__version__}"
    assert found["CANN"] == f"8.5.0 in {home}" and found["ASCEND_HOME_PATH"] == str(home)
    assert found["torch_npu.optim"] == "does not import"
    last = last_line(done.stdout)
    assert last.startswith("NOT READY: --device npu cannot be used: ") and "libhccl.so" in last
    assert str(home / "set_env.sh") in last


@pytest.mark.parametrize(
    "lacking", ["", "ASCEND_HOME_PATH ASCEND_OPP_PATH", "ASCEND_OPP_PATH", "opp", "runtime", "runtime compiler"]
)
def test_what_the_plugin_looks_for_in_cann_is_looked_for(lacking, tmp_path, monkeypatch, capsys):
    home = tmp_path / "cann"
    for part in ("opp", "runtime", "compiler"):
        if part not in lacking.split():
            (home / part).mkdir(parents=True)
    (home / "set_env.sh").touch()
    monkeypatch.setattr(npu, "CANN_FOLDERS", ())  # of the machine that the tests run on
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    for name, folder in (("ASCEND_HOME_PATH", home), ("ASCEND_OPP_PATH", home / "opp")):
        if name in lacking.split():
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(npu, "CANN_INSTALL_INFO", tmp_path / "info")
    (tmp_path / "info").write_text(f"Install_Path={home}\n")
    report = Report()
    doctor_packages.ascend(report, torch)
    found, said = report.sections["Ascend"]["for torch_npu"], "\n".join(report.missing)
    if not lacking:
        assert found == "its variables and folders are there" and "CANN: " not in said
        return
    words = [
        f"{part} (not set)" if part.isupper()
        else f"ASCEND_OPP_PATH={home}/opp (no such folder)" if part == "opp"
        else f"{home}/{part} (no such folder)"
        for part in lacking.split()
    ]  # fmt: skip
    assert found == f"lacking {', '.join(words)}"
    assert f"CANN: torch_npu does not find what it needs of CANN: {', '.join(words)}; source {home}/set_env.sh " in said


def test_a_plugin_of_another_torch_is_told_and_auto_goes_to_the_cpu(tmp_path):
    package(tmp_path, "torch_npu", "2.1.0.post12", NO_SYMBOL)
    done = run(path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    unpaired = f"torch_npu 2.1.0.post12 does not pair with torch {torch.__version__}"
    assert f"  {unpaired}; install torch 2.1, or the torch_npu of this torch\n" in done.stdout
    assert f"  NPU: {unpaired} (" in done.stdout
    assert last_line(done.stdout) == "ready: training can start on cpu, and not on npu (see above)"


@pytest.fixture
def lacking(monkeypatch):
    """lacking({name: error}): these packages are not installed, or raise the error when they are imported."""

    def make(errors: dict[str, Exception | None]) -> None:
        def import_module(name: str):
            if name in errors:
                raise errors[name] or ModuleNotFoundError(f"No module named {name!r}", name=name)
            return importlib.import_module(name)

        # in this module alone: torch imports more of itself as it goes
        replaced = SimpleNamespace(import_module=import_module, util=importlib.util)
        monkeypatch.setattr(doctor_packages, "importlib", replaced)
        if {"imagecodecs", "cv2"} <= errors.keys():
            monkeypatch.setattr(decode, "decoder_name", lambda: "Pillow")

    return make


def test_what_is_lacking_is_installed_with_one_command(lacking, capsys):
    lacking({"scipy": None, "PIL": None})
    assert doctor.main(["--device", "cpu"]) == 1
    assert "NOT READY: pillow scipy: not installed; pip install pillow scipy" in last_line(capsys.readouterr().out)


def test_a_broken_package_is_no_missing_one(lacking, capsys):
    lacking({"torchvision": RuntimeError("no such symbol\nmore")})
    assert doctor.main(["--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert "NOT READY: torchvision does not import (RuntimeError: no such symbol" in last_line(text)
    assert "\n  float32                      right: " in text  # the rest is examined all the same


def test_without_a_decoder_pillow_takes_its_time(lacking, capsys):
    lacking({"imagecodecs": None, "cv2": None})
    assert doctor.main(["--device", "cpu"]) == 0
    assert "  imagecodecs: neither it nor a recent OpenCV works here; Pillow decodes" in capsys.readouterr().out


def test_a_broken_decoder_is_said_and_stops_nothing(lacking, capsys):
    lacking({"imagecodecs": None, "cv2": ImportError("libGL.so.1: cannot open shared object file")})
    assert doctor.main(["--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert rows(text)["opencv-python-headless"].startswith("does not import (ImportError: libGL.so.1")
    assert "Pillow decodes" in text


def test_an_old_torch_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert doctor.main(["--device", "cpu"]) == 1
    assert "NOT READY: torch 2.5.1+cpu is too old; install torch 2.6 or newer" in last_line(capsys.readouterr().out)


# ---- the machine


def found(check, *arguments) -> Report:
    report = Report()
    check(report, *arguments)
    return report


@pytest.mark.parametrize(
    "total, free, expected",
    [
        (64 << 20, 100 << 30, ["/dev/shm: 64 MiB;"]),
        (8 << 30, 1 << 30, ["disk: 1.0 GiB free"]),
        (8 << 30, 100 << 30, []),
    ],
)
def test_little_shared_memory_and_little_disk(monkeypatch, tmp_path, total, free, expected):
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda path: Usage(total, 0, free))
    report = found(doctor_machine.machine, str(tmp_path / "not" / "there"))
    assert [line[: len(start)] for line, start in zip(report.missing, expected, strict=True)] == expected


def test_limits_of_a_container(monkeypatch):
    files = {
        "/sys/fs/cgroup/memory.max": f"{6 << 30}\n",
        "/proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n",
    }
    monkeypatch.setattr(doctor_machine, "_read", lambda path: files[path])
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda: 2.5)
    assert doctor_machine._cpus().endswith("; at most 2.5 at a time")
    assert doctor_machine._memory() == "16.0 GiB, 8.0 GiB of it available; at most 6.0 GiB here"
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    monkeypatch.setattr(doctor_machine, "cpu_quota", lambda: None)
    assert "at most" not in doctor_machine._cpus() + doctor_machine._memory()


@pytest.mark.parametrize(
    "body, expected",
    [
        ("echo '| npu-smi 24.1.rc3       Version: 24.1.rc3      |'", "24.1.rc3"),
        ("echo 'DrvMngGetConsoleLogLevel failed. ret=-9005' >&2; exit 1", "npu-smi fails with 1: DrvMngGetConsole"),
        ("sleep 5", "npu-smi does not answer in 0.3 s"),
    ],
)
def test_the_driver_is_asked_and_may_not_answer(monkeypatch, tmp_path, body, expected):
    program = tmp_path / "npu-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(doctor_machine, "DRIVER_SECONDS", 0.3 if "sleep" in body else 30)
    report = found(doctor_machine.machine, str(tmp_path))
    assert report.sections["machine"]["Ascend driver"].startswith(expected)
    assert report.sections["machine"]["Ascend devices"] == "no file /dev/davinci*"


def test_a_driver_for_cuda_and_a_torch_without(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.14\necho 550.54.14\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert found(doctor_machine.machine, str(tmp_path)).sections["machine"]["NVIDIA driver"] == "550.54.14"
    assert "CUDA: there is nvidia-smi" in found(devices, "cpu").missing[0]


def test_cards_are_counted_by_their_names(monkeypatch):
    cards = [("A", 40), ("B", 16), ("A", 40)]
    properties = [SimpleNamespace(name=name, total_memory=size << 30) for name, size in cards]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
    assert _names("cuda", 3) == "3: 2 x A, 40.0 GiB; 1 x B, 16.0 GiB"
    assert _names("cuda", 1) == "1: A, 40.0 GiB"


# ---- the training step


def test_the_expected_step_is_that_of_the_central_difference():
    """A weight's change is -lr times the slope of the loss, which is measured here."""
    expected = trial_step.expected_step()
    images, labels = trial_step._batch()
    assert (labels == 255).any() and set(labels.unique().tolist()) == {0, 1, 2, 3, 255}
    for name, index in (("0.weight", (3, 1, 2, 0)), ("4.weight", (5, 2, 0, 1)), ("5.bias", (7,)), ("7.bias", (2,))):
        losses = []
        for shift in (1e-5, -1e-5):
            model = trial_step._network().double()
            with torch.no_grad():
                dict(model.named_parameters())[name][index] += shift
            losses.append(trial_step._loss(model, images.double(), labels).item())
        slope = (losses[0] - losses[1]) / 2e-5
        assert expected.changes[name][index].item() == pytest.approx(-trial_step.LR * slope, rel=1e-3, abs=1e-7)
    assert expected.losses[1] < expected.losses[0]


def test_errors_are_relative_and_the_worst_counts():
    change = torch.tensor([3.0, 4.0])
    expected = trial_step.Step((2.0, 1.0), {"a": change, "b": change})
    wrong = trial_step.Step((2.0, 1.1), {"a": change, "b": change + torch.tensor([0.0, 0.5])})
    assert trial_step.step_errors(wrong, expected) == pytest.approx((0.1, 0.1))
    not_finite = trial_step.Step((float("nan"), 1.0), {"a": change * float("nan"), "b": change})
    assert all(error != error for error in trial_step.step_errors(not_finite, expected))


def without_dilation(layer, images, weight, bias):
    padding, dilation = (layer.padding, layer.dilation) if images.dtype == torch.float64 else ((1, 1), (1, 1))
    padding = layer.padding if layer.kernel_size == (1, 1) else padding
    return F.conv2d(images, weight, bias, layer.stride, padding, dilation)


def spoiled(function, **changes):
    """`function` with these arguments wherever the numbers are not of the float64 that is compared with."""
    return lambda x, *args, **options: function(x, *args, **options | (changes if x.dtype != torch.float64 else {}))


def half_exact(function):
    """Convolution of operands that have the 10 bits of HF32, TF32 and float16."""

    def rounded(layer, images, weight, bias):
        if images.dtype == torch.float64:
            return function(layer, images, weight, bias)
        return function(layer, images.half().float(), weight.half().float(), bias)

    return rounded


WRONG = {
    "dilation": (nn.Conv2d, "_conv_forward", without_dilation),
    "rounded convolution": (nn.Conv2d, "_conv_forward", half_exact(nn.Conv2d._conv_forward)),
    "corners": (F, "interpolate", spoiled(F.interpolate, align_corners=True)),
    "no optimizer": (torch.optim.SGD, "step", lambda *args, **options: None),
    "nan": (F, "relu", lambda x, inplace=False: x * (1 if x.dtype == torch.float64 else float("nan"))),
}


@pytest.mark.parametrize("place, name, function", WRONG.values(), ids=WRONG.keys())
def test_wrong_numbers_are_noticed(monkeypatch, place, name, function):
    monkeypatch.setattr(place, name, function)
    report = found(training_step, "cpu")
    assert len(report.problems) == 1
    assert report.problems[0].startswith("the training step on cpu in float32: WRONG: loss off by ")


def test_a_device_that_fails_is_the_last_line(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("call aclnnConvolution failed\nEZ9999: Inner Error!\nTraceBack")

    monkeypatch.setattr(trial_step, "device_step", fail)
    assert doctor.main(["--device", "cpu"]) == 1
    last = last_line(capsys.readouterr().out)
    assert last.startswith("NOT READY: the training step on cpu in float32: FAILS: RuntimeError: call aclnnConvolution")
    assert "(EZ9999)" in last and REMEDIES["cpu"] in last


# ---- several processes


def test_two_processes_sum_up(monkeypatch):
    report = found(processes, "cpu", 2)
    assert report.problems == []
    assert report.sections == {"2 processes": {"all_reduce": "right: int64, and the training step in each of them"}}


def test_a_process_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # here, and not in the processes
    report = found(processes, "cuda", 2)
    assert "InputError: --device cuda cannot be used" in report.problems[0]
    assert report.problems[0].startswith("2 processes on cuda: process ")


def test_more_processes_than_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--devices 8 and 2 cuda device(s) found; use --devices 2" in found(processes, "cuda", 8).problems[0]
