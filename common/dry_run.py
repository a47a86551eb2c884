"""--dry_run: what a training would do and take, from its flags, its data and a few of its steps; nothing is kept."""

import contextlib
import io
import math
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from common.args import format_value
from common.data.loading import Feed, batches
from common.data.order import Length, StepRange
from common.data.pictures import Datasets
from common.data.skipping import Skips
from common.device.launch import in_torchrun
from common.device.memory import memory_in_use
from common.device.world import World, device_name, synchronize
from common.errors import InputError, Stopped
from common.recipe import recipe
from common.record.log import clock
from common.run import Run
from common.seeds import check_seeds, folder_of_seed
from common.tools.complexity import operations, parameters

# By the type of the device: steps before the measurement, in which workers start and kernels are chosen, and steps that
# are measured at least. More are measured until SECONDS are over: the first ones use up what is read ahead.
WARMUP_STEPS, STEPS = {"cpu": 1}, {"cpu": 3}
WARMUP_STEPS_OF_OTHERS, STEPS_OF_OTHERS = 10, 20
SECONDS = 10.0
LONG = 40  # letters of a value that others line up behind
FOREVER = 10**9  # steps: while they are measured no evaluation and no checkpoint is due


def check_dry_run(args: Namespace) -> None:
    """Raise InputError where there is no training to look at; of several seeds, `args` becomes the first run."""
    if args.evaluate:
        raise InputError("--dry_run is for training, and --evaluate trains nothing; leave one of them out")
    if in_torchrun():
        raise InputError("--dry_run measures one device in one process; start it without torchrun or srun")
    if args.seeds > 1:
        check_seeds(args)
        args.output_dir = str(folder_of_seed(args, args.seed))


def dry_run(main: Callable[..., dict], run: Run, data: Datasets, model: nn.Module) -> None:
    """Print the recipe, counts, the size of the network, and memory and time of a few steps of `main` on one device.

    run: has built `data` and `model`, and has not joined others.
    """
    args, length = run.args, run.length
    print(*_recipe(args), sep="\n")
    done = run.resumed.content["steps_done"] if run.resumed else 0
    _say(_counts(run, data, done) | _size(model, run.image_size))
    print(f"measuring some steps, for {SECONDS:.0f} seconds or longer ...", file=sys.stderr, flush=True)
    measured = _Measurement(run)
    measured.of(main, data, model)
    left = max(0, length.total_steps - done)
    of_epoch, of_run = (clock(steps * measured.step_seconds) for steps in (length.steps_per_epoch, left))
    several = ""
    if args.seeds > 1:
        several = f", {clock(args.seeds * left * measured.step_seconds)} for the runs of {args.seeds} seeds"
    steps = f"{of_epoch} for an epoch, {of_run} for the {left:,} steps of the run{several}"
    _say(measured.in_words() | {"time": f"{steps}; evaluations, checkpoints and the start are not in it"})
    print(f"dry run: nothing was written to {args.output_dir}; the same command without --dry_run trains", flush=True)


def _say(texts: dict[str, str]) -> None:
    print(*(f"{name:<11}{text}" for name, text in texts.items()), sep="\n", flush=True)


def _recipe(args: Namespace) -> Iterator[str]:
    """A line for each flag: its value, and where that came from."""
    topics = {
        topic: [(f"--{name}", "-" if value is None else format_value(value), origin) for name, value, origin in rows]
        for topic, rows in recipe(vars(args)).items()
    }
    names, values = (max(len(row[column]) for rows in topics.values() for row in rows) for column in (0, 1))
    for topic, rows in topics.items():
        yield topic
        for name, value, origin in rows:
            yield f"  {name:<{names}}  {value:<{min(values, LONG)}}  {origin}"


def _counts(run: Run, data: Datasets, done: int) -> dict[str, str]:
    """Pictures, classes and steps. done: steps of the run that this one would continue."""
    args, (steps_per_epoch, schedule_steps, total_steps) = run.args, run.length
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    pictures = ", ".join(f"{len(split):,} for {name}" for name, split in splits.items() if split is not None)
    factors = {"per device": run.device_batch_size, "devices": run.processes, "--accumulate": args.accumulate}
    product = " x ".join(f"{count} ({name})" for name, count in factors.items())
    steps = f"{steps_per_epoch:,} per epoch, {total_steps:,} in all ({total_steps / steps_per_epoch:.4g} epochs)"
    if total_steps < schedule_steps:
        steps += f", of a schedule of {schedule_steps:,}"
    if done:
        steps += f"; {done:,} of them are done (--resume)"
    return {
        "data": f"{pictures}; {len(data.train.info.class_names)} classes",
        "steps": f"{steps}, each of {run.images_per_step} images: {product}",
    }


