"""The one object of a training run, and how a script starts it.

A folder's train.py has two functions: `build(args, run)` makes the data sets and the network, and finds everything
that can be wrong with them; `main(args, run, data, model)` is the training, with its loop. `Run` owns what no model
decides: processes, precision, the folder of the run, its log and checkpoints, and going on where a run was.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from common.data.cache import check_cache
from common.data.crops import note_on_scale
from common.data.loading import batches, worker_count
from common.data.order import Length, StepRange, images_of_one_device, steps_in_epoch
from common.data.pictures import Datasets, LabelledPictures
from common.device.exits import exit_codes
from common.device.launch import in_torchrun, is_checked, leave_group, process_count, run_torchrun, say_why
from common.device.placement import data_parallel, place, share_state
from common.device.world import Modes, check_same, chosen_devices, find_device_type, seed_everything, setup, synchronize
from common.nets.backbone import load_imagenet
from common.record.checkpoint import (
    Progress,
    check_evaluation,
    continues_run,
    find_resume,
    load_initial,
    load_model,
    load_weights,
    read_resumable,
    resume,
    save,
)
from common.record.folder import check_output_dir, finished_result
from common.record.log import Course, RunLog
from common.record.profiling import profiled
from common.record.report import Title
from common.scores.evaluate import Evaluation, evaluate, example_panels
from common.step.amp import Amp, autocast, check_device_options, effective_opt_level
from common.step.compiling import compiled, recorded
from common.step.norm import synchronize_batch_norm
from common.step.optimizer import check_source, fused_optimizer

EXAMPLES = 3  # pictures kept of every evaluation

Build = Callable[[Namespace, "Run"], tuple[Datasets, nn.Module]]
Main = Callable[[Namespace, "Run", Datasets, nn.Module], dict]


class Feed(NamedTuple):
    """Where the batches of a training come from: its data set, unless somebody measures what the training does."""

    batches: Callable = batches
    steps_in_epoch: Callable = steps_in_epoch


def launch(main: Main, build: Build, args: Namespace, presets: ModuleType) -> None:
    """Check the devices and the input, then train in as many processes as devices are asked for.

    Whatever can be known to be wrong raises InputError in `build`, before other processes exist. With more than one
    device this process becomes torchrun, which starts this script again with the same arguments once per device.
    Exit codes: 0, 2 for input that cannot work, 1 for a failure, 130 for an interruption.
    """
    with exit_codes():
        processes = process_count(args)
        run = Run(args, presets, processes)
        built = run.build(build)
        say_why(args)
        if processes > 1 and not in_torchrun():
            del run, built  # the processes build their own
            run_torchrun(args)
            return
        run.join()
        main(args, run, *built)
        leave_group()


def carry_out(main: Main, build: Build, args: Namespace, presets: ModuleType, feed: Feed | None = None) -> dict:
    """What `launch` does, in this process alone, for programs that look at a training from within; its result."""
    run = Run(args, presets, feed=feed)
    built = run.build(build)
    run.join()
    return main(args, run, *built)


class Run:
    """A run of a folder's train.py, from its flags.

    In the order of use: `plan`, `load` (or `trained`) in `build`; `prepare`, `optimizer`, then the loop over `steps`
    with `autocast`, `network`, `step`, `due`, `evaluate`; `finish`. Seeding comes before the network is built;
    synchronised batch norm and the device before the optimizer; the optimizer's float32 masters before the processes
    share the network, which waits for the first step.

    args: the flags. presets: the folder's module, for what its reports are called. processes: of the whole run.
    """

    def __init__(self, args: Namespace, presets: ModuleType, processes: int = 1, feed: Feed | None = None):
        self.args, self.processes, self.feed = args, processes, feed or Feed()
        self.title = Title(presets.NETWORK, "acc" if args.validate else "perf", presets.REPORTED_SCORES)
        self.length, self.images_per_step, self.device_batch_size = Length(1, 0, 0), 0, 0
        self.progress, self._resumable = Progress(0, None, 0), None
        self.notes: list[str] = []  # lines about how the run begins
        self._saved_step = None
        seed_everything(args.seed)
        self.checkpoint = find_resume(args.resume, args.output_dir)
        self.continues = continues_run(self.checkpoint, args.output_dir)
        self._check_input()

    def _check_input(self) -> None:
        """Raise InputError for what can be known to be wrong before the data set is looked at."""
        args = self.args
        if args.evaluate:
            check_evaluation(args.checkpoint, args.output_dir)
        if not is_checked():  # the first of several processes may have opened the folder already
            check_output_dir(args.output_dir, self.continues)
            check_device_options(args)

    # ---- before other processes exist

    def build(self, build: Build) -> tuple[Datasets, nn.Module]:
        """The data sets and the network of `build`; raises InputError for files that training could not use."""
        self.datasets, model = build(self.args, self)
        if not is_checked():
            self._check_data()
        return self.datasets, model

    def _check_data(self) -> None:
        """Raise InputError for a cache that cannot be used, and for labels and pictures that training could not use."""
        train_set, *scored_sets = self.datasets
        check_cache(self.args.cache, self.datasets.used)
        if not self.args.evaluate and (note := note_on_scale(train_set, self.datasets.val)):
            print(note, flush=True)
        if self.args.check_data:
            if train_set:
                train_set.check(decode_images=False)  # training reports a picture when it comes to it
            for scored_set in filter(None, scored_sets):
                scored_set.check(decode_images=True)

    def plan(self, train_set: LabelledPictures, image_size: tuple[int, int], optimizer: type[Optimizer]) -> None:
        """Count the images of a step and the steps of the run, and check that the device has the optimizer.

        image_size: height and width of the training images. optimizer: torch.optim.SGD or Adam. Raises InputError for
        what does not divide, for a data set of less than a step, and for what the device does not support.
        """
        args = self.args
        check_source(args.fused_optimizer, optimizer, find_device_type(args.device))
        self.image_size = image_size
        self.device_batch_size = images_of_one_device(args, self.processes)
        self.images_per_step = self.device_batch_size * self.processes
        steps_per_epoch = self.feed.steps_in_epoch(train_set, self.images_per_step)
        schedule_steps = args.epochs * steps_per_epoch if args.epochs else args.total_steps
        self.length = Length(steps_per_epoch, schedule_steps, min(args.max_steps or schedule_steps, schedule_steps))

    def load(
        self, model: nn.Module, from_reference: Callable, encoder: nn.Module | None = None, imagenet_file=None
    ) -> None:
        """Give the network its first weights: those of --resume, of --load_from, of ImageNet, or random ones.

        from_reference and imagenet_file: the folder's, in weights.py; the latter finds the file that --pretrained
        means for `encoder`. Raises InputError for a file that does not fit, and for training images that do not.
        """
        args = self.args
        # batch norms over all processes see the images of all of them
        images_of_a_norm = self.images_per_step if args.sync_bn else self.device_batch_size
        model.check_shape((images_of_a_norm, 3, *self.image_size))
        if self.checkpoint:
            self._resumable = read_resumable(self.checkpoint, model, self.images_per_step)
            self.notes.append(f"continuing from {self.checkpoint}")
        elif args.load_from:
            self.notes.append(load_initial(args, model, from_reference))
        elif imagenet_file and (file := imagenet_file(args.backbone, args.pretrained)):
            self.notes.append(load_imagenet(encoder, file))
        else:
            self.notes.append("initial weights: random")

    def trained(self, build_model: Callable, from_reference: Callable, **options: object) -> nn.Module:
        """The network of --checkpoint with its weights; `options` of build_model are for files that name none."""
        return load_model(self.args.checkpoint, build_model, from_reference, options)

    # ---- in each process

    def join(self) -> None:
        """Take the device of this process, and join the others."""
        args = self.args
        devices = chosen_devices(args)
        if devices and not args.device_list:
            self.notes.append(f"on NPU {devices[0]} by ASCEND_DEVICE_ID; --device_list chooses another one")
        self.world = setup(args.device, devices, args.seed, args.deterministic, Modes.of(args))
        self.workers = worker_count(args.workers, self.world)
        self.opt_level = effective_opt_level(args.amp, args.opt_level, self.world, args.precision_mode)

    def prepare(self, model: nn.Module) -> None:
        """Bring the network to the device, with batch norms over all processes where --sync_bn asks for them."""
        if self.args.sync_bn:
            synchronize_batch_norm(model, self.world)
        self.model = place(model, self.world)

    def optimizer(self, kind: type[Optimizer], parameters: Iterable, **options: object) -> Optimizer:
        """torch.optim.SGD or Adam, in the fastest form that the device has, with mixed precision around it.

        parameters: tensors, or groups with options of their own. A run that continues has its state afterwards.
        """
        args = self.args
        optimizer = fused_optimizer(kind, parameters, self.world, args.fused_optimizer, **options)
        self.amp = Amp(self.model, optimizer, self.opt_level, args.loss_scale, self.world, args.amp_dtype)
        if self._resumable:
            self.progress = resume(self._resumable, self.amp)
            self._resumable = None  # as large as the network and its optimizer
        return optimizer

    def steps(self, train_set: LabelledPictures) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(0-based step, images [B, 3, H, W] float32, target [B, H, W]) of every step that is left, on the device.

        Compiles the network and shares it between the processes first. A run that is complete has no step left.
        """
        args, first_step = self.args, self.progress.steps_done
        check_same(self.world, args, first_step, *self.datasets)
        self.result = None
        if self.continues:
            self.result = finished_result(args.output_dir, first_step, self.length.total_steps, self.world)
            if self.result:
                return
        self.network = self._shared_network()
        self.log = self._open_log()
        todo = StepRange(self.device_batch_size, args.seed, first_step, self.length.total_steps)
        stream = profiled(self.feed.batches(train_set, todo, self.world, self.workers), args, self.world)
        for step, images, target in self.log.steps(stream):
            self._step = step
            yield step, images, target
            if self._saved_step != step and any(self.due(step, every) for every in self._steps_between_saves()):
                self._save()

    def _shared_network(self) -> nn.Module:
        """The network of the training step: compiled or recorded where asked for, and averaging gradients."""
        network = self.model
        shape = (self.device_batch_size, 3, *self.image_size)
        for shorten in (compiled,) * self.args.compile + (recorded,) * self.args.cuda_graph:
            network, note = shorten(self.model, network, self.world, shape, self.amp.autocast)
            self.notes.append(note)
        return data_parallel(network, self.world, self.amp.optimizer)

    def _open_log(self) -> RunLog:
        """The log of the steps that are left."""
        best = self.progress.best if self.continues else None
        steps_per_epoch, _, total_steps = self.length
        first_step = self.progress.steps_done
        course = Course(first_step, total_steps, steps_per_epoch, self.images_per_step, best, self.continues)
        log = RunLog(self.args.output_dir, self.world, course, vars(self.args), self.title)
        self._say_notes(log)
        return log

    def _say_notes(self, log: RunLog) -> None:
        """The lines about how the run begins."""
        for note in self.notes:
            log.say(note)

    def autocast(self) -> AbstractContextManager:
        """The context for the forward pass and the loss."""
        return self.amp.autocast()

    def step(self, losses: dict[str, Tensor]) -> None:
        """Minimise the sum of the losses: backward pass, optimizer step unless a gradient is not finite, a line."""
        self.amp.step(sum(losses.values()))
        self.log.train(self._step, losses, self.amp.optimizer, self.amp)

    def due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps (0: never), and at the end, comes after this 0-based step."""
        done = step + 1
        return every > 0 and (done % every == 0 or done == self.length.total_steps)

    def evaluate(self, val_set: LabelledPictures | None) -> None:
        """Score the network on the validation set, if there is one, and write a checkpoint."""
        self.log.flush(self.amp.optimizer, self.amp)  # stops the run if a loss was not finite
        is_best = False
        if val_set is not None:
            how = self._how_to_evaluate()
            metric = evaluate(self.model, val_set, val_set.metric(self.world), how)
            is_best = self.log.eval(metric)
            self.log.pictures(example_panels(self.model, val_set, EXAMPLES, how))
        self._save(is_best)

    def _steps_between_saves(self) -> tuple[int, int]:
        """After how many steps a checkpoint is written besides those of the evaluations; 0: never."""
        every_epochs = getattr(self.args, "save_every_epochs", 0)
        return self.args.save_every_steps, every_epochs * self.length.steps_per_epoch

    def _save(self, is_best: bool = False) -> None:
        """Write a checkpoint of the present step."""
        self.log.flush(self.amp.optimizer, self.amp)  # the last checkpoint stays a good one
        progress = Progress(self._step + 1, self.log.best, self.images_per_step)
        save(self.args.output_dir, self.amp, progress, is_best)
        self._saved_step = self._step
        self.log.restart_clock()

    @property
    def is_complete(self) -> bool:
        """Whether this process has come to the end of the schedule: not cut off, and not complete before it began."""
        return self.result is None and self.log.step == self.length.schedule_steps

    def finish(self, more_scores: dict[str, float] | None = None) -> dict:
        """Write the result and the report; returns the result. more_scores: for it, besides those of the last step."""
        return self.result or self.log.finish(more_scores)

    # ---- trained weights

    def evaluate_checkpoint(self, model: nn.Module, dataset: LabelledPictures) -> dict:
        """--evaluate: the scores of a trained network on a data set, as the result of this run."""
        args, world = self.args, self.world
        check_same(world, args, 0, dataset)
        course = Course(images_per_step=args.eval_batch_size * world.size)
        log = RunLog(args.output_dir, world, course, vars(args) | model.options, self.title._replace(purpose="eval"))
        self._say_notes(log)
        place(model, world)
        started = time.perf_counter()
        metric = evaluate(model, dataset, dataset.metric(world), self._how_to_evaluate())
        synchronize(world)
        log.rate(len(dataset), time.perf_counter() - started)
        log.eval(metric)
        return log.finish()

    def evaluate_best(self, model: nn.Module, dataset: LabelledPictures | None, name: str) -> dict[str, float]:
        """The best weights of this run on one more data set, whose scores are returned as {name}_{score}.

        model: a second network, to take these weights.
        """
        if dataset is None or self.log.best is None:
            reason = f"there is no {name}/" if dataset is None else "no weights are best"
            self.log.say(f"the split {name} is not evaluated: {reason}")
            return {}
        place(model, self.world)
        if self.world.is_main:
            load_weights(Path(self.args.output_dir, "checkpoints", "best.pt"), model)
        share_state(model, self.world)
        metric = evaluate(model, dataset, dataset.metric(self.world), self._how_to_evaluate())
        scores = metric.scores()
        shown = "  ".join(f"{key} {value:.4f}" for key, value in scores.items())
        self.log.say(f"best weights on the split {name}:  {shown}")
        return {f"{name}_{key}": value for key, value in scores.items()}

    def _how_to_evaluate(self) -> Evaluation:
        half = partial(autocast, self.opt_level, self.args.amp_dtype, self.world)
        return Evaluation(self.world, self.args.eval_batch_size, self.workers, half)
