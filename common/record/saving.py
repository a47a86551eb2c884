"""Writing the checkpoints of a run, so that one that is whole is always there, and when the clock asks for one."""

import errno
import os
import shutil
import time
from argparse import Namespace
from pathlib import Path

import torch

from common.data.order import Length
from common.device.watching import mark
from common.errors import Diverged, NotSaved
from common.record.checkpoint import Progress, state_of
from common.record.files import write_atomically
from common.record.log import RunLog
from common.record.resuming import older_checkpoints
from common.record.tensors import check_archive, named_tensors, not_finite
from common.step.amp import Amp

STRUCTURE_BYTES = 1 << 20  # of a checkpoint, besides its tensors


class Saver:
    """Writes checkpoints/last.pt, older ones as last-<step>.pt, and best.pt; the main process alone does.

    Each file gets another name at first, is brought to the disk and read back from there; then the last.pt before it
    becomes last-<step>.pt, it becomes last.pt, and of the older ones the oldest go. A process that is killed, and a
    disk that fills, leave at least one that is whole. A file that cannot be written is said in one line, and the
    training goes on to the next one; `check_saved` raises NotSaved where none came.

    args: its flags keep and save_every_... made_by: of `common.record.origin`.
    """

    def __init__(self, args: Namespace, amp: Amp, log: RunLog, length: Length, made_by: dict):
        self.folder = Path(args.output_dir) / "checkpoints"
        self.args, self.amp, self.log, self.length, self.made_by = args, amp, log, length, made_by
        self._saved_step: int | None = None  # 0-based
        self._since = time.monotonic()  # the last one
        self._asked = False  # for the next one, by the clock
        self._step_of_last: int | None = None  # of a last.pt that is known to be whole
        self._unsaved: dict[str, str] = {}  # file that could not be written -> what was said of it

    def continues(self, checkpoint: Path, steps_done: int) -> None:
        """This run goes on in the folder of the run that wrote `checkpoint`."""
        self._step_of_last = steps_done if checkpoint.name == "last.pt" else None

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to come after this 0-based step, besides those of the evaluations and the clock."""
        every_epochs = getattr(self.args, "save_every_epochs", 0)
        every = self.args.save_every_steps, every_epochs * self.length.steps_per_epoch
        return not self.has(step) and any(self.length.is_due(step, steps) for steps in every)

    def has(self, step: int) -> bool:
        """Whether a checkpoint was written, or tried, after this 0-based step."""
        return self._saved_step == step

    def asks(self) -> bool:
        """Whether the clock asks for a checkpoint: that of the main process, and once until there is one."""
        seconds = 60 * self.args.save_every_minutes
        is_late = self.amp.world.is_main and 0 < seconds <= time.monotonic() - self._since
        asks, self._asked = is_late and not self._asked, self._asked or is_late
        return asks

    def save(self, step: int, is_best: bool = False, unscored: bool = False) -> None:
        """Write last.pt after this 0-based step, and when `is_best`, best.pt; unscored: see `Progress`.

        Raises Diverged for losses and weights that are not finite: the last checkpoint stays a good one.
        """
        mark("save")
        self.log.flush(self.amp.optimizer, self.amp)  # looks at the losses
        if self.amp.world.is_main:
            choice = self.log.choice
            images_per_step = self.log.course.images_per_step
            progress = Progress(step + 1, choice.best, images_per_step, unscored, choice.evaluations_since)
            weights, state = state_of(self.amp, progress, self.made_by)
            if where := not_finite(state):
                words = (
                    f"{where} is not finite after step {step + 1} of {self.length.total_steps}, and no checkpoint of "
                    "it is written; lower --lr, lengthen the warm-up, or try --no_amp"
                )
                raise self.log.diverged(Diverged(words, step + 1, [where]))
            if is_best:
                self._write("best.pt", weights)
            self._write("last.pt", state)
        self._saved_step, self._since, self._asked = step, time.monotonic(), False
        self.log.restart_clock()

    def _write(self, name: str, state: dict) -> None:
        path, step = self.folder / name, state["steps_done"]
        try:
            self._check_space(state)
            keep_older = self._keep_older if name == "last.pt" else None
            write_atomically(path, lambda file: torch.save(state, file), check_archive, keep_older)
        except OSError as error:
            self._unsaved[name] = f"{path} of step {step} is not written: {error.strerror or error}"
            self.log.say(f"warning: {self._unsaved[name]}; training goes on, and the next checkpoint is tried")
            return
        self._unsaved.pop(name, None)
        if name == "last.pt":
            self._step_of_last = step
            self._drop_oldest(step)

    def _check_space(self, state: dict) -> None:
        """Raise OSError where the disk has no room for a file of this content."""
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for _, tensor in named_tensors(state)}
        needed = STRUCTURE_BYTES + sum(storage.nbytes() for storage in storages.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            words = f"it needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free on the disk"
            raise OSError(errno.ENOSPC, words, str(self.folder))

    def _keep_older(self) -> None:
        """Give the last.pt that is about to be replaced the name of its step, too."""
        if self.args.keep < 2 or self._step_of_last is None:
            return
        last, older = self.folder / "last.pt", self.folder / f"last-{self._step_of_last}.pt"
        older.unlink(missing_ok=True)
        try:
            os.link(last, older)
        except FileNotFoundError:  # somebody has removed it
            pass
        except OSError:  # a file system without links: until the new one has its name, this one is the newest
            os.replace(last, older)

    def _drop_oldest(self, step: int) -> None:
        """Remove what is more than --keep, and what a run that went back to an earlier step has left behind."""
        older = older_checkpoints(self.folder)
        before = [path for number, path in older.items() if number < step]
        for path in older.values():
            if path not in before[: self.args.keep - 1]:
                path.unlink(missing_ok=True)

    def is_unsaved(self, name: str) -> bool:
        """Whether a file is missing, or an older one than there should be."""
        return name in self._unsaved

    def check_saved(self) -> None:
        """Raise NotSaved, at the end of a run, where the last checkpoint could not be written."""
        if self._unsaved:
            raise NotSaved(
                f"{'; '.join(self._unsaved.values())}; make room on the disk, and continue from the checkpoint before "
                "with the same command and --resume auto"
            )
