"""How fast the parts of a model's training are, beside their plain forms.

    python3 -m common.tools.benchmark WHAT --model NAME ...

data     the training set: samples per second and core, against the references' pipeline (`common.tools.plain_data`)
train    the training step of the folder's train.py, against the plain step (`common.tools.plain`)
eval     the validation set through `evaluate`, with its decoding, and the network alone
predict  one picture file to a mask

The flags of the model's train.py decide the rest, from its preset full_1p. What is compared runs by turns in one
process, so that what else happens on the machine meets all of it: trust the ratios. Warm-up is left out, and the device
has finished whenever the clock is read.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import collections
import contextlib
import importlib
import itertools
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from common.args import Parser, parse_args
from common.data.cache import check_cache
from common.data.colours import picture_to_input
from common.data.decode import decoder_name, open_image
from common.data.loading import batches, eval_batches, to_device, worker_count
from common.data.order import StepRange, sample_rng
from common.device.exits import exit_codes
from common.device.world import World, find_device_type
from common.errors import InputError
from common.record.files import writable_file, write_json
from common.scores.evaluate import Evaluation, evaluate
from common.scores.windows import Segmenter
from common.step.amp import autocast
from common.terminal import progress
from common.tools.cache import keep
from common.tools.complexity import complexity
from common.tools.plain_data import PlainSample, plain_sample
from common.tools.timed_training import benchmark_train
from common.tools.timing import Folder, facts, figure, lines, picture_size, ratio, timed, utilisation
from common.values import path

ROOT = Path(__file__).resolve().parents[2]


def benchmark_data(folder: Folder, own: Namespace) -> dict:
    """Samples of the training set, of the files and of a cache, against the plain pipeline; on one thread."""
    args = folder.args
    args.evaluate = False  # a preset for evaluation has no training set
    world = folder.world()
    with tempfile.TemporaryDirectory() as temporary:
        ours, cached = (folder.datasets(cache=cache).train for cache in ("", args.cache or temporary))
        check_cache(args.cache, [cached])
        size = own.images or args.device_batch_size
        plain = plain_sample(folder.presets.LAYOUT, args)
        with _one_thread():
            clock = _data_clock(ours, cached, plain, size, own, args.seed, world)
            result = facts("data", folder, world, images=size)
        result |= {
            "precision": "uint8 on the host, float32 on the device",
            "decoder": decoder_name(),
            "data": f"{len(ours)} pictures of {args.data_path}, the first of {picture_size(ours.pairs[0][0])}",
            "clock": "decoding or reading (files the system has in memory), augmentation, batch, copy to the device, "
            "normalisation",
            "figures": {name: figure(seconds, size) for name, seconds in clock.items()},
            "ratios": {
                "plain / ours": ratio(clock["plain"], clock["ours"]),
                "plain / ours, cached": ratio(clock["plain"], clock["ours, cached"]),
            },
        }
        if "workers" in args.given:
            result["loader"] = _loader_rate(cached if args.cache else ours, folder, own.repetitions, world)
    return result


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker of a data loader."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _repetitions(own: Namespace) -> Iterator[int]:
    """The number of each, below 0 in the warm-up; the bar is drawn between them."""
    numbers = range(-own.warmup, own.repetitions)
    return progress(numbers, "measuring", len(numbers), "repetition")


def _data_clock(
    ours: Dataset, cached: Dataset, plain: PlainSample, size: int, own: Namespace, seed: int, world: World
) -> dict[str, list[float]]:
    """Seconds for batches of `size` samples by turns in each way, always of the same pictures."""
    clock: dict[str, list[float]] = collections.defaultdict(list)
    order = itertools.cycle(sample_rng(seed, 0, len(ours)).permutation(len(ours)).tolist())
    for repetition in _repetitions(own):
        keys = [(own.warmup + repetition, index) for index in itertools.islice(order, size)]
        for _, index in keys:
            keep(cached.read, cached.pairs[index])
        lap = {"plain": timed(partial(_plain_batch, plain, ours.pairs, keys, seed, world), world)}
        for name, dataset in (("ours", ours), ("ours, cached", cached)):
            lap[f"{name}: host"] = timed(partial(_host_batch, dataset, keys), world)
            batch = _host_batch(dataset, keys)
            lap[f"{name}: device"] = timed(partial(to_device, batch, dataset, world), world)
            lap[name] = lap[f"{name}: host"] + lap[f"{name}: device"]
        if repetition >= 0:
            for name, seconds in lap.items():
                clock[name].append(seconds)
    return clock


def _host_batch(dataset: Dataset, keys: list[tuple[int, int]]) -> list[Tensor]:
    return default_collate([dataset[key] for key in keys])


def _plain_batch(
    plain: PlainSample, pairs: Sequence, keys: list[tuple[int, int]], seed: int, world: World
) -> list[Tensor]:
    samples = [plain(*map(Path, pairs[index]), sample_rng(seed, epoch, index)) for epoch, index in keys]
    return [torch.from_numpy(np.stack(part)).to(world.device) for part in zip(*samples, strict=True)]


def _loader_rate(dataset: Dataset, folder: Folder, repetitions: int, world: World) -> dict:
    """Images per second of the real loader, while its workers have something to do before and after."""
    args = folder.args
    workers, size = worker_count(args.workers, world), args.device_batch_size
    ahead = 4 * max(1, workers)  # twice what is fetched in advance
    steps = StepRange(size, args.seed, 0, ahead + repetitions + ahead)
    stream = batches(dataset, steps, world, workers)
    collections.deque(itertools.islice(stream, ahead), maxlen=0)
    seconds = timed(lambda: collections.deque(itertools.islice(stream, repetitions), maxlen=0), world)
    return {"workers": workers, "images_per_second": repetitions * size / seconds}


def benchmark_eval(folder: Folder, own: Namespace) -> dict:
    """Whole validation pictures through `evaluate`, and one batch of them through the network alone."""
    args = folder.args
    args.validate = True
    world = folder.world()
    workers = worker_count(args.workers, world)
    val_set = folder.datasets().val
    val_set.pairs = val_set.pairs[: own.images or len(val_set.pairs)]
    check_cache(args.cache, [val_set])
    model = folder.network(world).eval()
    context = partial(autocast, folder.opt_level(world), args.amp_dtype, world)
    images, *_ = next(eval_batches(val_set, args.eval_batch_size, world, 0))

    @torch.no_grad()
    def network_alone() -> None:
        with context():
            model(images)

    def whole() -> None:
        evaluate(model, val_set, val_set.metric(world), Evaluation(world, args.eval_batch_size, workers, context))

    def decoding_alone() -> None:
        collections.deque(eval_batches(val_set, args.eval_batch_size, world, workers), maxlen=0)

    actions = {"with decoding": whole, "decoding alone": decoding_alone, "network alone": network_alone}
    clock: dict[str, list[float]] = {name: [] for name in actions}
    for repetition in _repetitions(own):
        for name, action in actions.items():
            seconds = timed(action, world)
            if repetition >= 0:
                clock[name].append(seconds)
    images_of = {"with decoding": len(val_set), "decoding alone": len(val_set), "network alone": len(images)}
    figures = {name: figure(seconds, images_of[name]) for name, seconds in clock.items()}
    size = tuple(images.shape[-2:])
    _, operations = complexity(folder.module("model").build_model, folder.network_options(), size)
    result = {
        **facts("eval", folder, world, images=args.eval_batch_size, size=size),
        "workers": workers,
        "data": f"{len(val_set)} pictures of {args.data_path}, the first of {picture_size(val_set.pairs[0][0])}",
        "clock": "with decoding: start of the workers, decoding, network, confusion matrix of all pictures; "
        "decoding alone: the same without network and matrix; network alone: one batch",
        "decoding_share": figures["decoding alone"]["median_ms"] / figures["with decoding"]["median_ms"],
        "gflops_per_image": operations / 1e9,
        "figures": figures,
    }
    return result | utilisation(result, figures["network alone"]["images_per_second"], operations)


def benchmark_predict(folder: Folder, own: Namespace) -> dict:
    """One picture file, or a batch of them, to class ids on the host: how long a person waits."""
    args = folder.args
    world = folder.world()
    torch.backends.cudnn.benchmark = False  # as in `predict`
    path = own.input or folder.module("data").validation_images(args.data_path)[0]
    data = folder.module("data")
    model = folder.network(world).eval()
    to_input = partial(data.to_input, options=model.options) if hasattr(data, "to_input") else picture_to_input
    context = partial(autocast, folder.opt_level(world), args.amp_dtype, world)

    segmenter = Segmenter(model, to_input, world)

    def masks(images) -> None:
        with context():
            segmenter.see(images)

    together = own.images or 1
    image = open_image(path)
    clock: dict[str, list[float]] = {"file to mask": [], "picture to mask": []}
    for repetition in _repetitions(own):
        whole = timed(lambda: masks([open_image(path) for _ in range(together)]), world)
        without_decoding = timed(lambda: masks([image] * together), world)
        if repetition >= 0:
            clock["file to mask"].append(whole)
            clock["picture to mask"].append(without_decoding)
    figures = {name: figure(seconds, together) for name, seconds in clock.items()}
    without, whole = (figures[name]["median_ms"] for name in ("picture to mask", "file to mask"))
    size = tuple(to_input(image).shape[-2:])
    _, operations = complexity(folder.module("model").build_model, folder.network_options(), size)
    return {
        **facts("predict", folder, world, images=together, size=size),
        "data": f"{path}, of {picture_size(path)}",
        "clock": "decoding, normalisation, network, class ids of the picture's size on the host; no file is written",
        "gflops_per_image": operations / 1e9,
        "decoding_share": 1 - without / whole,
        "figures": figures,
    }


BENCHMARKS = {"data": benchmark_data, "train": benchmark_train, "eval": benchmark_eval, "predict": benchmark_predict}


def parse(argv: list[str] | None = None) -> tuple[Folder, Namespace]:
    """The model's folder with its values, and the flags of the benchmark itself."""
    models = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
    parser = Parser(
        prog="benchmark",
        description=__doc__.partition("\n\n")[0],
        epilog="Any other flag is one of the model's train.py, whose preset full_1p gives the values.",
    )
    parser.add_argument("what", choices=list(BENCHMARKS), help="what is timed")
    parser.add_argument("--model", choices=models, required=True, help="the folder")
    parser.add_argument("--repetitions", type=int, default=20, help="how often each is timed; default: 20")
    parser.add_argument("--warmup", type=int, default=3, help="repetitions (steps) before that; default: 3")
    parser.add_argument(
        "--steps", type=int,
        help="train: steps in all, shared out to the repetitions; default: one for each on the CPU, else ten",
    )  # fmt: skip
    parser.add_argument("--loader", action="store_true", help="train: from the data set, with its share of waiting")
    parser.add_argument("--no_plain", dest="plain", action="store_false", help="train: without the plain form")
    parser.add_argument(
        "--images", type=int,
        help="data: samples of a repetition; eval: pictures; predict: how often the picture goes through the network "
        "together, as with --batch_size of predict.py; default: a batch, all of them, once",
    )  # fmt: skip
    parser.add_argument("--input", type=path, help="predict: the picture; default: the first one of the validation set")
    parser.add_argument("--json", type=path, help="a file for the result")
    own, rest = parser.parse_known_args(argv)
    presets = importlib.import_module(f"{own.model}.presets")
    for name in ("repetitions", "warmup", "steps", "images"):
        if (value := getattr(own, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: give at least 1")
    args = parse_args(presets, ["--preset", "full_1p", *rest])
    if own.what in ("eval", "predict") and (args.compile or args.cuda_graph):
        parser.error(f"--compile and --cuda_graph are of the training step; {own.what} has none: leave them out")
    if own.what == "train" and not own.loader and "data_path" not in args.given:
        args.data_path = "sample"  # it is fed with noise: any data set will do
    return Folder(own.model, args), own


def main(argv: list[str] | None = None) -> dict:
    """Run one benchmark, print its result and return it."""
    folder, own = parse(argv)
    if own.json:
        writable_file(own.json, "--json")
    if own.input and not Path(own.input).is_file():
        raise InputError(f"--input {own.input}: no such file; give a picture")
    steps = own.steps or (1 if find_device_type(folder.args.device) == "cpu" else 10) * own.repetitions
    own.block = max(1, steps // own.repetitions)
    own.steps = steps // own.block * own.block  # whole repetitions
    result = BENCHMARKS[own.what](folder, own)
    print("\n".join(lines(result)), flush=True)
    if own.json:
        write_json(Path(own.json), result)
    return result


if __name__ == "__main__":
    with exit_codes():
        main()
