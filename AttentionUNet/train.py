"""Train or evaluate Attention U-Net on ISIC 2018 (Oktay et al., Attention U-Net, arXiv:1804.03999)."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from AttentionUNet import presets
from common.args import parse_args

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

import torch
import torch.distributed

from AttentionUNet.backup import copy_run
from AttentionUNet.data import MEAN, STD, build_datasets, build_eval_set
from AttentionUNet.isic import PALETTE, check_pairs
from AttentionUNet.metrics import LesionScores
from AttentionUNet.model import AttentionUNet, build_model, from_reference, training_loss
from common.amp import Amp, autocast, check_device_options, effective_opt_level
from common.cache import check_cache
from common.checkpoint import (
    check_evaluation,
    continues_run,
    find_resume,
    load_model,
    load_weights,
    read_resumable,
    resume,
    save,
)
from common.compile import compiled
from common.data import batches, steps_in_epoch, worker_count
from common.device import check_same, data_parallel, launch, place, setup
from common.errors import InputError
from common.evaluate import evaluate, evaluate_only, validate
from common.norm import synchronize_batch_norm
from common.optimizer import fused_optimizer
from common.predict import panel
from common.profile import profiled
from common.runlog import RunLog, case_name, check_output_dir, finished_result
from common.schedule import Schedule, due, linear_tail, set_lr
from common.transforms import denormalize

REPORTED_SCORES = {"Train Accuracy": "accuracy", "Jaccard": "jaccard"}  # the former as in the original scripts
DECAY_EPOCHS = 70  # the original's


def main(args) -> dict:
    """The whole run; returns what is written to result.json."""
    world = setup(
        args.device, args.device_list, args.seed, args.deterministic, args.hf32, args.channels_last, args.precision_mode
    )
    workers = worker_count(args.workers, world)
    opt_level = effective_opt_level(args.amp, args.opt_level, world, args.precision_mode)
    if args.evaluate:
        return score(args, world, workers, opt_level)

    train_set, val_set, test_set = datasets(args)
    model = network(args)
    checkpoint = find_resume(args.resume, args.output_dir)
    notes = [f"continuing from {checkpoint}"] if checkpoint else initialize(model, args)
    if args.sync_bn:
        synchronize_batch_norm(model, world)
    place(model, world)
    optimizer = fused_optimizer(
        torch.optim.Adam,
        model.parameters(),
        world,
        args.fused_optimizer,
        lr=args.lr,
        betas=(args.beta1, args.beta2),
        weight_decay=args.weight_decay,
    )
    amp = Amp(model, optimizer, opt_level, args.loss_scale, world, args.amp_dtype)
    device_batch_size = images_of_one_device(args, world.size)
    images_per_step = device_batch_size * world.size
    first_step, best = 0, None
    if checkpoint:
        first_step, best = resume(read_resumable(checkpoint, model, images_per_step), optimizer, amp)
    check_same(world, args, first_step, train_set, val_set, test_set)
    training_network = model
    if args.compile:
        training_network, note = compiled(
            model, world, (device_batch_size, 3, args.image_size, args.image_size), amp.autocast
        )
        notes.append(note)
    parallel = data_parallel(training_network, world, optimizer)

    steps_per_epoch = steps_in_epoch(train_set, images_per_step)
    total_steps = min(args.max_steps or sys.maxsize, args.epochs * steps_per_epoch)
    lr_factor = learning_rate_schedule(args.epochs, args.decay_epochs, steps_per_epoch)
    continues = continues_run(checkpoint, args.output_dir)
    if continues and (result := finished_result(args.output_dir, first_step, total_steps, world)):
        return result

    case = case_name(presets.NETWORK, images_per_step, world, "acc" if args.validate else "perf")
    log = RunLog(
        args.output_dir, world, total_steps, steps_per_epoch, images_per_step, vars(args), case, presets.NETWORK,
        first_step, best if continues else None, continues, args.log_every_steps, REPORTED_SCORES,
    )  # fmt: skip
    for note in notes:
        log.say(note)
    stream = batches(train_set, device_batch_size, world, args.seed, workers, first_step, total_steps)
    stream = profiled(stream, args.prof, args.prof_test, args.prof_steps, args.output_dir, world)

    for step, images, target in log.steps(stream):
        set_lr(optimizer, lr_factor(step))
        with amp.autocast():
            outputs = parallel(images)  # [B, 3, S, S] -> a tuple of logits [B, 1, S, S]
            loss = training_loss(outputs, target)
        amp.step(loss)
        log.train(step, loss, optimizer, amp)

        evaluation_due = due(step, args.eval_every_epochs * steps_per_epoch, total_steps)
        if evaluation_due or (args.save_every_steps and due(step, args.save_every_steps, total_steps)):
            log.flush(optimizer, amp)  # stops the run if a loss was not finite: the last checkpoint stays a good one
            is_best = evaluation_due and args.validate and validate(
                log, model, val_set, LesionScores(len(val_set), world), args.eval_batch_size, world, workers,
                amp.autocast, show,
            )  # fmt: skip
            save(args.output_dir, step, model, optimizer, amp, log.best, is_best, images_per_step, world)
            log.restart_clock()

    is_complete = log.step == args.epochs * steps_per_epoch  # not cut off by --max_steps or --prof
    if args.validate and is_complete:
        test(log, args, test_set, world, workers, amp.autocast)
    result = log.finish()
    if world.is_main and is_complete and "output_dir" not in args.given:
        copy_run(args.output_dir, args.preset)
    return result


def score(args, world, workers: int, opt_level: str) -> dict:
    """`--evaluate`: the scores of --checkpoint on --eval_split."""
    data_set = build_eval_set(args.data_path, args.image_size, args.eval_split, args.cache)
    check_same(world, args, 0, data_set)
    model = place(trained_model(args), world)
    images_per_step = args.eval_batch_size * world.size
    log = RunLog(
        args.output_dir, world, 0, 1, images_per_step, vars(args) | model.options,
        case_name(presets.NETWORK, images_per_step, world, "eval"), presets.NETWORK, reported_scores=REPORTED_SCORES,
    )  # fmt: skip
    return evaluate_only(
        log, model, data_set, LesionScores(len(data_set), world), args.eval_batch_size, world, workers,
        lambda: autocast(opt_level, args.amp_dtype, world),
    )  # fmt: skip


def test(log: RunLog, args, test_set, world, workers: int, autocast) -> None:
    """The best weights of a finished training on the split test, once; its scores are test_<name> of the result."""
    if test_set is None or log.best is None:
        log.say("the split test is not scored: " + ("there is no test/" if test_set is None else "no weights are best"))
        return
    model = network(args).to(world.device)
    if world.is_main:
        load_weights(Path(args.output_dir, "checkpoints", "best.pt"), model)
    if world.size > 1:
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
    scores = LesionScores(len(test_set), world)
    evaluate(model, test_set, scores, args.eval_batch_size, world, workers, autocast)
    tested = scores.scores()
    log.say("best weights on the split test:  " + "  ".join(f"{name} {value:.4f}" for name, value in tested.items()))
    log.scores = {**log.scores, **{f"test_{name}": value for name, value in tested.items()}}


def show(image, target, prediction):
    """A picture of image [3, H, W], target [H, W] and prediction [H, W], side by side."""
    return panel(denormalize(image, MEAN, STD), target.numpy(), prediction.numpy(), PALETTE)


def network(args) -> AttentionUNet:
    return build_model(1, args.arch, args.t, args.base_channels, args.image_size)


def trained_model(args) -> AttentionUNet:
    """The network of --checkpoint; files of the reference do not say which of the networks they are of."""
    options = {name: getattr(args, name) for name in ("arch", "t", "base_channels", "image_size")}
    return load_model(args.checkpoint, build_model, from_reference, {"num_classes": 1, **options})


def initialize(model: AttentionUNet, args) -> list[str]:
    """Load the initial weights, if any are asked for; returns lines that say what was loaded."""
    if args.load_from:
        load_weights(args.load_from, model, from_reference)
        return [f"initial weights: {args.load_from}"]
    return ["initial weights: random"]


def learning_rate_schedule(epochs: int, decay_epochs: int | None, steps_per_epoch: int) -> Schedule:
    """step -> factor: 1, and a line down to 0 over the last epochs.

    Without `decay_epochs`: over the last 70, or the later half of a training that is not longer than that.
    """
    if decay_epochs is None:
        decay_epochs = DECAY_EPOCHS if epochs > DECAY_EPOCHS else epochs // 2
    if decay_epochs > epochs:
        raise InputError(
            f"--decay_epochs {decay_epochs} are more than --epochs {epochs}; the rate falls in the last epochs of the "
            "training: give fewer, or leave the flag out"
        )
    return linear_tail(epochs, steps_per_epoch, decay_epochs)


def images_of_one_device(args, world_size: int) -> int:
    """Training images of one device in a step, from --device_batch_size or, where it is given, --total_batch_size."""
    if args.total_batch_size is None:
        return args.device_batch_size
    if args.total_batch_size % world_size:
        raise InputError(
            f"--total_batch_size {args.total_batch_size} images cannot be shared by {world_size} devices; "
            f"give a multiple of {world_size}, or the images of one device with --device_batch_size"
        )
    return args.total_batch_size // world_size


def datasets(args):
    """The training set, and the sets valid and test as far as this run uses them."""
    return build_datasets(
        args.data_path, args.image_size, args.seed, args.augmentation_prob, args.mask_resize, args.cache,
        args.validate,
    )  # fmt: skip


def check(args, world_size: int) -> None:
    """Raise InputError for what cannot work, before any process or training step starts."""
    check_device_options(args, torch.optim.Adam)
    if args.evaluate:
        train_set, *scored_sets = None, build_eval_set(args.data_path, args.image_size, args.eval_split, args.cache)
    else:
        train_set, *scored_sets = datasets(args)
    if args.check_data:
        check_pairs(train_set.pairs if train_set else [])
        for data_set in scored_sets:
            check_pairs(data_set.pairs if data_set else [], decode_images=True)
    checkpoint = find_resume(args.resume, args.output_dir)
    check_output_dir(args.output_dir, continues_run(checkpoint, args.output_dir))
    check_cache(args.cache, (train_set, *scored_sets))
    if args.evaluate:
        check_evaluation(args.checkpoint, args.output_dir)
        model = trained_model(args).eval()
        if "image_size" not in args.given and model.options["image_size"] != args.image_size:
            raise InputError(
                f"{args.checkpoint} was trained on {model.options['image_size']} pixels, and pictures of "
                f"{args.image_size} would be scored; say with --image_size which you want"
            )
        model.check_shape((args.eval_batch_size, 3, args.image_size, args.image_size))
        return
    device_batch_size = images_of_one_device(args, world_size)
    images_per_step = device_batch_size * world_size
    learning_rate_schedule(args.epochs, args.decay_epochs, steps_in_epoch(train_set, images_per_step))
    model = network(args)
    model.check_shape((device_batch_size, 3, args.image_size, args.image_size))
    if checkpoint:
        read_resumable(checkpoint, model, images_per_step)
    else:
        initialize(model, args)


if __name__ == "__main__":
    launch(main, ARGS, check)
