"""Training samples that cannot be read, and others that take their place (--skip_bad N).

Which sample takes a place depends on the data set and the key of the sample alone: the next one in the order of the
data set that can be read. So a run that is resumed, or has other workers or processes, trains on the same samples.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from common.device.world import World, sum_over_ranks
from common.errors import InputError
from common.record.files import write_json

SKIPPED = "skipped.json"  # in the folder of a run: index of a sample -> what is wrong with it

Bad = tuple[int, str]  # index of a sample, what is wrong with it


def candidates(key, length: int, most: int) -> Iterator:
    """The key of a sample, and then those that may take its place: at most so many, the nearest first.

    key: (epoch, index) in training; a bare index, as in evaluation, has no other.
    """
    yield key
    if isinstance(key, tuple):
        epoch, index = key
        yield from ((epoch, (index + step) % length) for step in range(1, min(most, length - 1) + 1))


class Skips:
    """Which samples of a run were replaced, with their reasons; they are said in its log, and kept in its folder.

    most: how many there may be in the whole run. Each process knows its own at once and those of the others after
    `share`.
    """

    def __init__(self, most: int):
        self.most, self.found = most, {}

    def begin(self, dataset: Dataset, world: World, say: Callable, output_dir: str | Path, continues: bool) -> None:
        """Before the steps of a run; of one that is continued the samples that it had replaced before are known.

        say: of the run's log, of the main process alone.
        """
        self._dataset, self._world, self._say = dataset, world, say
        self._file = Path(output_dir, SKIPPED)
        if continues:
            with contextlib.suppress(OSError, ValueError):
                self.found = {int(index): reason for index, reason in json.loads(self._file.read_text()).items()}

    def take(self, bad: Sequence[Bad]) -> None:
        """Take note of samples of a batch that were replaced. Raises InputError for the first that is too many."""
        for index, reason in bad:
            if index in self.found:
                continue
            if len(self.found) >= self.most:
                raise InputError(f"{reason}; {self.most} others were replaced before, as --skip_bad {self.most} allows")
            self.found[index] = reason
            self._say(f"sample {index} is replaced by the next one that can be read: {reason}")
            if self._world.is_main:
                with contextlib.suppress(OSError):  # of a full disk the run says more where it matters
                    write_json(self._file, self.found)

    def share(self) -> list[str]:
        """What is wrong with all samples that any process has replaced; all processes ask at the same step.

        Raises InputError, in all of them, where they are too many together.
        """
        if self.most and self._world.size > 1:
            marks = torch.zeros(len(self._dataset), dtype=torch.int32, device=self._world.device)
            marks[list(self.found)] = 1
            self.take([(index, self._reason(index)) for index in sum_over_ranks(marks).nonzero().flatten().tolist()])
        return [self.found[index] for index in sorted(self.found)]

    def _reason(self, index: int) -> str:
        if index in self.found:
            return self.found[index]
        try:
            self._dataset[0, index]
        except InputError as error:
            return str(error)
        return f"sample {index} could not be read by another process"