def _size(model: nn.Module, image_size: tuple[int, int]) -> dict[str, str]:
    predicted, trained = (operations(model, image_size, training) / 1e9 for training in (False, True))
    height, width = image_size
    return {
        "network": f"{parameters(model):,} parameters; {predicted:,.1f} GFLOPs for an image of {height} x {width} in "
        f"prediction, {trained:,.1f} in training"
    }


class _Enough(Exception):
    """Ends a training whose steps are measured."""


class _Measurement:
    """Some steps of a training on one device, in a folder that is deleted."""

    def __init__(self, run: Run):
        self.run, self.steps, self.seconds, self.waited = run, 0, 0.0, 0.0
        self.notes: list[str] = []  # about how the run begins

    def of(self, main: Callable[..., dict], data: Datasets, model: nn.Module) -> None:
        """Carry out `main` up to the end of the measurement, from step 0: what is resumed is not looked at again."""
        run = self.run
        unwanted = ("prof", "prof_test", "save_every_steps", "save_every_epochs", "save_every_minutes")
        changes = {name: 0 for name in unwanted if hasattr(run.args, name)}
        with tempfile.TemporaryDirectory(prefix="segmentation-zoo-") as folder:
            run.args = Namespace(**{**vars(run.args), **changes, "output_dir": str(Path(folder, "run"))})
            run.feed, run.length = Feed(self._feed), Length(FOREVER, FOREVER, FOREVER)
            run.resumed, run.continues = None, False
            run.stop.begin()  # a signal waits for the end of a step: the folder is deleted then too
            with contextlib.redirect_stdout(io.StringIO()):
                run.join()
                try:
                    main(run.args, run, data, model)
                except _Enough:
                    run.log.stop("measured")
                except Stopped:
                    print(f"dry run {run.orders.reason}: nothing was changed", file=sys.stderr)
                    raise
        self.notes = run.notes
        self.memory, self.memory_gib = memory_in_use(run.world.device)

    def _feed(
        self, dataset, todo: StepRange, world: World, workers: int, skips: Skips | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Takes the place of `common.data.loading.batches`: the same batches, until enough steps are measured."""
        kind = world.device.type
        self.warmup, least = WARMUP_STEPS.get(kind, WARMUP_STEPS_OF_OTHERS), STEPS.get(kind, STEPS_OF_OTHERS)
        source = batches(dataset, todo, world, workers, skips, self.run.stop.unreadable)
        started = math.inf  # no second is over before the measurement
        with contextlib.closing(source):
            for number in range(FOREVER):
                self.steps, part = divmod(number - self.warmup * todo.parts, todo.parts)
                if part == 0 and self.steps >= least and time.perf_counter() - started >= SECONDS:
                    synchronize(world)
                    self.seconds = time.perf_counter() - started
                    raise _Enough
                if number == self.warmup * todo.parts:
                    synchronize(world)
                    started, self.waited = time.perf_counter(), 0.0
                asked = time.perf_counter()
                item = next(source)
                self.waited += time.perf_counter() - asked
                yield item

    @property
    def step_seconds(self) -> float:
        """Of one optimizer step."""
        return self.seconds / self.steps

    def in_words(self) -> dict[str, str]:
        """What was measured, on what."""
        run, world = self.run, self.run.world
        images = run.device_batch_size * run.parts.number
        precision = "float32" if run.opt_level == "O0" else f"{run.args.amp_dtype} ({run.opt_level})"
        device = f"one {device_name(world.device)}"
        if world.device.type == "cpu":
            device += f", threads: {torch.get_num_threads()}"
        if run.processes > 1:
            device += f": one of {run.processes}, without what they exchange in each step"
        return {
            "begins": "; ".join(self.notes),
            "measured": f"{self.steps} steps in {precision} with the data loader (--workers {run.workers}), after "
            f"{self.warmup} of warm-up, on {device}",
            "speed": f"{self.step_seconds:.3g} s for a step, {images / self.step_seconds:.2f} images/s, data wait "
            f"{self.waited / self.seconds:.0%}",
            "memory": f"{self.memory_gib:.2f} GiB, {self.memory}",
        }
