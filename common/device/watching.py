"""Which process of a run stopped responding, and what it was doing then.

A process that waits in a collective cannot say for whom. So each one tells the store through which they found each
other, several times a second and from a thread beside, where it is; and one that has waited for `--dist_timeout` looks
there for the one that says nothing any more or, when all speak, has come least far.
"""

import os
import sys
import threading
import time
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from common.device.world import World
from common.errors import ExitCode

PHASES = ("start", "data", "forward", "backward", "evaluate", "save")  # in the order of a step
END = "end"  # nobody waits for anybody any more
BEAT_S, SILENT_S = 0.25, 3.0


class Place(NamedTuple):
    """Where a process is."""

    step: int  # from 1 on; 0 before the first
    phase: str
    beat: int  # a number that grows as long as the process lives

    def __str__(self) -> str:
        return f"in {self.phase} of step {self.step}" if self.step else f"in {self.phase}"


class Watch:
    """What this process tells the others of itself, and knows of them."""

    def __init__(self, world: World, patience_seconds: float):
        self.world, self.patience = world, patience_seconds
        self.step, self.phase, self.since = 0, "start", time.monotonic()
        self._beat, self._seen = 0, {}  # process -> (what it said last, when that was new)
        self._lock = threading.Lock()  # of the connection
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, None, False, timedelta(seconds=max(5.0, patience_seconds)))
        self._store = dist.PrefixStore(f"watch-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def beat(self) -> None:
        """Say where this process is; where it has stood still for a while, listen to the others too."""
        self._beat += 1
        with self._lock:
            self._store.set(str(self.world.rank), f"{self.step} {self.phase} {self._beat}")
        if time.monotonic() - self.since > 1:
            self.listen()

    def listen(self) -> None:
        """Take note of what the others have said."""
        now = time.monotonic()
        for rank in range(self.world.size):
            with self._lock:
                said = self._store.get(str(rank)).decode() if self._store.check([str(rank)]) else "0 start 0"
            step, phase, beat = said.split()
            place = Place(int(step), phase, int(beat))
            if rank not in self._seen or self._seen[rank][0] != place:
                self._seen[rank] = place, now

    def silent(self) -> dict[int, Place]:
        """The other processes that have said nothing for some time."""
        now = time.monotonic()
        seen = {rank: place for rank, (place, since) in self._seen.items() if now - since > SILENT_S}
        return {rank: place for rank, place in seen.items() if rank != self.world.rank}

    def late(self) -> tuple[int, Place]:
        """The process for which the others wait: one that is silent, else the one that has come least far."""
        places = self.silent() or {rank: place for rank, (place, _) in self._seen.items()}
        return min(places.items(), key=lambda item: (item[1].step, PHASES.index(item[1].phase)))

    def is_overdue(self) -> bool:
        """Whether this process has waited for another, or others for this one, for longer than they may."""
        return self.phase != END and time.monotonic() - self.since > self.patience

    def end(self) -> None:
        """End this process; one of each machine says why."""
        self.listen()
        rank, place = self.late()
        local_size, own = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), self.world.rank
        first = own - int(os.environ["LOCAL_RANK"])
        speakers = [other for other in range(first, first + local_size) if other != rank] or [own]
        if own == speakers[0]:
            print(
                f"{os.path.basename(sys.argv[0])}: process {rank} stopped responding {place}, and the others have "
                f"waited for {self.patience:g} s (--dist_timeout); continue with the same command and --resume auto",
                file=sys.stderr,
                flush=True,
            )
        else:
            time.sleep(SILENT_S)  # torchrun ends all processes when the first one has left
        os._exit(ExitCode.FAILED)


_watch: Watch | None = None  # of this process


def watch(world: World, patience_seconds: float) -> None:
    """Begin to tell the other processes where this one is."""
    global _watch
    if world.size == 1:
        return
    _watch = watching = Watch(world, patience_seconds)

    def beat() -> None:
        try:
            while True:
                watching.beat()
                if watching.is_overdue():
                    watching.end()
                time.sleep(BEAT_S)
        except (RuntimeError, OSError):  # the store is gone: so is the process that held it, or the run
            return

    threading.Thread(target=beat, daemon=True).start()


def mark(phase: str, step: int | None = None) -> None:
    """This process comes to a phase. step: from 1 on; None: the present one."""
    if _watch is not None:
        _watch.step, _watch.phase = _watch.step if step is None else step, phase
        _watch.since = time.monotonic()


def lost_process() -> str:
    """Which process has gone, in words, after what it takes to be sure; '' where all that is known is that one has."""
    if _watch is None:
        return ""
    try:
        _watch.listen()
        time.sleep(SILENT_S + BEAT_S)
        _watch.listen()
    except (RuntimeError, OSError):
        return ""
    return ", ".join(f"process {rank}, last heard of {place}" for rank, place in sorted(_watch.silent().items()))
