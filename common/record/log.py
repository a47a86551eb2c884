"""The log of a run: how its training goes, how it is scored, how it ends."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from common.data.decode import decoder_name
from common.data.loading import worker_count
from common.data.waiting import DataWait, Reading
from common.device import determinism
from common.device.cores import cpu_cores
from common.device.memory import memory_in_use
from common.device.watching import END, mark
from common.device.world import World, device_name, sum_over_ranks, synchronize
from common.errors import Diverged
from common.record.bad_step import Recent
from common.record.choosing import Choice
from common.record.course import Course
from common.record.environment import environment
from common.record.files import write_json
from common.record.folder import open_folder
from common.record.health import Health
from common.record.lines import Lines
from common.record.numbers import Numbers, cut_rows
from common.record.pieces import add_piece
from common.record.report import Title, closing_lines, write_report
from common.report.at_end import page_at_the_end
from common.scores.metrics import Metric

RATE_WARMUP_STEPS = 10  # steps that do not count in images/s: workers start, kernels are chosen


class RunLog:
    """Progress, scores and files of one run.

    output_dir receives train.log, metrics.jsonl, TensorBoard events, config.json, result.json, the ModelZoo report
    <CaseName>.log and the page report.html; a run that already exists is moved to backup/ beside it, unless this one
    continues it.
    Only the main process writes; every process takes part in the check that the loss is finite.

    Losses stay on the device until a line is printed: one wait for the device every `log_every_steps` of `config`, the
    values of the run. images/s counts the images of all devices over the time of the training steps alone, without the
    first RATE_WARMUP_STEPS steps of this process, evaluations and checkpoints. The waiting for data and the memory are
    those of the main process and its device; `workers` and `cache` of `config` decide what a run that waits for its
    data is advised to do.
    """

    def __init__(self, output_dir: str | Path, world: World, course: Course, config: dict, title: Title):
        self.output_dir, self.world, self.course = Path(output_dir), world, course
        self.config, self.title = config, title
        self.step = course.first_step
        self.choice = Choice(config.get("best_by", ""), course.best, course.evaluations_since_best)
        self.loss, self.scores, self.details = float("nan"), {}, {}  # of the last line, of the last evaluation
        self.started = course.started or time.time()  # of this piece, less what the pieces before have taken
        self._scored_step, self._unrecorded = None, False
        self._pending: list[list[Tensor]] = []  # sum and terms of the losses since the last line, on the device
        self._term_names: list[str] = []
        self._mark = time.perf_counter()  # since when the present stretch of training steps runs
        self._data_seconds = 0.0  # of that stretch: waiting for the next batch
        self._rated_images, self._rated_seconds = 0, 0.0
        self._data_wait, self._health, self.recent = DataWait(), Health(course.total_steps), Recent()
        self._warm = course.first_step + min(RATE_WARMUP_STEPS, (course.total_steps - course.first_step) // 2)
        if world.is_main:
            self._open()

    # ---- training

    def steps(self, stream: Iterable) -> Iterator:
        """The items of `stream`, measuring how long each one is waited for."""
        iterator = iter(stream)
        while True:
            asked = time.perf_counter()
            mark("data", self.step + 1)
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._data_seconds += time.perf_counter() - asked
            mark("forward")
            yield item

    def train(self, step: int, losses: dict[str, Tensor], optimizer: Optimizer, amp=None) -> None:
        """Take note of a finished step (0-based); prints every `log_every_steps`, after the warm-up and at the end.

        losses: the terms by name, whose sum was minimised. Raises Diverged, naming step and term, when one since the
        last line is not finite on some process.
        """
        self.step = step + 1
        self._term_names = list(losses)
        terms = [term.detach().float() for term in losses.values()]
        self._pending.append([sum(terms), *terms])
        self.recent.note(self.step, self._pending[-1], optimizer)
        if self.step == self._warm:
            self.flush(optimizer, amp, rated=False)
        elif self.step % self.config["log_every_steps"] == 0 or self.step == self.course.total_steps:
            self.flush(optimizer, amp)
        if self.world.is_main:
            self._lines.advance()

    def flush(self, optimizer: Optimizer, amp=None, rated: bool = True) -> None:
        """Fetch the losses of the steps since the last line, check and report them. Call it before a checkpoint."""
        if not self._pending:
            return
        steps = len(self._pending)
        pending = torch.stack([value for row in self._pending for value in row]).view(steps, -1)
        losses = sum_over_ranks(pending).cpu() / self.world.size  # waits for the device
        synchronize(self.world)
        seconds, data_seconds = time.perf_counter() - self._mark, self._data_seconds
        self._pending = []
        try:
            has_checkpoint = (self.output_dir / "checkpoints" / "last.pt").exists()
            self._health.check_losses(losses, self._term_names, self.step, has_checkpoint)
            if amp is not None:
                self._health.check_amp(amp, self.step, steps)
        except Diverged as error:
            raise self.diverged(error) from error
        self.recent.told()
        self.say(*determinism.news())
        mean = losses.mean(0).tolist()
        self.loss = mean[0]
        images = steps * self.course.images_per_step
        if rated and self.step > self._warm:
            self.rate(images, seconds)
        if self.world.is_main:
            row = self._training_row(mean, optimizer, amp)
            row |= {"images_per_second": images / seconds, "data_wait_share": data_seconds / seconds}
            self._report_training(row)
            if rated and (advice := self._data_wait.advice(self.step, steps, data_seconds, seconds, self._reading)):
                self.say(advice)
        self.restart_clock()

    def diverged(self, error: Diverged) -> Diverged:
        """The same error, said, with the file that tells of the steps before it; for the processes that have it."""
        where = self.recent.write(self.output_dir, error, self._term_names, self.world)
        error = Diverged("; ".join(filter(None, (str(error), where))), error.step, error.not_finite)
        self.say(str(error))
        return error

    def _reading(self) -> Reading:
        return Reading(
            workers=worker_count(self.config.get("workers", "auto"), self.world),
            cores=cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            cached=self.config.get("cache_share", 1.0) if self.config.get("cache") else 0.0,
            first_epoch=self.step <= self.course.first_step + self.course.steps_per_epoch,
            decoder=decoder_name(),
        )

    def _training_row(self, mean_losses: list[float], optimizer: Optimizer, amp) -> dict:
        """What metrics.jsonl tells of the steps since the last line, but for their speed."""
        memory, memory_gib = memory_in_use(self.world.device)
        row = {
            "kind": "train",
            "step": self.step,
            "epoch": (self.step - 1) // self.course.steps_per_epoch + 1,
            "loss": mean_losses[0],
            "lr": optimizer.param_groups[0]["lr"],
            "rated": [self._rated_images, self._rated_seconds],
            f"{memory}_memory_gib": memory_gib,
        }
        if len(self._term_names) > 1:
            row |= {f"loss_{name}": loss for name, loss in zip(self._term_names, mean_losses[1:], strict=True)}
        if amp is not None:
            row |= {"loss_scale": amp.loss_scale(), "skipped_steps": amp.skipped_steps.item()}
        return row

    def _report_training(self, row: dict) -> None:
        self._append(row)
        memory = "device" if "device_memory_gib" in row else "resident"
        rate, memory_gib = row["images_per_second"], row[f"{memory}_memory_gib"]
        total_steps, images_per_step = self.course.total_steps, self.course.images_per_step
        line = (
            f"epoch {row['epoch']}/{math.ceil(total_steps / self.course.steps_per_epoch)}  "
            f"step {self.step}/{total_steps}  loss {self.loss:.4f}  lr {row['lr']:.6f}  "
            f"{rate:.2f} images/s  data wait {row['data_wait_share']:.0%}  {memory} memory {memory_gib:.2f} GiB  "
            f"ETA {clock((total_steps - self.step) * images_per_step / rate)}"
        )
        if row.get("skipped_steps"):
            line += f"  loss scale {row['loss_scale']:g}  skipped {row['skipped_steps']}"
        short = (
            f"{rate:.1f} images/s, loss {self.loss:.3f}, lr {row['lr']:.5f}, wait {row['data_wait_share']:.0%}, "
            f"{memory_gib:.1f} GiB"
        )
        self._lines.report(line, short)

    # ---- evaluation

    def eval(self, metric: Metric, details: dict | None = None) -> bool:
        """Report an evaluation after the present step; returns whether it is the best so far: see `Choice`.

        metric: of the whole data set, summed over the processes. details: what result.json says besides its scores.
        """
        scores = metric.scores()
        self.scores, self.details, self._scored_step = scores, details or {}, self.step
        is_best = self.choice.takes(scores, metric.class_scores())
        if self.world.is_main:
            self._report_evaluation(metric, is_best)
        self.restart_clock()
        return is_best

    def _report_evaluation(self, metric: Metric, is_best: bool) -> None:
        scores, class_iou = self.scores, metric.class_scores()  # nan for a class that does not occur
        row = {"kind": "eval", "step": self.step, **scores, "best": self.choice.best, "pixels": metric.pixels()}
        row |= {"details": self.details} if self.details else {}
        if class_iou:
            row["class_iou"] = class_iou
        self._append(row)
        values = "  ".join(f"{key} {score:.4f}" for key, score in scores.items())
        is_training = self.course.total_steps > 0  # an evaluation without training has no step
        when = f" at step {self.step}" if is_training else ""
        self.say(f"evaluation{when}:  {values}{'  (best so far)' if is_best and is_training else ''}")
        if class_iou:
            shown = (f"{key} {'-' if math.isnan(iou) else f'{iou:.3f}'}" for key, iou in class_iou.items())
            self.say("  IoU:  " + "  ".join(shown))

    def _append(self, row: dict) -> None:
        now = datetime.fromtimestamp(time.time()).astimezone().isoformat(timespec="seconds")
        self._record(self._numbers.append, row | {"time": now, "elapsed_seconds": time.time() - self.started})

    def _record(self, write: Callable, *content) -> None:
        """Write numbers or pictures. A disk that does not take them ends no training: only checkpoints count."""
        try:
            write(*content)
            self._unrecorded = False
        except OSError as error:
            if not self._unrecorded:
                self.say(f"warning: metrics and events are not written ({error.strerror or error}); training goes on")
            self._unrecorded = True

    def pictures(self, panels: list[np.ndarray]) -> None:
        """Keep pictures [H, W, 3] uint8 (image, truth and prediction side by side) of the present step."""
        if self.world.is_main:
            self._record(self._numbers.pictures, panels, self.step)
            self.restart_clock()

    def say(self, *lines: str) -> None:
        """Lines for people, on the console and in train.log; from the main process alone."""
        if self.world.is_main:
            for line in lines:
                self._lines.say(line)

    def restart_clock(self) -> None:
        """Begin a stretch of training steps: what happened since the last line (a checkpoint, say) is not counted."""
        self._mark, self._data_seconds = time.perf_counter(), 0.0

    def rate(self, images: int, seconds: float) -> None:
        """Count images towards images/s."""
        self._rated_images += images
        self._rated_seconds += seconds

    # ---- end

    def finish(
        self, more_scores: dict[str, float] | None = None, skipped: Sequence[str] = (), details: dict | None = None
    ) -> dict:
        """Write result.json, the ModelZoo report and the page, print the closing lines, and return the result.

        Final scores are those of an evaluation after the last step, or there are none. more_scores: besides them.
        skipped: what is wrong with training samples that were replaced. details: of an evaluation that is no part of a
        training.
        """
        mark(END)
        scores = {**(self.scores if self._scored_step == self.step else {}), **(more_scores or {})}
        details = details or (self.details if self._scored_step == self.step else {})
        result = {
            "network": self.title.network,
            "case": self._case,
            "steps": self.step,
            "images_per_second": self._rated_images / self._rated_seconds if self._rated_seconds else None,
            "loss": None if math.isnan(self.loss) else self.loss,
            "best": self.choice.best,
            "scores": list(scores),
            **scores,
            **details,
            "duration_seconds": time.time() - self.started,  # end to end: checks, imports and weights included
            "output_dir": str(self.output_dir),
        }
        result |= determinism.found()
        if self.choice.is_enough(self.config.get("stop_after", 0)):
            result |= {"stopped_early": f"no better score in {self.choice.evaluations_since} evaluations"}
        if skipped:
            result |= {"skipped_samples": len(skipped), "skipped": list(skipped)}
            self.say(f"{len(skipped)} training samples could not be read and were replaced; result.json lists them")
        if self.world.is_main:
            piece = self._piece
            result |= {"git_commit": piece["environment"]["git_commit"], "seed": self.config.get("seed")}
            result["command"] = piece["command"]
            self._lines.end_bar()
            self.say(*determinism.news())  # an evaluation has no line before
            self.say(*closing_lines(result, self.title))
            write_json(self.output_dir / "result.json", result)
            write_report(result, self.title, self.course.images_per_step, self.world)
            self.say(*page_at_the_end(self.output_dir))
            self._close()
        return result

    def stop(self, reason: str) -> None:
        """Say that the run ends before its end, and let its files go."""
        if self.world.is_main:
            self._lines.end_bar()
            done = f"{reason} after step {self.step} of {self.course.total_steps}"
            go_on = "continue with the same command and --resume auto"
            self.say(f"{done}; {go_on}" if self.course.total_steps else f"{reason}; give the same command again")
            self._close()

    def fail(self, reason: str) -> None:
        """Keep in train.log why the run ends, of which the terminal is told by whoever ends the process."""
        if self.world.is_main:
            self._lines.keep(f"failed after step {self.step}: {reason}")

    def _close(self) -> None:
        self._numbers.close()
        self._lock.close()

    @property
    def _case(self) -> str:
        return self.title.case(self.course.images_per_step, self.world)

    def _open(self) -> None:
        course = self.course
        self._lock = open_folder(self.output_dir, course.continues)
        if course.continues:
            before = cut_rows(self.output_dir, course.first_step)
            self.scores, self.details = before.scores, before.details
            self._scored_step, self.loss = before.scored_step, before.loss
            self._rated_images, self._rated_seconds = before.rated
            self.started -= before.elapsed_seconds
        here = {"values": self.config, "environment": environment(self.world)}
        self._piece = add_piece(self.output_dir, self.title.network, course.first_step, here, course.continues)
        self._numbers = Numbers(self.output_dir, self.config, course.first_step + 1 if course.continues else None)
        self._lines = Lines(self.output_dir / "train.log", course.first_step, course.total_steps)
        what = f"evaluation, batch size {course.images_per_step}"
        if course.total_steps:
            what = f"steps {course.first_step}..{course.total_steps} of {course.images_per_step} images"
        devices = f"{self.world.size} x {device_name(self.world.device)}"
        self.say(f"{self._case}: {devices}, {what}; output in {self.output_dir}")


def clock(seconds: float) -> str:
    """Hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
