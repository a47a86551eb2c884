"""`benchmark train`: the training loop of a folder's train.py, its clock read between the steps."""

import contextlib
import io
import itertools
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common import IGNORE_INDEX
from common.data.colours import normalize
from common.data.loading import Feed, batches
from common.data.order import StepRange
from common.device.world import World, seed_step, synchronize
from common.run import Run
from common.step.amp import DTYPES
from common.tools.operators import Launched
from common.tools.peak import training_operations
from common.tools.plain import plain_training
from common.tools.timing import Folder, Held, facts, figure, held, ratio, timed, utilisation

FOREVER = 1_000_000  # steps: no epoch ends while a training is timed
BATCHES_OF_NOISE = 4  # that a training is fed in turn
COUNTED = 2  # steps whose operators are counted: of two in a row one has no line of the log


def benchmark_train(folder: Folder, own: Namespace) -> dict:
    """The training loop of the folder's train.py, fed with noise or from its data set."""
    args = _training_values(folder, own)
    train = folder.module("train")
    clock = _TrainingClock(folder, own)
    with tempfile.TemporaryDirectory() as temporary:
        args.output_dir = str(Path(temporary, "run"))
        run = Run(args, folder.presets, feed=Feed(clock.feed, lambda *_: FOREVER))
        built = run.build(train.build)  # says what it finds in a cache
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run.join()
            train.main(args, run, *built)
    lines = itertools.dropwhile(lambda line: "; output in " not in line, said.getvalue().splitlines())
    next(lines)  # names the run; what comes before the steps is about how it begins
    notes = itertools.takewhile(lambda line: not line.startswith("epoch "), lines)
    return clock.result() | {"notes": "; ".join(notes)}


def _training_values(folder: Folder, own: Namespace) -> Namespace:
    """The values of a run that trains for so many steps, starts from nothing and takes no score."""
    args = folder.args
    # the last one writes a checkpoint, and is not timed
    steps = own.warmup + COUNTED + own.steps + 1
    changes = {
        "max_steps": steps,
        "total_steps": FOREVER,
        "epochs": None if hasattr(args, "total_steps") else args.epochs,
        "eval_every_steps": FOREVER,
        "save_every_steps": 0,
        "accumulate": 1,  # what is timed is one batch of a device
        "pretrained": "none",
        "load_from": "",
        "resume": "",
        "validate": False,
        "evaluate": False,
        "prof": False,
        "prof_test": False,
    }
    for name, value in changes.items():
        if hasattr(args, name):
            setattr(args, name, value)
    return args


