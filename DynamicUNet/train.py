"""Train or evaluate DynamicUNet, a U-Net grown on a ResNet encoder, on PASCAL VOC 2012."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.args import parse_args
from DynamicUNet import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

import torch

from common.amp import Amp, autocast, check_device_options, effective_opt_level
from common.backbone import load_imagenet
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
from common.crops import note_on_scale
from common.data import batches, steps_in_epoch, worker_count
from common.device import check_same, data_parallel, launch, place, setup
from common.evaluate import evaluate_only, validate
from common.metrics import ConfusionMatrix
from common.norm import synchronize_batch_norm
from common.optimizer import fused_optimizer
from common.predict import panel
from common.profile import profiled
from common.runlog import RunLog, case_name, check_output_dir, finished_result
from common.schedule import Schedule, due, set_lr
from common.transforms import denormalize
from DynamicUNet.data import build_datasets
from DynamicUNet.model import DynamicUNet, build_model, from_reference, imagenet_file, training_loss
from DynamicUNet.voc import CLASS_NAMES, NUM_CLASSES, PALETTE, check_pairs

POWER = 0.9  # of the falling learning rate


def main(args) -> dict:
    """The whole run; returns what is written to result.json."""
    world = setup(
        args.device, args.device_list, args.seed, args.deterministic, args.hf32, args.channels_last, args.precision_mode
    )
    workers = worker_count(args.workers, world)
    opt_level = effective_opt_level(args.amp, args.opt_level, world, args.precision_mode)
    train_set, val_set = datasets(args)
    if args.evaluate:
        return score(args, val_set, world, workers, opt_level)

    model = build_model(NUM_CLASSES, args.backbone)
    checkpoint = find_resume(args.resume, args.output_dir)
    notes = [f"continuing from {checkpoint}"] if checkpoint else initialize(model, args)
    if args.sync_bn:
        synchronize_batch_norm(model, world)
    place(model, world)
    lr = args.lr * (world.size if args.scale_lr else 1)
    optimizer = fused_optimizer(
        torch.optim.SGD,
        parameter_groups(model, lr, args.encoder_lr_factor, args.head_lr_factor),
        world,
        args.fused_optimizer,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
    )
    amp = Amp(model, optimizer, opt_level, args.loss_scale, world, args.amp_dtype)
    images_per_step = args.device_batch_size * world.size
    first_step, best = 0, None
    if checkpoint:
        first_step, best = resume(read_resumable(checkpoint, model, images_per_step), optimizer, amp)
    check_same(world, args, first_step, train_set, val_set)
    training_network = model
    if args.compile:
        training_network, note = compiled(model, world, (args.device_batch_size, 3, *args.crop_size), amp.autocast)
        notes.append(note)
    parallel = data_parallel(training_network, world, optimizer)

    steps_per_epoch = steps_in_epoch(train_set, images_per_step)
    total_steps = min(args.max_steps or sys.maxsize, args.epochs * steps_per_epoch)
    lr_factor = learning_rate_schedule(args.epochs * steps_per_epoch, args.warmup_steps, args.warmup_factor)
    continues = continues_run(checkpoint, args.output_dir)
    if continues and (result := finished_result(args.output_dir, first_step, total_steps, world)):
        return result

    case = case_name(presets.NETWORK, images_per_step, world, "acc" if args.validate else "perf")
    log = RunLog(
        args.output_dir, world, total_steps, steps_per_epoch, images_per_step, vars(args), case, presets.NETWORK,
        first_step, best if continues else None, continues, args.log_every_steps,
    )  # fmt: skip
    for note in notes:
        log.say(note)
    stream = batches(train_set, args.device_batch_size, world, args.seed, workers, first_step, total_steps)
    stream = profiled(stream, args.prof, args.prof_test, args.prof_steps, args.output_dir, world)

    for step, images, target in log.steps(stream):
        set_lr(optimizer, lr_factor(step))
        with amp.autocast():
            outputs = parallel(images)  # [B, 3, H, W] -> logits ([B, 21, H, W],)
            loss = training_loss(outputs, target)
        amp.step(loss)
        log.train(step, loss, optimizer, amp)

        evaluation_due = due(step, args.eval_every_epochs * steps_per_epoch, total_steps)
        save_steps = (args.save_every_steps, args.save_every_epochs * steps_per_epoch)
        if evaluation_due or any(due(step, every, total_steps) for every in save_steps):
            log.flush(optimizer, amp)  # stops the run if a loss was not finite: the last checkpoint stays a good one
            is_best = evaluation_due and args.validate and validate(
                log, model, val_set, confusion_matrix(world), args.eval_batch_size, world, workers, amp.autocast, show
            )  # fmt: skip
            save(args.output_dir, step, model, optimizer, amp, log.best, is_best, images_per_step, world)
            log.restart_clock()
    return log.finish()


def score(args, val_set, world, workers: int, opt_level: str) -> dict:
    """`--evaluate`: the scores of --checkpoint on the validation set."""
    check_same(world, args, 0, val_set)
    model = place(trained_model(args), world)
    images_per_step = args.eval_batch_size * world.size
    log = RunLog(
        args.output_dir, world, 0, 1, images_per_step, vars(args) | model.options,
        case_name(presets.NETWORK, images_per_step, world, "eval"), presets.NETWORK,
    )  # fmt: skip
    return evaluate_only(
        log, model, val_set, confusion_matrix(world), args.eval_batch_size, world, workers,
        lambda: autocast(opt_level, args.amp_dtype, world),
    )  # fmt: skip


def confusion_matrix(world) -> ConfusionMatrix:
    return ConfusionMatrix(NUM_CLASSES, device=world.device, class_names=CLASS_NAMES)


def show(image, target, prediction):
    """A picture of image [3, H, W], target [H, W] and prediction [H, W], side by side."""
    return panel(denormalize(image), target.numpy(), prediction.numpy(), PALETTE)


def trained_model(args) -> DynamicUNet:
    """The network of --checkpoint; files of the reference do not say their backbone."""
    return load_model(
        args.checkpoint, build_model, from_reference, {"num_classes": NUM_CLASSES, "backbone": args.backbone}
    )


def initialize(model: DynamicUNet, args) -> list[str]:
    """Load the initial weights, if any are asked for; returns lines that say what was loaded."""
    if args.load_from:
        load_weights(args.load_from, model, from_reference)
        return [f"initial weights: {args.load_from}"]
    file = imagenet_file(args.backbone, args.pretrained)
    return [load_imagenet(model.encoder, file)] if file else ["initial weights: random"]


def parameter_groups(model: DynamicUNet, lr: float, encoder_lr_factor: float, head_lr_factor: float) -> list[dict]:
    """The encoder, and the decoder grown on it, each with a rate of its own."""
    encoder = list(model.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    heads = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": encoder, "lr": lr * encoder_lr_factor}, {"params": heads, "lr": lr * head_lr_factor}]


def learning_rate_schedule(total_steps: int, warmup_steps: int, warmup_factor: float) -> Schedule:
    """0-based step -> factor: in a line from `warmup_factor` to 1, then poly over the steps after the warm-up.

    As in the original, steps are counted from 1: the last one has the factor 0.
    """

    def factor(step: float) -> float:
        done = min(step + 1, total_steps)
        if done < warmup_steps:
            return warmup_factor + (1 - warmup_factor) * done / warmup_steps
        return (1 - (done - warmup_steps) / max(1, total_steps - warmup_steps)) ** POWER

    return factor


def datasets(args):
    """The training and the validation set, as far as this run uses them."""
    return build_datasets(
        args.data_path, args.base_size, args.crop_size, args.seed, (args.min_scale, args.max_scale),
        args.dataset, args.eval_protocol, args.cache, train=not args.evaluate, val=args.evaluate or args.validate,
    )  # fmt: skip


def check(args, world_size: int) -> None:
    """Raise InputError for what cannot work, before any process or training step starts."""
    check_device_options(args, torch.optim.SGD)
    train_set, val_set = datasets(args)
    if args.check_data:
        check_pairs(train_set.pairs if train_set else [])
        check_pairs(val_set.pairs if val_set else [], decode_images=True)
    checkpoint = find_resume(args.resume, args.output_dir)
    check_output_dir(args.output_dir, continues_run(checkpoint, args.output_dir))
    check_cache(args.cache, (train_set, val_set))
    if args.evaluate:
        check_evaluation(args.checkpoint, args.output_dir)
        trained_model(args)
        return
    if note := note_on_scale(train_set, val_set):
        print(note, flush=True)
    images_per_step = args.device_batch_size * world_size
    steps_in_epoch(train_set, images_per_step)
    model = build_model(NUM_CLASSES, args.backbone)
    model.check_shape((args.device_batch_size, 3, *args.crop_size))
    if checkpoint:
        read_resumable(checkpoint, model, images_per_step)
    else:
        initialize(model, args)


if __name__ == "__main__":
    launch(main, ARGS, check)
