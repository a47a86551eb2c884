"""common/device/: which device, how many processes, and with which exit code a run ends."""

import os
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ci.tests import small_folder
from ci.tests.common_workers import seeded_model, world
from ci.tests.small_folder import Pictures, arguments
from common.data.pictures import Datasets
from common.device import exits, npu
from common.device.exits import exit_codes
from common.device.launch import CHECKED, local_devices
from common.device.placement import data_parallel, share_buffers
from common.device.world import (
    Modes,
    World,
    card_of_environment,
    device_name,
    find_device_type,
    seed_step,
    setup,
    sum_over_ranks,
    synchronize,
    why_this_device,
)
from common.errors import Diverged, InputError
from common.start import launch

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", CHECKED)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No accelerator, no plugin and no torchrun, wherever the tests run; global settings come back afterwards.

    A run of `launch` joins no other process, and asks no device what it supports: that of `install_npu` is a name.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.run.setup", lambda *_: world())
    monkeypatch.setattr("common.run.check_device_options", lambda args: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.setattr(npu, "installed", lambda: False)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    settings = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = settings
    torch.use_deterministic_algorithms(False)
    os.environ.pop(CHECKED, None)


@pytest.fixture
def real_lookup(monkeypatch):
    """The plugin is looked for as in real life."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def install_npu(monkeypatch, devices: int) -> SimpleNamespace:
    """A plugin that works; what is set on it is recorded."""
    done = SimpleNamespace(set_device=[], jit_compile=[])
    plugin = ModuleType("torch_npu")
    plugin.__spec__ = ModuleSpec("torch_npu", None)
    monkeypatch.setitem(sys.modules, "torch_npu", plugin)
    module = SimpleNamespace(
        is_available=lambda: devices > 0,
        device_count=lambda: devices,
        set_device=done.set_device.append,
        set_compile_mode=lambda jit_compile: done.jit_compile.append(jit_compile),
        config=SimpleNamespace(allow_internal_format=True),
    )
    monkeypatch.setattr(torch, "npu", module, raising=False)
    monkeypatch.setattr(npu, "installed", lambda: True)
    npu.problem.cache_clear()
    done.config = module.config
    return done


def install_cuda(monkeypatch, devices: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)  # nothing is said against it: test_common_cuda.py


def flags(**given) -> Namespace:
    return arguments("output", **{"device": "auto"} | given)


# ---- which device


def test_without_accelerators_auto_is_the_cpu():
    assert find_device_type("auto") == find_device_type("cpu") == find_device_type() == "cpu"


def test_auto_takes_an_npu_then_cuda(monkeypatch):
    install_cuda(monkeypatch, 2)
    assert find_device_type("auto") == find_device_type("gpu") == find_device_type("cuda") == "cuda"
    install_npu(monkeypatch, 1)
    assert find_device_type("auto") == find_device_type("npu") == "npu"
    assert find_device_type("cpu") == "cpu"


def test_auto_passes_over_an_npu_plugin_without_devices(monkeypatch):
    install_npu(monkeypatch, 0)
    assert find_device_type("auto") == "cpu"
    with pytest.raises(InputError, match="--device npu cannot be used: torch_npu sees no device; check the driver"):
        find_device_type("npu")


@pytest.mark.parametrize("kind", ["cuda", "gpu"])
def test_cuda_that_is_asked_for_and_not_there_is_an_error(kind):
    with pytest.raises(InputError, match="--device cuda cannot be used: .*sees no CUDA device.*--device cpu"):
        find_device_type(kind)


def test_an_npu_without_the_plugin_is_an_error_with_the_remedy():
    with pytest.raises(InputError) as error:
        find_device_type("npu")
    assert "torch_npu is not installed; install the release of it that pairs" in str(error.value)
    assert torch.__version__ in str(error.value)


@pytest.mark.parametrize("body", ["raise OSError()", "raise RuntimeError('no luck\\nsecond line')"])
def test_a_plugin_that_does_not_import_gives_its_reason_in_one_line(real_lookup, monkeypatch, tmp_path, body):
    """What each known reason leads to is in test_npu_situations.py."""
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    with pytest.raises(InputError) as error:
        find_device_type("npu")
    message = str(error.value)
    assert f"torch_npu does not import ({'OSError' if 'OSError' in body else 'no luck'})" in message
    assert "source CANN's set_env.sh" in message and "--device cpu" in message
    assert "\n" not in message and "second line" not in message
    assert find_device_type("auto") == "cpu"
    with pytest.raises(InputError, match=r"8 devices requested and 0 found \(no CUDA, and torch_npu does not imp"):
        local_devices(flags(devices=8))


def test_a_plugin_that_does_not_import_is_asked_for_its_reason_once(real_lookup, monkeypatch, tmp_path):
    """Half of it stays behind, and a second import fails for another reason."""
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(
        "import torch\n"
        "if hasattr(torch, 'a_part_of_the_plugin'):\n"
        "    raise RuntimeError('Rendezvous handler for parallel:// already registered')\n"
        "torch.a_part_of_the_plugin = True\n"
        "raise RuntimeError('the true reason')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.setattr(torch, "a_part_of_the_plugin", True, raising=False)  # deleted again after the test
    monkeypatch.delattr(torch, "a_part_of_the_plugin")
    for _ in range(2):
        with pytest.raises(InputError, match=r"torch_npu does not import \(the true reason\)"):
            find_device_type("npu")
    assert find_device_type("auto") == "cpu"
    assert "the true reason" in why_this_device("cpu")


def test_auto_says_what_it_has_found(monkeypatch, capsys):
    def said(**given):
        launch(lambda *_: {}, lambda *_: (Datasets(None, None), None), flags(**given), small_folder)
        return capsys.readouterr().out

    assert said() == "running on the CPU (--device auto): torch_npu is not installed; torch sees no CUDA device\n"
    install_cuda(monkeypatch, 1)
    assert said() == "running on CUDA (--device auto): torch_npu is not installed\n"
    install_npu(monkeypatch, 0)
    assert "running on CUDA (--device auto): torch_npu sees no device" in said()
    install_npu(monkeypatch, 1)
    assert said() == "running on the NPU (--device auto)\n"
    assert said(device="cuda") == "", "a device that was asked for needs no reason"


def test_a_plugin_that_is_simulated_without_a_spec_is_found(real_lookup, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    monkeypatch.setattr(torch, "npu", SimpleNamespace(is_available=lambda: True), raising=False)
    assert find_device_type("npu") == "npu"


# ---- how many devices


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, [0]),
        ({"devices": 3}, [0, 1, 2]),
        ({"device_list": [3, 1]}, [3, 1]),
        ({"devices": 4, "device_list": [2]}, [2]),  # the list of the command line over the number of the preset
        ({"distributed": 1}, [0, 1, 2, 3]),
        ({"distributed": 1, "devices": 2}, [0, 1]),
        ({"distributed": 0, "devices": 8}, [0]),
        ({"distributed": 0, "device_list": [3]}, [3]),
        ({"device": "cpu", "devices": 6}, [0, 1, 2, 3, 4, 5]),
        ({"device": "cpu", "distributed": 1}, [0]),
    ],
)
@pytest.mark.parametrize("install", [install_cuda, install_npu])
def test_devices_of_a_machine_with_four(monkeypatch, install, given, expected):
    install(monkeypatch, 4)
    assert local_devices(flags(**given)) == expected


@pytest.mark.parametrize(
    "given, message",
    [
        ({"devices": 8}, r"8 devices requested and 4 cuda device\(s\) found; use --devices 4, .* some of 0\.\.3"),
        ({"device_list": [0, 4]}, r"no cuda device 4: there are 4, numbered from 0; use --device_list .* 0\.\.3"),
        ({"device_list": [1, 1]}, "--device_list 1,1 names a device twice"),
        ({"device_list": [0, 1, 2, 3, 4]}, "5 devices requested and 4"),
        ({"device": "npu"}, "--device npu cannot be used"),
    ],
)
def test_devices_that_are_not_there_are_an_error(monkeypatch, given, message):
    install_cuda(monkeypatch, 4)
    with pytest.raises(InputError, match=message):
        local_devices(flags(**given))


def test_several_devices_never_become_several_cpu_processes_by_themselves():
    assert local_devices(flags(device_list=[5])) == [5]
    assert local_devices(flags(devices=8, distributed=0)) == [0]
    assert local_devices(flags(device="cpu", devices=2)) == [0, 1]
    with pytest.raises(InputError, match="8 devices requested and 0 found .neither NPU nor CUDA.*--device cpu"):
        local_devices(flags(devices=8))


@pytest.mark.parametrize(
    "given, preset, expected",
    [
        ({}, {}, [2]),
        ({"device": "npu"}, {"distributed": 0}, [2]),
        ({}, {"device_list": [3]}, [3]),
        ({}, {"devices": 4}, [0, 1, 2, 3]),  # one process alone
        ({}, {"distributed": 1}, [0, 1, 2, 3]),
        ({"nnodes": 2}, {}, [0]),
        ({"devices": 1}, {}, [0]),
        ({"devices": 3}, {}, [0, 1, 2]),
        ({"distributed": 0}, {}, [0]),
        ({"device_list": [1]}, {}, [1]),
        ({"device": "cpu"}, {}, [0]),
    ],
)
def test_the_environment_chooses_the_npu_of_one_process(monkeypatch, given, preset, expected):
    install_npu(monkeypatch, 4)
    monkeypatch.setenv("ASCEND_DEVICE_ID", "2")
    args = flags(**given)
    vars(args).update(preset)
    assert local_devices(args) == expected


def test_the_environment_chooses_npus_alone_and_not_for_torchrun(monkeypatch):
    monkeypatch.setenv("ASCEND_DEVICE_ID", "nothing")
    assert card_of_environment("cpu") is None and local_devices(flags()) == [0]
    install_cuda(monkeypatch, 4)
    assert local_devices(flags()) == [0]
    install_npu(monkeypatch, 4)
    assert local_devices(flags(device="cuda")) == local_devices(flags(devices=1)) == [0]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_devices(flags()) == [0]
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("ASCEND_DEVICE_ID", "")
    assert local_devices(flags()) == [0]


@pytest.mark.parametrize("text", ["4", "-1", "1,2", "npu:1", " ", "\N{SUPERSCRIPT TWO}"])
def test_an_environment_that_names_no_npu_is_an_error(monkeypatch, capsys, text):
    install_npu(monkeypatch, 4)
    monkeypatch.setenv("ASCEND_DEVICE_ID", text)
    code, err, ran = launched(capsys, check=lambda *_: pytest.fail("checked"))
    assert (code, ran) == (2, False)
    assert err.endswith(
        f"ASCEND_DEVICE_ID={text} is not an NPU of this machine, which has 4; set it to one of 0..3, unset it, or give "
        "--device_list\n"
    )
    assert launched(capsys, devices=1)[:2] == (0, "")


# ---- setup and seeds


def test_setup_seeds_every_generator():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002  the global generator is what is seeded

    assert setup("cpu", seed=3) == World(torch.device("cpu"), 0, 1, channels_last=True)
    first = draw()
    setup("cpu", seed=3)
    assert draw() == first
    setup("cpu", seed=4)
    assert not set(draw()) & set(first)


@pytest.mark.parametrize("given, expected", [(None, True), (True, True), (False, False)])
def test_layout_on_the_cpu(given, expected):
    assert setup("cpu", modes=Modes(channels_last=given)).channels_last is expected


def test_layout_on_an_npu(monkeypatch):
    """An NPU refuses channels_last, so that it is off by itself there, and asking for it is an error."""
    install_npu(monkeypatch, 1)
    monkeypatch.setattr(torch, "device", lambda *parts: ":".join(map(str, parts)))
    assert setup("npu").memory_format == torch.contiguous_format
    assert setup("npu", modes=Modes(channels_last=False)).memory_format == torch.contiguous_format
    with pytest.raises(InputError, match="--channels_last is on, and an NPU takes contiguous tensors alone"):
        setup("npu", modes=Modes(channels_last=True))


def test_formats_of_the_layouts():
    assert World(torch.device("cpu")).memory_format == torch.contiguous_format
    assert World(torch.device("cpu"), channels_last=True).memory_format == torch.channels_last


@pytest.mark.parametrize("wanted", [True, False])
def test_deterministic_operators(monkeypatch, wanted):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    setup("cpu", deterministic=wanted)
    assert torch.are_deterministic_algorithms_enabled() is wanted
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (wanted, not wanted)
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is wanted


@pytest.mark.parametrize("local_rank, device_list, index", [(0, None, 0), (2, None, 2), (1, [3, 0], 0), (0, [3], 3)])
def test_each_process_of_a_machine_takes_its_device(monkeypatch, local_rank, device_list, index):
    done = install_npu(monkeypatch, 4)
    monkeypatch.setattr(torch, "device", lambda *parts: ":".join(map(str, parts)))  # there is no real "npu"
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert setup("auto", device_list).device == f"npu:{index}"
    assert done.set_device == [f"npu:{index}"]
    assert (done.jit_compile, done.config.allow_internal_format) == ([False], False)


@pytest.mark.parametrize("local_rank, device_list", [(4, None), (1, [3]), (0, [4])])
def test_a_process_without_a_device_is_an_error(monkeypatch, local_rank, device_list):
    install_npu(monkeypatch, 4)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(InputError, match=f"no npu device for process {local_rank} of this machine, which has 4"):
        setup("npu", device_list)


def test_processes_wait_for_one_that_writes_a_large_checkpoint(monkeypatch):
    """Half an hour, whatever the backend is satisfied with."""
    given = {}
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *backend, **options: given.update(options, backend=backend))
    setup("cpu")
    assert given["backend"] == ("gloo",)
    assert given["timeout"].total_seconds() >= 1800


def test_what_is_random_in_a_step_depends_on_seed_rank_and_step():
    drawn = {}
    for key in np.ndindex(2, 2, 3):
        seed, rank, step = map(int, key)
        seed_step(seed, world(rank, 2), step)
        drawn[key] = torch.rand(2).tolist()
    assert len({tuple(values) for values in drawn.values()}) == 12
    torch.rand(100)
    seed_step(1, world(0, 2), 2)
    assert torch.rand(2).tolist() == drawn[1, 0, 2]


def test_one_process_needs_neither_a_wrapper_nor_a_group():
    model = seeded_model()
    assert data_parallel(model, world(), torch.optim.SGD(model.parameters())) is model
    share_buffers(model, world())
    counts = torch.tensor([1, 2])
    assert sum_over_ranks(counts).tolist() == [1, 2]
    synchronize(world())
    assert isinstance(model, nn.Module)


def test_the_cpu_has_a_name():
    assert f"({os.cpu_count()} cores)" in device_name(torch.device("cpu"))


# ---- exit codes of one process


def passes(args, world_size):
    pass


def launched(capsys, error=None, check=passes, **given):
    """(exit code, stderr, whether main ran)"""
    ran = []

    def build(args, run):
        check(args, run.processes)
        return Datasets(None, None), None

    def main(args, run, data, model):
        ran.append(args)
        if error:
            raise error
        return {}

    code = 0
    try:
        launch(main, build, flags(**given), small_folder)
    except SystemExit as ending:
        code = ending.code
    return code, capsys.readouterr().err, bool(ran)


def test_a_run_that_succeeds_leaves_without_a_word(capsys):
    assert launched(capsys) == (0, "", True)


def test_input_that_the_check_refuses_is_one_line_and_nothing_runs(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/train.py", "--lr", "1"])

    def check(args, world_size):
        raise InputError("no images under x; give y")

    assert launched(capsys, check=check) == (2, "train.py: error: no images under x; give y\n", False)


def test_devices_are_checked_before_the_input(capsys):
    code, err, ran = launched(capsys, check=lambda *_: pytest.fail("checked"), devices=8)
    assert (code, ran) == (2, False)
    assert "8 devices requested" in err and err.count("\n") == 1


def test_a_machine_beyond_the_last_is_refused(capsys):
    code, err, ran = launched(capsys, check=lambda *_: pytest.fail("checked"), nnodes=2, node_rank=2)
    assert (code, ran) == (2, False)
    assert "--node_rank 2 with --nnodes 2" in err and "0..1" in err


@pytest.mark.parametrize(
    "error, code, line",
    [
        (InputError("image x is cut off"), 2, "error: image x is cut off"),
        (Diverged("the loss is nan at step 7", 7, ["loss"]), 1, "stopped: the loss is nan at step 7"),
        (KeyboardInterrupt(), 130, "interrupted; continue with the same command and --resume auto"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total\ncapacity of 9 GiB"
            ),
            1,
            "stopped: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); lower "
            "--device_batch_size, and --lr in proportion; in an evaluation lower --eval_batch_size",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            1,
            "stopped: out of memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
            "`cublasCreate(handle)`); lower --device_batch_size, and --lr in proportion; in an evaluation lower "
            "--eval_batch_size",
        ),
        (
            MemoryError("Unable to allocate 3.00 GiB for an array"),
            1,
            "stopped: out of memory (Unable to allocate 3.00 GiB for an array); lower "
            "--device_batch_size, and --lr in proportion; in an evaluation lower --eval_batch_size",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."),
            1,
            "stopped: out of memory (DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 "
            "bytes.); lower --device_batch_size, and --lr in proportion; in an evaluation lower --eval_batch_size",
        ),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            2,
            "error: no permission for /a/b; have its owner give it, or name another path",
        ),
        (
            OSError(28, "No space left on device", "/a/b"),
            1,
            "stopped: no space is left for /a/b; what was complete before is still there: free some space, and "
            "continue with --resume auto",
        ),
        (OSError(30, "Read-only file system", "/a/b"), 2, "error: /a/b: Read-only file system; give another path"),
    ],
)
def test_ends_that_a_user_can_mend_are_one_line(capsys, monkeypatch, error, code, line):
    monkeypatch.setattr(sys, "argv", ["ICNet/train.py"])
    found, err, ran = launched(capsys, error)
    assert (found, ran) == (code, True)
    assert err.endswith(f": {line}\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    "script, error, line",
    [
        ("report.py", KeyboardInterrupt(), "interrupted"),
        (
            "predict.py",
            OSError(28, "No space left on device", "/a/b"),
            "free some space, and give the same command again",
        ),
        ("predict.py", MemoryError("no"), "(no); lower --batch_size, or --window for large pictures"),
        ("export.py", MemoryError("no"), "(no); lower --batch or --size"),
    ],
)
def test_what_other_scripts_advise_is_what_they_have(capsys, monkeypatch, script, error, line):
    monkeypatch.setattr(sys, "argv", [f"ICNet/{script}"])
    with pytest.raises(SystemExit), exit_codes():
        raise error
    said = capsys.readouterr().err
    assert said.startswith(f"{script}: ") and said.endswith(f"{line}\n") and said.count("\n") == 1


def test_a_bug_keeps_its_traceback(capsys):
    code, err, _ = launched(capsys, KeyError("our mistake"))
    assert code == 1
    assert err.startswith("Traceback") and "KeyError: 'our mistake'" in err and "in main" in err


def test_a_process_of_several_leaves_at_once(capsys, monkeypatch):
    """The others may be waiting for it: an orderly end would wait for them."""
    codes = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(SystemExit):  # which a real os._exit does not come to
        launch(lambda *_: 1 / 0, lambda *_: (Datasets(None, None), None), flags(), small_folder)
    assert codes == [1]


# ---- several processes


@pytest.fixture
def torchrun(monkeypatch):
    """What torchrun would be started with, and how it ends."""
    seen = SimpleNamespace(ends=None, commands=[], checked=None, heard=[])

    def note_whether_signals_are_heard():
        seen.heard.append((number := signal.set_wakeup_fd(-1)) != -1)
        signal.set_wakeup_fd(number)

    def run(command):
        note_whether_signals_are_heard()
        api.PContext.start(None)
        note_whether_signals_are_heard()
        seen.commands.append(command)
        seen.checked = os.environ.get(CHECKED)
        if seen.ends:
            raise seen.ends

    monkeypatch.setattr(api.PContext, "start", lambda context: None)
    monkeypatch.setattr("torch.distributed.run.run", run)
    monkeypatch.setattr(sys, "argv", ["train.py", "--devices", "2", "--nnodes=9"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return seen


def test_several_devices_start_torchrun_with_the_same_arguments_and_check_once(capsys, torchrun):
    sizes = []
    outcome = launched(capsys, check=lambda args, world_size: sizes.append(world_size), device="cpu", devices=2)
    assert outcome == (0, "", False)
    assert sizes == [2]
    (command,) = torchrun.commands
    assert (command.nproc_per_node, command.nnodes, command.standalone) == ("2", "1", True)
    assert command.local_addr == "127.0.0.1"  # the name of a machine may be that of no address
    assert (command.training_script, command.training_script_args) == ("train.py", ["--devices", "2", "--nnodes=9"])
    assert torchrun.checked
    assert torchrun.heard == [False, False]


def test_several_machines_meet_at_the_first_one(capsys, torchrun):
    sizes = []
    given = {"nnodes": 4, "node_rank": 3, "master_addr": "10.0.0.7", "master_port": 4321}
    launched(capsys, check=lambda args, world_size: sizes.append(world_size), device="cpu", devices=2, **given)
    launched(capsys, check=lambda args, world_size: sizes.append(world_size), device="cpu", devices=1, **given)
    assert sizes == [8, 4]
    assert torchrun.heard == [True, False] * 2  # until the others are there, by `Relay.waiting`
    for command, processes in zip(torchrun.commands, ("2", "1"), strict=True):
        assert (command.nproc_per_node, command.nnodes, command.node_rank) == (processes, "4", 3)
        assert (command.master_addr, command.master_port, command.standalone) == ("10.0.0.7", 4321, False)
        assert command.local_addr is None


def test_another_machine_than_the_first_has_to_be_told_where_that_is(capsys, torchrun):
    code, err, _ = launched(capsys, device="cpu", devices=2, nnodes=2, node_rank=1)
    assert code == 2 and "--master_addr" in err and err.count("\n") == 1
    assert torchrun.commands == []


def test_a_machine_with_several_addresses_says_which_one_is_meant(capsys, monkeypatch, torchrun):
    monkeypatch.setenv("HCCL_IF_IP", "")  # restored afterwards
    monkeypatch.delenv("HCCL_IF_IP")
    given = {"nnodes": 2, "node_rank": 1, "master_addr": "10.0.0.7", "local_addr": "10.0.0.8"}
    launched(capsys, device="cpu", devices=2, **given)
    (command,) = torchrun.commands
    assert command.local_addr == os.environ["HCCL_IF_IP"] == "10.0.0.8"


@pytest.mark.parametrize("codes, expected", [([1, 2], 2), ([-15, 2], 2), ([1, -15], 1), ([-9], 1), ([3], 3)])
def test_the_exit_code_is_that_of_the_process_that_failed(capsys, torchrun, codes, expected):
    failures = {rank: ProcessFailure(rank, 100 + rank, code, "<none>") for rank, code in enumerate(codes)}
    torchrun.ends = ChildFailedError("train.py", failures)
    assert launched(capsys, device="cpu", devices=2)[0] == expected


def test_an_interruption_of_torchrun_is_one(capsys, torchrun):
    torchrun.ends = SignalException("stopped", signal.SIGINT)
    code, err, _ = launched(capsys, device="cpu", devices=2)
    assert code == 130
    assert "interrupted" in err and "Traceback" not in err


@pytest.mark.parametrize("checked, looked", [("1", []), ("", [False])])
def test_a_process_of_torchrun_runs_at_once(capsys, monkeypatch, torchrun, checked, looked):
    """It opens the labels only when a user, and not `launch`, has started torchrun, whose number of processes holds."""
    for name, value in zip(TORCHRUN, ("4", "1", "6", "3", checked), strict=True):
        monkeypatch.setenv(name, value)
    pictures, sizes, ran = Pictures(4), [], []

    def build(args, run):
        sizes.append(run.processes)
        return Datasets(pictures, None), None

    args = flags(device="cpu", devices=8, check_data=1)
    launch(lambda *given: ran.append(given) or {}, build, args, small_folder)
    assert capsys.readouterr().err == ""
    assert (sizes, pictures.checked, len(ran)) == ([6], looked, 1)
    assert torchrun.commands == []


def test_a_torchrun_of_the_user_makes_no_processes_on_the_cpu_by_itself(capsys, monkeypatch):
    """With `launch` neither: NPUs that do not work would become a very slow run without a word."""
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    code, err, ran = launched(capsys, check=lambda *_: pytest.fail("checked"))
    assert (code, ran) == (2, False)
    assert "2 devices requested and 0 found (neither NPU nor CUDA)" in err and err.count("\n") == 1


def test_a_process_of_torchrun_says_what_auto_took(capsys, monkeypatch):
    install_cuda(monkeypatch, 2)
    for rank in ("0", "1"):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        launch(lambda *_: {}, lambda *_: (Datasets(None, None), None), flags(), small_folder)
        said = "running on CUDA (--device auto): torch_npu is not installed\n"
        assert capsys.readouterr().out == (said if rank == "0" else "")


def test_processes_that_another_program_has_numbered(capsys, monkeypatch, torchrun):
    """One process in each container, as some schedulers start them: the flags for it are in the line."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched(capsys, device="cpu") == (0, "", True)  # left over in a shell: no process has a number
    assert setup("cpu") == World(torch.device("cpu"), channels_last=True)
    monkeypatch.setenv("RANK", "1")
    assert setup("cpu").size == 1
    code, err, ran = launched(capsys, check=lambda *_: pytest.fail("checked"), device="cpu")
    assert (code, ran) == (2, False)
    assert "RANK=1 and WORLD_SIZE=2 and no LOCAL_RANK" in err and err.count("\n") == 1
    given = {"nnodes": 2, "node_rank": 1, "master_addr": "10.0.0.7", "master_port": 4321}
    assert all(f"--{name} " in err for name in given)
    assert launched(capsys, device="cpu", **given) == (0, "", False)
    assert torchrun.commands[0].node_rank == 1


def test_a_local_rank_alone_is_one_process(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    sizes = []
    launched(capsys, check=lambda args, world_size: sizes.append(world_size), device="cpu")
    assert sizes == [1]
    assert setup("cpu").size == 1


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from ci.tests import small_folder
from common.data.pictures import Datasets
from common.device.world import sum_over_ranks
from common.errors import InputError
from common.start import launch
folder, mode = Path(sys.argv[1]), sys.argv[2]

def note(name, text):
    with open(folder / name, "a") as file:
        file.write(text)

class Pictures(small_folder.Pictures):
    def check(self, decode_images, most_bad=0):
        note("checked", f"{{len(self)}} ")

def build(args, run):
    return Datasets(Pictures(run.processes), None), None

def main(args, run, data, model):
    if mode == "hangup":
        os.kill(os.getppid(), signal.SIGHUP)  # as the end of a terminal does
    if mode == "sleep":
        note(f"pid_{{run.world.rank}}", str(os.getpid()))
        time.sleep(60)
    total = sum_over_ranks(torch.tensor([10 + run.world.rank]))
    note(f"rank_{{run.world.rank}}", f"{{run.world.size}} {{os.environ['LOCAL_RANK']}} {{total.item()}}")
    if mode == "broken":
        if run.world.rank == 1:
            raise InputError("image x is cut off")
        sum_over_ranks(torch.zeros(1))  # waits for the other one
    return {{}}

launch(main, build, small_folder.arguments(folder / "run", devices=2, check_data=1), small_folder)
"""


@pytest.fixture
def two_processes(tmp_path):
    """two_processes(mode, words before the script ...) -> the process of a script that does `mode` in two of them."""
    (tmp_path / "train.py").write_text(SCRIPT.format(root=str(ROOT)))
    environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN} | {"OMP_NUM_THREADS": "1"}

    def start(mode, *before):
        command = [*before, "train.py", str(tmp_path), mode]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def ended(script, folder):
    """(exit code, what it said of errors, what is in the files that it wrote)"""
    _, said = script.communicate(timeout=120)
    written = [path for path in folder.iterdir() if path.suffix != ".py" and not path.is_dir()]
    return script.returncode, said, {path.name: path.read_text() for path in written}


def test_launch_runs_main_in_two_processes_and_passes_on_why_one_failed(two_processes, tmp_path):
    code, said, seen = ended(two_processes("broken", sys.executable), tmp_path)
    assert seen == {"checked": "2 ", "rank_0": "2 0 21", "rank_1": "2 1 21"}
    assert code == 2
    assert "train.py: error: image x is cut off\n" in said


def test_a_torchrun_of_the_user_works_too(two_processes, tmp_path):
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    code, said, seen = ended(two_processes("well", *command), tmp_path)
    assert seen == {"checked": "2 2 ", "rank_0": "2 0 21", "rank_1": "2 1 21"}
    assert code == 0, said


def test_several_processes_outlive_their_terminal_under_nohup(two_processes, tmp_path):
    code, said, seen = ended(two_processes("hangup", "nohup", sys.executable), tmp_path)
    assert code == 0, said
    assert {"rank_0", "rank_1"} <= set(seen)


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends orphans on Linux alone")
def test_the_processes_of_a_run_end_with_the_one_that_started_them(two_processes, tmp_path):
    launcher = two_processes("sleep", sys.executable)
    files = [tmp_path / f"pid_{rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    launcher.kill()
    launcher.communicate()
    wait_until(lambda: not any(is_running(int(file.read_text())) for file in files))


def wait_until(condition, seconds=60):
    for _ in range(seconds * 10):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"still not so after {seconds} s")


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # a zombie is only waiting to be counted


def test_a_lost_process_is_one_line_and_a_bug_is_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(exits.os, "_exit", sys.exit)
    errors = (
        (RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1"), 1),
        (RuntimeError("[unbound_buffer.cc:81] Timed out waiting 1000ms for recv operation to complete"), 1),
        (dist.DistBackendError("HCCL error\nin a line\nof its own"), 1),
        (RuntimeError("size mismatch"), None),
    )
    for error, lines in errors:
        with pytest.raises(SystemExit) as end, exit_codes():
            raise error
        said = capsys.readouterr().err
        assert end.value.code == 1
        assert said.count("\n") == 1 if lines else "Traceback" in said


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from common.{begins}
os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, while a real script imports torch
"""


@pytest.mark.parametrize(
    "begins", ["args import Parser; Parser().parse_args()", "version import answer_version; answer_version()"]
)
def test_ctrl_c_before_the_run_is_one_line(begins):
    program = INTERRUPTED.format(root=str(ROOT), begins=begins)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr.endswith(": interrupted\n") and run.stderr.count("\n") == 1
