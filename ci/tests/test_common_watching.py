"""common/device/watching.py: which process stopped responding, and where it was."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from ci.tests.runs import in_two_processes
from common.device import watching
from common.device.watching import Place, Watch, watch
from common.device.world import World, setup


def of_places(**known) -> Watch:
    """What process 0 of three knows: name -> (place, seconds since it was new)."""
    seen = Watch.__new__(Watch)
    seen.world, seen.patience = World(torch.device("cpu"), 0, 3), 5.0
    seen._seen = {int(name[1:]): (place, time.monotonic() - ago) for name, (place, ago) in known.items()}
    return seen


def test_the_silent_process_is_the_one_that_is_waited_for():
    known = of_places(p0=(Place(4, "backward", 9), 9), p1=(Place(4, "data", 9), 0), p2=(Place(4, "save", 2), 4))
    assert known.late() == (2, Place(4, "save", 2))
    assert str(known.late()[1]) == "in save of step 4"


def test_when_all_speak_it_is_the_one_that_has_come_least_far():
    known = of_places(p0=(Place(4, "forward", 9), 0), p1=(Place(4, "data", 9), 0), p2=(Place(5, "data", 2), 0))
    assert known.late() == (1, Place(4, "data", 9))


def test_a_run_that_is_at_its_end_waits_for_nobody():
    known = of_places()
    known.since, known.phase = time.monotonic() - 6, "backward"
    assert known.is_overdue()
    known.since = time.monotonic() - 3
    assert not known.is_overdue()
    known.since, known.phase = time.monotonic() - 6, watching.END
    assert not known.is_overdue()


def hang_in_process_1(folder: Path) -> None:
    world = setup("cpu")
    watch(world, 1.5)
    watching.mark("data", 3)
    if world.rank == 0:
        watching.mark("forward")
    time.sleep(30)
    os._exit(7)


def test_after_the_timeout_all_end_and_one_says_for_whom_they_waited(tmp_path):
    with pytest.raises(AssertionError, match="stopped responding"):
        in_two_processes(tmp_path, hang_in_process_1, tmp_path)
    said = [(tmp_path / f"said_by_{rank}").read_text() for rank in range(2)]
    assert "process 1 stopped responding in data of step 3, and the others have waited for 1.5 s" in said[0]
    assert said[0].count("\n") == 1 and said[1] == ""


def lose_process_1(folder: Path) -> None:
    world = setup("cpu")
    watch(world, 60)
    watching.mark("backward", 2)
    time.sleep(4 * watching.BEAT_S)
    if world.rank == 0:
        (folder / "lost").write_text(json.dumps(watching.lost_process()))
    os._exit(0)


def test_the_process_that_has_gone_is_named(tmp_path):
    in_two_processes(tmp_path, lose_process_1, tmp_path)
    assert json.loads((tmp_path / "lost").read_text()) == "process 1, last heard of in backward of step 2"


def test_a_process_alone_watches_nobody():
    watch(World(torch.device("cpu")), 1.0)
    watching.mark("data", 1)
    assert watching._watch is None and watching.lost_process() == ""
