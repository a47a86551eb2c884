"""What a run that continues has in common with one that was left alone: the rows of the table of docs/resuming.md."""

import ast
import os
from pathlib import Path

import pytest
import torch

from ci.documents import CODE_SPAN, Document
from ci.tests import small_folder
from ci.tests.folders import ROOT
from ci.tests.runs import assert_same_state, flat, in_two_processes, last_checkpoint
from ci.tests.small_folder import arguments, build, main
from common.run import Run
from common.start import carry_out

STOPPED, REST = {"max_steps": 3}, {"resume": "auto"}


def train(output_dir: Path, **flags) -> dict:
    """Its last checkpoint."""
    carry_out(main, build, arguments(output_dir, **flags), small_folder)
    return last_checkpoint(output_dir)


def assert_close(ours: dict, theirs: dict) -> None:
    """Two checkpoints to rounding: weights, statistics, momentum; and not a word of how it was computed."""
    for part in ("model", "optimizer"):
        ours_of, theirs_of = flat(ours[part]), flat(theirs[part])
        assert ours_of.keys() == theirs_of.keys()
        for name, value in ours_of.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, theirs_of[name], rtol=1e-4, atol=1e-5, msg=name)
    assert ours["steps_done"] == theirs["steps_done"]


@pytest.mark.parametrize(
    "flags",
    [
        {"workers": 2},
        {"save_every_steps": 1, "keep": 4, "save_every_minutes": 0},
        {"log_every_steps": 3, "eval_batch_size": 1},
        {"max_minutes": 5},
    ],
)
def test_how_it_reads_reports_and_saves_changes_no_bit(tmp_path, flags):
    whole = train(tmp_path / "whole")
    train(tmp_path / "run", **STOPPED)
    assert_same_state(train(tmp_path / "run", **REST, **flags), whole)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_other_threads_are_no_more_than_rounding(tmp_path, one_thread):
    whole = train(tmp_path / "whole")
    train(tmp_path / "run", **STOPPED)
    torch.set_num_threads(2)
    assert_close(train(tmp_path / "run", **REST), whole)


def train_as_one_of_two(output_dir: Path, flags: dict) -> None:
    """One image of two, in a process of two; statistics are over both."""
    run = Run(arguments(output_dir, device_batch_size=1, sync_bn=1, **flags), small_folder, 2)
    built = run.build(build)
    run.join()
    main(run.args, run, *built)
    torch.distributed.barrier()
    os._exit(0)  # nobody waits for the other's end


def test_two_processes_continue_bit_for_bit(tmp_path):
    for folder, flags in (("whole", {}), ("run", STOPPED), ("run", REST)):
        in_two_processes(tmp_path, train_as_one_of_two, tmp_path / folder, flags)
    assert_same_state(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))


def test_another_number_of_processes_is_no_more_than_rounding(tmp_path):
    whole = train(tmp_path / "whole", sync_bn=1)
    train(tmp_path / "run", **STOPPED, sync_bn=1)
    in_two_processes(tmp_path, train_as_one_of_two, tmp_path / "run", REST)
    assert_close(last_checkpoint(tmp_path / "run"), whole)


# ---- the table


def names_of_tests() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ci" / "tests").rglob("test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_row_of_the_table_has_its_test():
    (table,) = (table for table in Document(ROOT / "docs" / "resuming.md").tables if table[0][-1] == "test")
    rows = table[2:]
    assert len(rows) > 10
    known = names_of_tests()
    for row in rows:
        named = CODE_SPAN.findall(row[-1])
        assert named and set(named) <= known, f"{row[0]}: there is no test {', '.join(set(named) - known) or 'at all'}"
