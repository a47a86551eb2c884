"""common/device/slurm.py: what a process makes of srun's variables."""

import os

import pytest

from ci.tests import small_folder
from ci.tests.runs import in_two_processes, last_checkpoint
from ci.tests.small_folder import arguments
from common.device.slurm import adopt, first_machine, tasks_of_machines
from common.errors import InputError
from common.start import launch

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def srun(monkeypatch):
    """srun(tasks on each machine, number of this task, of its machine, on its machine): the variables of a task."""
    for name in TORCHRUN:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)

    def variables(per_machine: str, task: int, machine: int, local: int) -> None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(sum(tasks_of_machines(per_machine))))
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", per_machine)
        monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[07-08]")
        for name, value in (("PROCID", task), ("NODEID", machine), ("LOCALID", local)):
            monkeypatch.setenv(f"SLURM_{name}", str(value))

    return variables


def numbers() -> list[str | None]:
    return [os.environ.get(name) for name in TORCHRUN]


def test_a_task_for_each_device_is_a_process_of_the_run(srun, tmp_path):
    srun("3,2", task=4, machine=1, local=1)
    args = arguments(tmp_path, master_port=4321)
    adopt(args)
    assert numbers() == ["4", "1", "5", "2", "gpu07", "4321"]
    assert args.nnodes == 1


def test_a_task_for_each_machine_starts_processes_of_its_own(srun, tmp_path):
    srun("1(x2)", task=1, machine=1, local=0)
    args = arguments(tmp_path, devices=8)
    adopt(args)
    assert numbers() == [None] * 6
    assert (args.nnodes, args.node_rank, args.master_addr) == (2, 1, "gpu07") and "master_addr" in args.given


@pytest.mark.parametrize(
    "flags, known", [({"nnodes": 2}, {}), ({}, {"RANK": "0"}), ({}, {"SLURM_STEP_NUM_TASKS": "1"})]
)
def test_what_is_said_otherwise_holds(srun, tmp_path, monkeypatch, flags, known):
    srun("2", task=1, machine=0, local=1)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    before = numbers()
    adopt(arguments(tmp_path, **flags))
    assert numbers() == before


def test_in_a_batch_script_a_run_is_its_own(srun, tmp_path, monkeypatch):
    """It has a number too, and nobody else."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    adopt(arguments(tmp_path))
    assert numbers() == [None] * 6


def test_lists_of_machines_as_slurm_writes_them():
    assert [first_machine(text) for text in ("one", "one,two", "n[3-5,9]", "n[03,7]-ib,m2")] == [
        "one",
        "one",
        "n3",
        "n03-ib",
    ]
    assert tasks_of_machines("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(InputError, match="SLURM_STEP_NODELIST= names no machine"):
        first_machine("")


def task_of_srun(output_dir) -> None:
    """One of two tasks that srun would start, in the place of torchrun."""
    rank = os.environ.pop("RANK")
    os.environ |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    os.environ |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name)
    launch(small_folder.main, small_folder.build, arguments(output_dir, validate=0), small_folder)


def test_two_tasks_of_srun_train_together(tmp_path):
    in_two_processes(tmp_path, task_of_srun, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run")["images_per_step"] == 4
