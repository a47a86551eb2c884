"""What a run writes: progress on the terminal, plain lines and numbers in files, and the report at its end."""

import fcntl
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from common.checkpoint import write_atomically
from common.cores import cpu_cores
from common.data import worker_count
from common.decode import decoder_name
from common.device import World, device_name, sum_over_ranks, synchronize
from common.errors import Diverged, InputError
from common.waiting import DataWait, Reading

RATE_WARMUP_STEPS = 10  # steps that do not count in images/s: workers start, kernels are chosen
LEAST_LOSS_SCALE = 1.0  # of a dynamic one: below it, fp16 would lose fewer gradients without a scale
MAX_SKIPPED_IN_A_ROW = 40  # with a fixed scale, or none: nothing will change by itself
RUN_MARK = "config.json"  # a folder that holds it is a run of ours


def check_output_dir(output_dir: str | Path, continues: bool = False) -> None:
    """Raise InputError when a run could not write there, or would disturb what is there and is no run."""
    path = Path(output_dir)
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"--output_dir {path}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK) or not _can_create(existing):
        raise InputError(f"--output_dir {path}: {existing} is not writable; give another folder with --output_dir")
    if path.exists() and _visible(path) and not (path / RUN_MARK).exists():
        raise InputError(
            f"--output_dir {path} is not empty and holds no run (no {RUN_MARK}); give a new or empty folder"
        )
    if path.exists() and not continues and not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {path}: the run in it cannot be moved aside, {path.parent} is not writable")
    if path.exists():
        _take_lock(path, fcntl.LOCK_SH).close()  # refuses a folder that another run is writing to


def _visible(folder: Path) -> list[Path]:
    """What is in a folder besides hidden files such as the lock."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _can_create(folder: Path) -> bool:
    """Whether a file can really be made: a read-only mount passes the access check of root."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # a process of this number on another machine may have been faster
    except OSError:
        return False
    return True


