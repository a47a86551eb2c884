"""The one object of a training run.

A folder's train.py has two functions: `build(args, run)` makes the data sets and the network, and finds everything
that can be wrong with them; `main(args, run, data, model)` is the training, with its loop; `common.start` begins with
them. `Run` owns what no model decides: processes, precision, the folder of the run, its log and checkpoints, and going
on where a run was.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property, partial
from types import ModuleType

from torch import Tensor, nn
from torch.optim import Optimizer

from common.data.checking import check_data
from common.data.loading import Feed, batches, worker_count
from common.data.order import Length, StepRange, images_of_one_device
from common.data.pictures import Datasets, LabelledPictures
from common.data.skipping import Skips
from common.device.agreement import Agreement
from common.device.launch import is_checked
from common.device.placement import data_parallel, place
from common.device.stopping import Orders, Stop
from common.device.world import Modes, check_same, chosen_devices, find_device_type, seed_everything, setup
from common.errors import Stopped
from common.record.bad_step import samples_of
from common.record.checkpoint import Progress
from common.record.choosing import check_choice
from common.record.course import Course
from common.record.first_batch import shown_first
from common.record.folder import check_output_dir, finished_result
from common.record.initial import initial_weights
from common.record.log import RunLog
from common.record.origin import check_continues, made_by
from common.record.profiling import profiled
from common.record.report import Title
from common.record.resuming import continues_run, find_resume, read_newest, resume
from common.record.saving import Saver
from common.scores.evaluate import Evaluation
from common.scores.scored import Evaluator, Scored
from common.scores.submission import check_submission
from common.scores.views import Views, check_views
from common.step.accumulating import Parts
from common.step.amp import Amp, autocast, check_device_options, effective_opt_level
from common.step.class_weights import chosen_criterion
from common.step.compiling import compiled, recorded
from common.step.criteria import Criterion
from common.step.freezing import freeze
from common.step.norm import synchronize_batch_norm
from common.step.optimizer import OPTIMIZERS, check_source, fused_optimizer, optimizer_options, trained_groups
from common.step.recomputing import recomputed
from common.trained import check_evaluation, evaluate_best, evaluate_checkpoint, load_trained

Build = Callable[[Namespace, "Run"], tuple[Datasets, nn.Module]]


class Run:
    """A run of a folder's train.py, from its flags.

    In the order of use: `plan`, `load` (or `trained`) in `build`; `prepare`, `optimizer`, then the loop over `steps`
    with `autocast`, `network`, `step`, `due`, `evaluate`; `finish`. Seeding comes before the network is built;
    synchronised batch norm and the device before the optimizer; the optimizer's float32 masters before the processes
    share the network, which waits for the first step.

    args: the flags. presets: the folder's module, for what its reports are called. processes: of the whole run. stop:
    what this process is asked from outside.
    """

    def __init__(
        self,
        args: Namespace,
        presets: ModuleType,
        processes: int = 1,
        feed: Feed | None = None,
        stop: Stop | None = None,
    ):
        self.args, self.processes, self.stop = args, processes, stop or Stop(args.max_minutes)
        self.feed = feed or Feed(partial(batches, unreadable=self.stop.unreadable))
        self.title = Title(presets.NETWORK, "acc" if args.validate else "perf", presets.REPORTED_SCORES)
        self.length, self.images_per_step, self.device_batch_size = Length(1, 0, 0), 0, 0
        self.parts = Parts(args.accumulate)
        self.criterion: Criterion | None = None  # of --loss; None: the recipe's own loss
        self.progress, self.resumed, self.saver, self.log, self.result = Progress(0, None, 0), None, None, None, None
        self.skips = Skips(args.skip_bad)
        self.submission, self.notes = None, []  # of --submission; lines about how the run begins
        self._step: int | None = None  # 0-based, the present one
        seed_everything(args.seed)
        self.checkpoints = find_resume(args.resume, args.output_dir)
        self.continues = continues_run(next(iter(self.checkpoints), None), args.output_dir)
        self.views = Views.of(args)
        if args.evaluate:  # what can be known to be wrong before the data set is looked at
            check_evaluation(args.checkpoint, args.output_dir)
        if not is_checked():  # the first of several processes may have opened the folder already
            check_output_dir(args.output_dir, self.continues)
            check_device_options(args)

    # ---- before other processes exist

    def build(self, build: Build) -> tuple[Datasets, nn.Module]:
        """The data sets and the network of `build`; raises InputError for files that training could not use."""
        self.datasets, model = build(self.args, self)
        if self.resumed:
            path, content, _ = self.resumed
            self.notes += check_continues(path, content, self.made_by, self.args.resume_anyway)
        if not is_checked():
            check_data(self.args, self.datasets)
            check_views(self.views, self.datasets.val, model)
            check_choice(self.args, self.datasets.val)
        self.submission = check_submission(self.args, self.datasets.val)
        if not self.args.evaluate:
            self.criterion = chosen_criterion(self.args, self.datasets.train)
        return self.datasets, model

    def plan(self, train_set: LabelledPictures, image_size: tuple[int, int]) -> None:
        """Count the images of a step and the steps of the run, and check that the device has the optimizer.

        image_size: height and width of the training images. Raises InputError for what does not divide, for a data set
        of less than a step, and for what the device does not support.
        """
        args = self.args
        check_source(args.fused_optimizer, OPTIMIZERS[args.optimizer], find_device_type(args.device))
        self.image_size = image_size
        self.device_batch_size = images_of_one_device(args, self.processes)
        self.images_per_step = self.device_batch_size * self.processes * args.accumulate
        steps_per_epoch = self.feed.steps_in_epoch(train_set, self.images_per_step)
        schedule_steps = args.epochs * steps_per_epoch if args.epochs else args.total_steps
        self.length = Length(steps_per_epoch, schedule_steps, min(args.max_steps or schedule_steps, schedule_steps))

    def load(
        self, model: nn.Module, from_reference: Callable, encoder: nn.Module | None = None, imagenet_file=None
    ) -> None:
        """Give the network its first weights: those of --resume, of --load_from, of ImageNet, or random ones.

        from_reference and imagenet_file: the folder's, in weights.py; the latter finds the file that --pretrained
        means for `encoder`, which is also what --freeze calls the backbone: None for a network without one. Raises
        InputError for a file that does not fit, for training images that do not, and for a backbone that is not there.
        """
        args = self.args
        self.notes += freeze(model, encoder, args.freeze)
        # batch norms over all processes see the images of all of them
        images_of_a_norm = self.device_batch_size * (self.processes if args.sync_bn else 1)
        model.check_shape((images_of_a_norm, 3, *self.image_size))
        if args.resume == "auto" and not self.checkpoints:
            self.notes.append(f"--resume auto: no checkpoint in {args.output_dir}, the run starts anew")
        if self.checkpoints:
            self.resumed = read_newest(self.checkpoints, model, self.images_per_step)
            self.notes += [*self.resumed.passed_over, f"continuing from {self.resumed.path}"]
        else:
            self.notes.append(initial_weights(args, model, from_reference, encoder, imagenet_file))

    def trained(self, build_model: Callable, from_reference: Callable, **options: object) -> nn.Module:
        """The network of --checkpoint with its weights; `options` of build_model are for files that name none."""
        return load_trained(self.args, build_model, from_reference, options, self.notes.append)

    # ---- in each process

    def join(self) -> None:
        """Take the device of this process, and join the others."""
        args = self.args
        devices = chosen_devices(args)
        if devices and not args.device_list:
            self.notes.append(f"on NPU {devices[0]} by ASCEND_DEVICE_ID; --device_list chooses another one")
        self.world = setup(args.device, devices, args.seed, args.deterministic, Modes.of(args), args.dist_timeout)
        self.orders = Orders(self.stop, Agreement(self.world))
        self.workers = worker_count(args.workers, self.world)
        self.opt_level = effective_opt_level(args.amp, args.opt_level, self.world, args.precision_mode)
        half = partial(autocast, self.opt_level, args.amp_dtype, self.world)
        how = Evaluation(self.world, args.eval_batch_size, self.workers, half, self.orders, self.views)
        self.evaluator = Evaluator(how, self.device_batch_size and (self.image_size, self.device_batch_size))

    def prepare(self, model: nn.Module) -> None:
        """Bring the network to the device, with batch norms over all processes where --sync_bn asks for them."""
        if self.args.sync_bn:
            synchronize_batch_norm(model, self.world)
        self.model = place(model, self.world)
        self.criterion = self.criterion and self.criterion.on(self.world.device)

    def optimizer(self, parameters: Iterable) -> Optimizer:
        """That of --optimizer, in the fastest form that the device has, with mixed precision around it.

        parameters: tensors, or groups with options of their own. A run that continues has its state afterwards.
        """
        args, kind = self.args, OPTIMIZERS[self.args.optimizer]
        groups = trained_groups(parameters, args.norm_decay)
        optimizer = fused_optimizer(kind, groups, self.world, args.fused_optimizer, **optimizer_options(args))
        self.amp = Amp.of(args, self.model, optimizer, self.opt_level, self.world)
        self.notes += self.amp.follow_weights(args.ema)
        if self.resumed:
            self.progress = resume(self.resumed.content, self.amp, self.continues)
            self.resumed = self.resumed._replace(content={})  # it is as large as the network and its optimizer
        return optimizer

    def steps(self, train_set: LabelledPictures) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(0-based step, images [B, 3, H, W] float32, target [B, H, W]) of every step that is left, on the device.

        With --accumulate each part of a step comes by itself. Compiles the network and shares it between the processes
        first. A run that is complete has no step left. Raises Stopped, having saved, after a step during which a
        process was asked to end.
        """
        args, first_step = self.args, self.progress.steps_done
        check_same(self.world, args, first_step, *self.datasets)
        if self.continues:
            if 0 < args.stop_after <= self.progress.evaluations_since_best:
                self.length = self.length._replace(total_steps=first_step)
            self.result = finished_result(args.output_dir, first_step, self.length.total_steps, self.world)
        if self.result:
            return
        self.network = self._shared_network()
        self.log = self._open_log()
        self.saver = Saver(args, self.amp, self.log, self.length, self.made_by if self.world.is_main else {})
        if self.continues:
            self.saver.continues(self.resumed.path, first_step)
        self.skips.begin(train_set, self.world, self.log.say, args.output_dir, self.continues)
        if self.progress.unscored:
            self._step = first_step - 1
            self.evaluate(self.datasets.val)
        todo = StepRange(self.device_batch_size, args.seed, first_step, self.length.total_steps, self.parts.number)
        self.log.recent.watch(self.network, self.amp, samples_of(train_set, todo, self.world))
        read = partial(self.feed.batches, skips=self.skips) if args.skip_bad else self.feed.batches
        stream = profiled(read(train_set, todo, self.world, self.workers), args, self.world)
        stream = self.log.steps(shown_first(stream, train_set, self.log))
        for step, images, target in self.parts.of(stream, self.network):
            self._step = step
            yield step, images, target
            if not self.parts.is_last:
                continue
            if self.saver.is_due(step):
                self.saver.save(step)
            if step + 1 < self.length.total_steps:  # what is left after the last one is soon done
                self._heed()
            elif step + 1 < todo.total_steps:  # by --stop_after
                return

    def _heed(self) -> None:
        """Do what the processes have been asked for, from outside or by the clock: save, and end or go on."""
        if self.orders.after_step(self.saver.asks()) and not self.saver.has(self._step):
            self.saver.save(self._step)
            self.log.say(f"saved after step {self._step + 1}")
        if self.orders.to_end:
            self._end()

    def _end(self) -> None:
        """Leave the loop; what the run has done is in a checkpoint."""
        self.orders.wait_for_all()
        if self.saver:
            self.saver.check_saved()
        self.log.stop(self.orders.reason)
        self.stop.leave()

    def _shared_network(self) -> nn.Module:
        """The network of the training step: compiled or recorded where asked for, and averaging gradients."""
        network, args = self.model, self.args
        shape = (self.device_batch_size, 3, *self.image_size)
        ways = (recomputed,) * args.checkpoint_activations + (compiled,) * args.compile + (recorded,) * args.cuda_graph
        for way in ways:
            network, note = way(self.model, network, self.world, shape, self.amp.autocast)
            self.notes.append(note)
        return data_parallel(network, self.world, self.amp.optimizer)

    def _open_log(self) -> RunLog:
        """The log of the steps that are left."""
        done, best, _, _, since_best = self.progress
        steps_per_epoch, _, total_steps = self.length
        course = Course(done, total_steps, steps_per_epoch, self.images_per_step, best, self.continues, self.stop.since)
        course = course._replace(evaluations_since_best=since_best)
        log = RunLog(self.args.output_dir, self.world, course, vars(self.args), self.title)
        log.say(*self.notes)
        return log

    def autocast(self) -> AbstractContextManager:
        """The context for the forward pass and the loss."""
        return self.amp.autocast()

    def step(self, losses: dict[str, Tensor]) -> None:
        """Minimise the sum of the losses: backward pass, optimizer step unless a gradient is not finite, a line.

        Of a step in several parts there is the backward pass alone before the last one.
        """
        if losses := self.parts.minimise(losses, self.amp):
            self.log.train(self._step, losses, self.amp.optimizer, self.amp)

    def due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps (0: never), and at the end, comes after this 0-based step."""
        return self.parts.is_last and self.length.is_due(step, every)

    def evaluate(self, val_set: LabelledPictures | None) -> None:
        """Score the network on the validation set, if there is one, and write a checkpoint."""
        self.log.flush(self.amp.optimizer, self.amp)  # stops the run if a loss was not finite
        self.skips.share()
        is_best = False
        if val_set is not None:
            model = self.amp.evaluated
            scored = self.scored(model, val_set)
            is_best = self.log.eval(scored, scored.details())
            if self.log.choice.is_enough(self.args.stop_after) and self._step + 1 < self.length.total_steps:
                self.length = self.length._replace(total_steps=self._step + 1)
                self.log.say(f"no better score in the last {self.args.stop_after} evaluations: the run ends here")
            if self._step + 1 == self.length.total_steps:
                self.evaluator.show(self.log, model, val_set, scored)
            self.log.pictures(self.evaluator.examples(model, val_set))
        self.saver.save(self._step, is_best)

    @cached_property
    def made_by(self) -> dict:
        """What this run's checkpoints say of it."""
        return made_by(self.args, self.length.schedule_steps, self.datasets)

    @property
    def is_complete(self) -> bool:
        """Whether this process has come to the end of the schedule, or to that of --stop_after; not cut off."""
        if self.result is not None:
            return False
        return self.log.step == self.length.schedule_steps or self.log.choice.is_enough(self.args.stop_after)

    def finish(self, more_scores: dict[str, float] | None = None) -> dict:
        """Write the result and the report; returns the result. more_scores: for it, besides those of the last step.

        Raises NotSaved where the last checkpoint could not be written.
        """
        if self.result:
            return self.result
        try:
            return self.log.finish(more_scores, self.skips.share())
        finally:
            self.saver.check_saved()

    # ---- trained weights

    def evaluate_checkpoint(self, model: nn.Module, dataset: LabelledPictures) -> dict:
        """--evaluate: the scores of a trained network on a data set, as the result of this run."""
        return evaluate_checkpoint(self, model, dataset)

    def evaluate_best(self, model: nn.Module, dataset: LabelledPictures | None, name: str) -> dict[str, float]:
        """The best weights of this run on one more data set, whose scores are returned as {name}_{score}.

        model: a second network, to take these weights.
        """
        return evaluate_best(self, model, dataset, name)

    def scored(self, model: nn.Module, dataset: LabelledPictures, keep: Callable | None = None) -> Scored:
        """A network on a data set; if the run is asked to end meanwhile, a checkpoint says that this is still due."""
        try:
            return self.evaluator.score(model, dataset, self.log.say, keep)
        except Stopped:
            if self.saver and not self.saver.has(self._step):
                self.saver.save(self._step, unscored=True)
            self._end()