class _TrainingClock:
    """Feeds a training loop, and reads the clock between two of its steps; runs the plain step in between."""

    def __init__(self, folder: Folder, own: Namespace):
        self.folder, self.own = folder, own
        self.ours: list[float] = []
        self.plain: dict[str, list[float]] = {}  # name of a plain form -> seconds
        self.memory_gib: dict[str, float] = {}
        self.held: dict[str, Held] = {}
        self.data_wait_share = 0.0
        self.recorded = False  # with --cuda_graph
        self.launched: list[int] = []  # operators in each of COUNTED steps

    def feed(self, dataset, todo: StepRange, world: World, workers: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Takes the place of `common.data.loading.batches`. One repetition is `block` steps."""
        self.world, self.images, self.workers = world, todo.device_batch_size, workers
        self.recorded = self.folder.args.cuda_graph
        steps, own = itertools.count(), self.own
        if own.loader:
            source = batches(dataset, todo, world, workers)
        else:
            noise = _noise(self.folder, todo.device_batch_size, world)
            source = ((0, *pair) for pair in itertools.cycle(noise))

        waits: list[float] = []

        def items(count: int) -> Iterator[tuple[int, Tensor, Tensor]]:
            for _ in range(count):
                asked = time.perf_counter()
                _, images, target = next(source)
                waits.append(time.perf_counter() - asked)
                step = next(steps)
                seed_step(todo.seed, world, step)
                yield step, images, target

        yield from items(1)
        self._measure_memory("ours")
        yield from items(own.warmup - 1)
        self._measure_memory("ours", ends=True)
        yield from self._counted(items(COUNTED))
        plain = {} if own.loader or not own.plain else self._plain_forms(noise)
        waits.clear()
        for done in range(own.block, own.steps + 1, own.block):
            synchronize(world)
            started = time.perf_counter()
            yield from items(own.block)
            synchronize(world)
            self.ours.append(time.perf_counter() - started)
            for name, form in plain.items():
                some = itertools.islice(form, own.block)
                self.plain.setdefault(name, []).append(timed(partial(list, some), world))
            if done == own.steps or (not self.held and done >= own.steps // 10):
                self.held[f"after {done} steps"] = held()
        self.data_wait_share = sum(waits) / sum(self.ours)
        yield from items(1)

    def _counted(self, items: Iterator) -> Iterator:
        """The same items, with the operators counted of what is done with each of them."""
        for item in items:
            if self.folder.args.compile or self.folder.args.cuda_graph:  # they launch what they have made of these
                yield item
            else:
                with Launched() as launched:
                    yield item
                self.launched.append(launched.counts.total())

    def _plain_forms(self, noise: list[tuple[Tensor, Tensor]]) -> dict[str, Iterator[Tensor]]:
        """The step in float32 and, beside mixed precision, under autocast."""
        forms = {"plain": self._plain_steps("plain", None, noise)}
        if self.folder.opt_level(self.world) != "O0":
            dtype = DTYPES[self.folder.args.amp_dtype]
            forms["plain, autocast"] = self._plain_steps("plain, autocast", dtype, noise)
        return forms

    def _plain_steps(
        self, name: str, dtype: torch.dtype | None, noise: list[tuple[Tensor, Tensor]]
    ) -> Iterator[Tensor]:
        """Endless steps of a plain form, warmed up; their memory is measured above what there is."""
        world, before = self.world, 0
        if world.device.type != "cpu":
            batch_bytes = sum(tensor.nbytes for pair in noise for tensor in pair)
            before = getattr(torch, world.device.type).memory_allocated(world.device) - batch_bytes
        training_loss = self.folder.module("model").training_loss
        training_loss = partial(training_loss, **self.folder.taken_by(training_loss))
        step = plain_training(self.folder.network(world), training_loss, self.folder.args, dtype)
        steps = (step(*pair) for pair in itertools.cycle(noise))
        next(steps)
        self._measure_memory(name)
        for _ in range(self.own.warmup - 1):
            next(steps)
        self._measure_memory(name, ends=True, before=before)
        return steps

    def _measure_memory(self, name: str, ends: bool = False, before: int = 0) -> None:
        """The most that an accelerator held between a call and one that `ends` the measurement."""
        if self.world.device.type == "cpu":
            return
        backend = getattr(torch, self.world.device.type)
        if ends:
            # what a recorded step works in is allocated while it is recorded, and reserved from then on
            is_recorded = name == "ours" and self.recorded
            most = backend.max_memory_reserved if is_recorded else backend.max_memory_allocated
            self.memory_gib[name] = (most(self.world.device) - before) / 2**30
        else:
            backend.reset_peak_memory_stats(self.world.device)

    def result(self) -> dict:
        folder, world = self.folder, self.world
        images = self.images * self.own.block
        operations = training_operations(folder.module("model").build_model, folder.network_options(), folder.size)
        figures = {"ours": figure(self.ours, images)}
        result = {
            **facts("train", folder, world, images=self.images),
            "steps_per_repetition": self.own.block,
            "clock": "data loader, forward, loss, backward, optimizer, log"
            if self.own.loader
            else "forward, loss, backward, optimizer, log; images of noise are on the device",
            "gflops_per_image": operations / 1e9,
            "figures": figures,
            "held": {when: there._asdict() for when, there in self.held.items()},
        }
        if self.launched:
            result["operators_per_step"] = min(self.launched)
        if self.plain:
            figures |= {name: figure(seconds, images) for name, seconds in self.plain.items()}
            result["ratios"] = {f"{name} / ours": ratio(seconds, self.ours) for name, seconds in self.plain.items()}
        if self.memory_gib:
            result["peak_device_memory_gib"] = self.memory_gib
        if self.own.loader:
            result["loader"] = {"workers": self.workers, "data_wait_share": self.data_wait_share}
        return result | utilisation(result, figures["ours"]["images_per_second"], operations)


def _noise(folder: Folder, device_batch_size: int, world: World) -> list[tuple[Tensor, Tensor]]:
    """Batches of random bytes as a data set would deliver them, with some ignored pixels."""
    generator = torch.Generator().manual_seed(folder.args.seed)
    classes = len(folder.module("data").INFO.class_names)
    noise = []
    for _ in range(BATCHES_OF_NOISE):
        pixels = torch.randint(256, (device_batch_size, 3, *folder.size), dtype=torch.uint8, generator=generator)
        target = torch.randint(classes, (device_batch_size, *folder.size), generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.1] = IGNORE_INDEX
        images = normalize(pixels.to(world.device).contiguous(memory_format=world.memory_format))
        noise.append((images, target.to(world.device)))
    return noise
