"""common/tools/doctor.py on the simulated NPU."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from common.tools import doctor, doctor_packages, trial_step


@pytest.fixture(autouse=True)
def same_flags_afterwards(npu) -> Iterator[None]:
    before = npu.matmul.allow_hf32, npu.conv.allow_hf32
    yield
    npu.matmul.allow_hf32, npu.conv.allow_hf32 = before


@pytest.fixture
def examined(capsys):
    """examined(*arguments) -> (exit code, lines, name -> value of the section about this start of a title)."""

    def examine(*arguments: str):
        code = doctor.main(list(arguments))
        lines = capsys.readouterr().out.splitlines()

        def section(title: str) -> dict[str, str]:
            first = next(index for index, line in enumerate(lines) if line.startswith(title)) + 1
            rows = {}
            for line in lines[first:]:
                if not line.startswith("  "):
                    break
                rows[line[2:30].strip()] = line[31:]
            return rows

        return code, lines, section

    return examine


def test_a_chip_with_bfloat16_takes_the_step_in_all_precisions(examined):
    code, lines, section = examined("--device", "npu")
    assert code == 0 and lines[-1] == "ready: training can start on npu"
    assert section("devices")["npu"] == "8: Ascend910B3, 64.0 GiB"
    assert section("arithmetic of npu:0") == {
        "bfloat16": "yes",
        "overflow": "inf and nan",
        "jit_compile": "off: ready-made kernels",
        "HF32": "convolutions on, matrix products off; --no_hf32 turns both off",
    }
    steps = section("one training step on npu:0")
    assert list(steps) == ["float32", "fp16", "bf16", "float32, Adam"]
    assert all(text.startswith("right: ") for text in steps.values())
    assert section("Ascend")["torch_npu"].startswith("2.13.0, ")
    assert section("Ascend")["torch_npu.optim"] == "imports"


def test_the_step_is_taken_without_hf32(npu, examined, monkeypatch):
    flags = []
    step = trial_step.device_step
    monkeypatch.setattr(
        trial_step, "device_step",
        lambda *arguments: flags.append((npu.conv.allow_hf32, npu.matmul.allow_hf32)) or step(*arguments),
    )  # fmt: skip
    assert examined("--device", "npu")[0] == 0
    assert flags == [(False, False)] * 4


def test_a_chip_of_the_first_generation(examined, monkeypatch):
    from npu_simulation import rules

    for name, value in (("SOC", "Ascend910A"), ("BFLOAT16", False), ("INF_NAN", False)):
        monkeypatch.setattr(rules, name, value)
    code, _, section = examined("--device", "auto")
    assert code == 0
    assert section("devices")["npu"] == "8: Ascend910A, 64.0 GiB"
    assert section("devices")["chosen"] == "npu (--device auto)"
    assert section("arithmetic")["bfloat16"].startswith("no")
    assert section("arithmetic")["overflow"].startswith("the largest number")
    steps = section("one training step")
    assert list(steps) == ["float32", "fp16", "float32, Adam"]
    assert "loss off by" in steps["float32"] and "(1e-02 allowed)" in steps["float32"], "which it computes in float16"


def test_the_card_of_the_environment_takes_the_step(npu, examined, monkeypatch):
    monkeypatch.setenv("ASCEND_DEVICE_ID", "3")
    code, _, section = examined("--device", "npu")
    assert code == 0 and list(section("one training step on npu:3"))[0] == "float32"
    npu.set_device(0)
    monkeypatch.setenv("ASCEND_DEVICE_ID", "8")
    code, lines, _ = examined("--device", "npu")
    assert (
        code == 1
        and "ASCEND_DEVICE_ID=8 is not an NPU of this machine, which has 8; set it to one of 0..7" in lines[-1]
    )


def test_no_device_is_the_last_line(examined, monkeypatch):
    monkeypatch.setenv("SIMULATED_NPU_DEVICES", "0")
    code, lines, _ = examined("--device", "npu")
    assert code == 1
    assert lines[-1].startswith("NOT READY: --device npu cannot be used: torch_npu sees no device")
    assert "npu-smi info" in lines[-1]
    code, lines, section = examined()
    assert code == 0 and section("devices")["npu"] == "none"
    assert lines[-1] == "ready: training can start on cpu, and not on npu (see above)"
    assert any(line.startswith("  NPU: torch_npu sees no device") for line in lines)


@pytest.mark.parametrize("package, name", [("google.protobuf", "protobuf"), ("attr", "attrs"), ("absl", "absl-py")])
def test_packages_of_the_operator_compiler_are_looked_for(examined, monkeypatch, package, name):
    real = doctor_packages.installed
    monkeypatch.setattr(
        doctor_packages,
        "installed",
        lambda each: each != package and (each in doctor_packages.CANN_PACKAGES or real(each)),
    )
    code, lines, section = examined("--device", "npu")
    assert code == 0
    assert section("Ascend")["for CANN"] == f"lacking {name}"
    assert any("EH9999" in line and line.endswith(f"pip install {name}") for line in lines)


@pytest.mark.parametrize(
    "dtype, code, message",
    [(torch.float16, 1, "--no_amp"), (torch.bfloat16, 0, "do not use --amp_dtype bf16")],
)
def test_wrong_numbers_in_one_precision(examined, monkeypatch, dtype, code, message):
    cross_entropy = F.cross_entropy

    def wrong(logits, *arguments, **options):
        spoils = torch.is_autocast_enabled("npu") and torch.get_autocast_dtype("npu") == dtype
        return cross_entropy(logits, *arguments, **options) * (1.5 if spoils else 1)

    monkeypatch.setattr(F, "cross_entropy", wrong)
    exit_code, lines, section = examined("--device", "npu")
    assert exit_code == code
    steps = section("one training step on npu:0")
    wrong_one = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    assert [name for name, text in steps.items() if text.startswith("WRONG: ")] == [wrong_one]
    assert message in "\n".join(lines[-3:])


def test_a_device_that_does_not_answer(npu, examined, monkeypatch):
    def fail(*_):
        raise RuntimeError("npuSynchronizeDevice: error code is 507899 (ERR00100)")

    monkeypatch.setattr(npu, "get_device_properties", fail)
    code, lines, _ = examined("--device", "npu")
    assert code == 1 and lines[-1].startswith("NOT READY: the devices do not answer (RuntimeError: npuSync")


def test_two_processes_sum_up_with_hccl(examined, monkeypatch):
    monkeypatch.setenv("SIMULATED_NPU_DEVICES", "2")
    code, lines, section = examined("--device", "npu", "--devices", "2")
    assert code == 0, lines
    assert section("2 processes")["all_reduce"].startswith("right: int64")
    code, lines, _ = examined("--device", "npu", "--devices", "3")
    assert code == 1 and "--devices 3 and 2 npu device(s) found; use --devices 2" in lines[-1]