class RunLog:
    """Progress, scores and files of one run.

    output_dir receives train.log, metrics.jsonl, TensorBoard events, config.json, result.json and the ModelZoo report
    <CaseName>.log; a run that is there already is moved to backup/ beside it, unless this one `continues` it.
    Only the main process writes; every process takes part in the check that the loss is finite.

    Losses stay on the device until a line is printed: one wait for the device every `log_every_steps`.
    images/s counts the images of all devices over the time of the training steps alone, without the first
    RATE_WARMUP_STEPS steps of this process, evaluations and checkpoints. The waiting for data and the memory are those
    of the main process and its device. `workers` and `cache` of `config`, the values of the run, decide what a run
    that waits for its data is advised to do.

    reported_scores: what the closing lines and the report call a score -> its name, as the original scripts have it:
    {"Train Accuracy": "miou"} prints `Final Train Accuracy : 0.7` and writes `TrainAccuracy = 0.7`. Without it
    "Train Accuracy" is the first score.
    """

    def __init__(
        self,
        output_dir: str | Path,
        world: World,
        total_steps: int,
        steps_per_epoch: int,
        images_per_step: int,
        config: dict,
        case: str,
        network: str,
        first_step: int = 0,
        best: float | None = None,
        continues: bool = False,
        log_every_steps: int = 10,
        reported_scores: dict[str, str] | None = None,
    ):
        self.output_dir, self.world, self.best = Path(output_dir), world, best
        self.total_steps, self.steps_per_epoch, self.images_per_step = total_steps, steps_per_epoch, images_per_step
        self.config, self.case, self.network = config, case, network
        self.first_step, self.log_every_steps = first_step, log_every_steps
        self.step, self.loss, self.scores = first_step, float("nan"), {}
        self.reported_scores = reported_scores or {}
        self.started = time.time()
        self._pending: list[Tensor] = []  # losses of the steps since the last line, on the device
        self._mark = time.perf_counter()  # since when the present stretch of training steps runs
        self._skipped, self._skipped_in_a_row = None, 0  # steps with gradients that are not finite
        self._data_seconds = 0.0  # of that stretch: waiting for the next batch
        self._rated_images, self._rated_seconds = 0, 0.0
        self._data_wait = DataWait()
        self._warm = first_step + min(RATE_WARMUP_STEPS, (total_steps - first_step) // 2)
        self._bar = self._events = self._lock = None
        if world.is_main:
            self._open(continues)

    # ---- training

    def steps(self, stream: Iterable) -> Iterator:
        """The items of `stream`, measuring how long each one is waited for."""
        iterator = iter(stream)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._data_seconds += time.perf_counter() - asked
            yield item

    def train(self, step: int, loss: Tensor, optimizer: Optimizer, amp=None) -> None:
        """Take note of a finished step (0-based); prints every `log_every_steps`, after the warm-up and at the end.

        Raises Diverged, naming the step, when a loss since the last line is not finite on some process.
        """
        self.step = step + 1
        self._pending.append(loss.detach().float())
        if self.step == self._warm:
            self.flush(optimizer, amp, rated=False)
        elif self.step % self.log_every_steps == 0 or self.step == self.total_steps:
            self.flush(optimizer, amp)
        if self._bar is not None:
            self._bar.update(1)

    def flush(self, optimizer: Optimizer, amp=None, rated: bool = True) -> None:
        """Fetch the losses of the steps since the last line, check and report them. Call it before a checkpoint."""
        if not self._pending:
            return
        losses = sum_over_ranks(torch.stack(self._pending)).cpu() / self.world.size  # waits for the device
        synchronize(self.world)
        seconds = time.perf_counter() - self._mark
        steps, data_seconds = len(self._pending), self._data_seconds
        self._pending = []
        finite = torch.isfinite(losses)
        if not finite.all():
            bad_step = self.step - steps + int((~finite).nonzero()[0]) + 1
            self._say(f"the loss is {losses[~finite][0].item()} at step {bad_step}")
            raise Diverged(
                f"the loss is {losses[~finite][0].item()} at step {bad_step} of {self.total_steps}; "
                f"the checkpoints in {self.output_dir / 'checkpoints'} are from before. "
                "Lower --lr, lengthen the warm-up, or try --no_amp"
            )
        if amp is not None:
            self._check_loss_scale(amp)
            self._check_skipped(amp.skipped_steps.item(), steps)
        self.loss = losses.mean().item()
        rate = steps * self.images_per_step / seconds
        if rated and self.step > self._warm:
            self._rated_images += steps * self.images_per_step
            self._rated_seconds += seconds
        if self.world.is_main:
            self._report_training(optimizer, amp, rate, data_seconds / seconds)
            if rated and (advice := self._data_wait.advice(self.step, steps, data_seconds, seconds, self._reading)):
                self._say(advice)
        self.restart_clock()

    def _check_skipped(self, skipped: int, steps: int) -> None:
        """Raise Diverged when the loss is finite and yet no step has changed anything for long."""
        all_of_them = self._skipped is not None and skipped - self._skipped == steps
        self._skipped, self._skipped_in_a_row = skipped, self._skipped_in_a_row + steps if all_of_them else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"the gradients of the last {self._skipped_in_a_row} steps up to {self.step} of {self.total_steps} "
                "were not finite, and the steps skipped; lower --lr or a fixed --loss_scale, or try --no_amp"
            )

    def _check_loss_scale(self, amp) -> None:
        """Raise Diverged when a dynamic loss scale has fallen so far that small gradients are lost."""
        if amp.is_dynamic and amp.loss_scale() < LEAST_LOSS_SCALE:
            raise Diverged(
                f"the loss scale has fallen to {amp.loss_scale():g} at step {self.step} of {self.total_steps}, with "
                f"{amp.skipped_steps.item()} skipped steps: gradients overflow fp16 whatever it is; lower --lr, use "
                "--amp_dtype bf16 where the device has it, or --no_amp"
            )

    def _reading(self) -> Reading:
        return Reading(
            workers=worker_count(self.config.get("workers", "auto"), self.world),
            cores=cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            cached=bool(self.config.get("cache")),
            first_epoch=self.step <= self.first_step + self.steps_per_epoch,
            decoder=decoder_name(),
        )

    def _report_training(self, optimizer: Optimizer, amp, rate: float, data_share: float) -> None:
        lr = optimizer.param_groups[0]["lr"]
        memory, memory_gib = memory_in_use(self.world)
        row = {
            "kind": "train",
            "step": self.step,
            "epoch": (self.step - 1) // self.steps_per_epoch + 1,
            "loss": self.loss,
            "lr": lr,
            "images_per_second": rate,
            "data_wait_share": data_share,
            f"{memory}_memory_gib": memory_gib,
        }
        if amp is not None:
            row |= {"loss_scale": amp.loss_scale(), "skipped_steps": amp.skipped_steps.item()}
        self._append(row)
        for name in row.keys() - {"kind", "step", "epoch"}:
            self._events.add_scalar(f"train/{name}", row[name], self.step)
        left = (self.total_steps - self.step) * self.images_per_step / rate
        line = (
            f"epoch {row['epoch']}/{math.ceil(self.total_steps / self.steps_per_epoch)}  "
            f"step {self.step}/{self.total_steps}  loss {self.loss:.4f}  lr {lr:.6f}  "
            f"{rate:.2f} images/s  data wait {data_share:.0%}  {memory} memory {memory_gib:.2f} GiB  ETA {_clock(left)}"
        )
        if row.get("skipped_steps"):
            line += f"  loss scale {row['loss_scale']:g}  skipped {row['skipped_steps']}"
        self._file.write(line + "\n")
        self._file.flush()
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.set_postfix_str(
                f"{rate:.1f} images/s, loss {self.loss:.3f}, lr {lr:.5f}, wait {data_share:.0%}, {memory_gib:.1f} GiB"
            )

    # ---- evaluation

    def eval(self, scores: dict[str, float], class_iou: dict[str, float] | None = None) -> bool:
        """Report an evaluation after the present step; returns whether it is the best so far, by the first score.

        scores: name -> value in [0, 1]; class_iou: class name -> IoU, nan for a class that does not occur.
        """
        self.scores = scores
        value = next(iter(scores.values()))
        is_best = not math.isnan(value) and (self.best is None or value > self.best)
        if is_best:
            self.best = value
        if self.world.is_main:
            row = {"kind": "eval", "step": self.step, **scores, "best": self.best}
            if class_iou:
                row["class_iou"] = {key: None if math.isnan(iou) else iou for key, iou in class_iou.items()}
            self._append(row)
            for key, score in scores.items():
                self._events.add_scalar(f"eval/{key}", score, self.step)
            for key, iou in (class_iou or {}).items():
                if not math.isnan(iou):  # a class that occurs nowhere has no curve
                    self._events.add_scalar(f"eval_class_iou/{key}", iou, self.step)
            values = "  ".join(f"{key} {score:.4f}" for key, score in scores.items())
            when = f" at step {self.step}" if self.total_steps else ""  # an evaluation without training has no step
            self._say(f"evaluation{when}:  {values}{'  (best so far)' if is_best and self.total_steps else ''}")
            if class_iou:
                self._say(
                    "  IoU:  " + "  ".join(f"{k} {'-' if math.isnan(v) else f'{v:.3f}'}" for k, v in class_iou.items())
                )
        self.restart_clock()
        return is_best

    def pictures(self, panels: list[np.ndarray]) -> None:
        """Keep pictures [H, W, 3] uint8 (image, truth and prediction side by side) of the present step."""
        if not self.world.is_main:
            return
        for index, panel in enumerate(panels):
            self._events.add_image(f"eval/example_{index}", panel, self.step, dataformats="HWC")
        self._events.flush()
        self.restart_clock()

    def say(self, line: str) -> None:
        """A line for people, on the console and in train.log; from the main process alone."""
        if self.world.is_main:
            self._say(line)

    def restart_clock(self) -> None:
        """Begin a stretch of training steps: what happened since the last line (a checkpoint, say) is not counted."""
        self._mark, self._data_seconds = time.perf_counter(), 0.0

    def rate(self, images: int, seconds: float) -> None:
        """Count images towards images/s that were not trained on (an evaluation without training)."""
        self._rated_images += images
        self._rated_seconds += seconds

    # ---- end

    def finish(self) -> dict:
        """Write result.json and the ModelZoo report, print the closing lines, and return the result."""
        seconds = time.time() - self.started
        rate = self._rated_images / self._rated_seconds if self._rated_seconds else None
        result = {
            "network": self.network,
            "case": self.case,
            "steps": self.step,
            "images_per_second": rate,
            "loss": None if math.isnan(self.loss) else self.loss,
            "best": self.best,
            "scores": list(self.scores),
            **self.scores,
            "duration_seconds": seconds,
            "output_dir": str(self.output_dir),
        }
        if self.world.is_main:
            write_json(self.output_dir / "result.json", result)
            self._write_report(rate, seconds)
            if self._bar is not None:
                self._bar.close()
            self._say("------------------ Final result ------------------")
            self._say(f"Final Performance images/sec : {_or_na(rate, '.2f')}")
            for name, score in self._reported().items():
                self._say(f"Final {name} : {_or_na(score, '.4f')}")
            self._say(f"E2E Training Duration sec : {seconds:.0f}")
            self._events.close()
            self._file.close()
            self._lock.close()
        return result

    def _reported(self) -> dict[str, float | None]:
        """The last scores under the names of the original scripts."""
        if not self.reported_scores:
            return {"Train Accuracy": next(iter(self.scores.values()), None)}
        return {shown: self.scores.get(name) for shown, name in self.reported_scores.items()}

    def _write_report(self, rate: float | None, seconds: float) -> None:
        """The report of the ModelZoo scripts: the same keys in the same order, from the same numbers as result.json."""
        report = {
            "Network": self.network,
            "RankSize": self.world.size,
            "BatchSize": self.images_per_step,
            "DeviceType": device_name(self.world.device),
            "CaseName": self.case,
            "ActualFPS": _or_na(rate, ".2f"),
            "TrainingTime": _or_na(rate and 1000 * self.images_per_step / rate, ".2f"),  # milliseconds of one step
            **{name.replace(" ", ""): _or_na(score, ".4f") for name, score in self._reported().items()},
            "ActualLoss": _or_na(None if math.isnan(self.loss) else self.loss, ".4f"),
            "E2ETrainingTime": f"{seconds:.0f}",
        }
        text = "".join(f"{key} = {value}\n" for key, value in report.items())
        write_atomically(self.output_dir / f"{self.case}.log", lambda file: file.write(text.encode()))

    # ---- files

    def _open(self, continues: bool) -> None:
        check_output_dir(self.output_dir, continues)
        if not continues and self.output_dir.exists() and _visible(self.output_dir):
            _move_aside(self.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.output_dir)
        if continues:
            self._cut_metrics()
        for left_over in (self.output_dir / "checkpoints").glob(".*.pt.*"):  # of a process killed while it was saving
            left_over.unlink()
        write_json(self.output_dir / RUN_MARK, {"values": self.config, "environment": environment(self.world)})
        self._file = open(self.output_dir / "train.log", "a", encoding="utf-8")  # noqa: SIM115  open for the whole run
        self._metrics = self.output_dir / "metrics.jsonl"
        from tensorboardX import SummaryWriter  # takes a second to import

        # hides what an interrupted run wrote from the first step on that is done again
        purge_step = self.first_step + 1 if continues else None
        self._events = SummaryWriter(str(self.output_dir / "events"), purge_step=purge_step)
        # an event at once: tensorboardX cannot close a file at exit to which it has not written (Python 3.12)
        self._events.add_text("config", "\n".join(f"    {name}: {value}" for name, value in self.config.items()))
        # a terminal that tells no width (some remote shells) has no room for a bar: it gets the lines
        wide = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        if wide and self.total_steps > self.first_step:
            self._bar = tqdm(
                total=self.total_steps, initial=self.first_step, unit="step", dynamic_ncols=True, smoothing=0.1
            )
        steps = f"steps {self.first_step}..{self.total_steps} of" if self.total_steps else "evaluation,"
        self._say(
            f"{self.case}: {self.world.size} x {device_name(self.world.device)}, {steps} {self.images_per_step} images"
            f"{'' if self.total_steps else ' at a time'}; output in {self.output_dir}"
        )

    def _cut_metrics(self) -> None:
        """Drop the rows that an interrupted run wrote after the checkpoint from which this one continues.

        The last evaluation before that is the present score.
        """
        path = self.output_dir / "metrics.jsonl"
        if path.exists():
            rows = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            kept = [row for row in rows if json.loads(row)["step"] <= self.first_step]
            write_atomically(path, lambda file: file.write("".join(kept).encode()))
            for row in map(json.loads, kept):
                if row["kind"] == "eval":
                    self.scores = {key: row[key] for key in row if key not in ("kind", "step", "best", "class_iou")}

    def _append(self, row: dict) -> None:
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")

    def _say(self, line: str) -> None:
        if not self.world.is_main:
            return
        self._file.write(line + "\n")
        self._file.flush()
        if self._bar is None:
            print(line, flush=True)
        else:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


def finished_result(output_dir: str | Path, steps_done: int, total_steps: int, world: World) -> dict | None:
    """The result of a run that has come to its end, and says so; None for one that goes on after `steps_done`."""
    path = Path(output_dir) / "result.json"
    if steps_done < total_steps or not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["steps"] != steps_done:  # it is of an earlier, shorter run
        return None
    if world.is_main:
        print(f"the run in {output_dir} is complete: {steps_done} of {total_steps} steps are done")
    return result


def case_name(network: str, images_per_step: int, world: World, purpose: str) -> str:
    """The ModelZoo's name of a run; purpose: 'acc' (full training), 'perf' (no score is taken) or 'eval'."""
    return f"{network}_bs{images_per_step}_{world.size}p_{purpose}"


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, atomically; values that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def memory_in_use(world: World) -> tuple[str, float]:
    """('device', the most that tensors have taken of it so far) or, on the CPU, ('resident', what the process holds).

    In GiB. Asking does not wait for the device.
    """
    if world.device.type == "cpu":
        return "resident", resident_bytes() / 2**30
    return "device", getattr(torch, world.device.type).max_memory_allocated(world.device) / 2**30


def resident_bytes() -> int:
    """Memory that this process holds now; on a system without /proc, the most it has held."""
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:
            return int(pages.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere


def environment(world: World) -> dict:
    """Versions, device and commit that a result depends on."""
    root = Path(__file__).resolve().parents[1]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "torch_npu": _version("torch_npu"),
        "numpy": np.__version__,
        "pillow": _version("pillow"),
        "platform": platform.platform(),
        "device": device_name(world.device),
        "world_size": world.size,
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_changed_files": _git(root, "status", "--porcelain", "--untracked-files=no"),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *command: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _take_lock(folder: Path, kind: int = fcntl.LOCK_EX):
    """Hold the folder for this process until the file is closed. Raises InputError when another run holds it.

    kind: fcntl.LOCK_SH for a look, which several processes may take at the same time.
    """
    file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  the lock lasts as long as the file is open
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"another run is writing to {folder}; wait for it, or give another --output_dir") from None
    except OSError:
        pass  # some network file systems know no locks
    os.register_at_fork(after_in_child=file.close)  # a worker that outlives a killed run does not hold its lock
    return file


def _move_aside(folder: Path) -> None:
    """Move an older run to backup/<name>-<time> beside it."""
    stamp = datetime.fromtimestamp((folder / RUN_MARK).stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    target, number = folder.parent / "backup" / f"{folder.name}-{stamp}", 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{stamp}-{number}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    except OSError as error:  # a mount point, for example
        raise InputError(
            f"--output_dir {folder}: the run in it cannot be moved aside ({error}); give another --output_dir"
        ) from error


def _finite(value):
    """JSON has no nan: null instead."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _or_na(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
