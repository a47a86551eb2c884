"""Decode a data set ahead of the training, into the folder that its --cache will name.

    python3 -m common.tools.cache --model NAME --data_path DIR --cache DIR

Takes the flags of that model's train.py, of which those that choose the data count. What is in the cache already is
left as it is, so the command can be stopped and started again, and a training may run at the same time.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import argparse
import importlib
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from common.args import Parser, parse_args
from common.data.cache import SUFFIX, CachedReader, check_cache
from common.device.cores import cpu_cores
from common.device.exits import exit_codes
from common.errors import InputError
from common.terminal import progress

ROOT = Path(__file__).resolve().parents[2]


def parse(argv: list[str] | None = None) -> tuple[str, Namespace]:
    """The name of the model's folder, and the values of its train.py. argv: without it, those of the process."""
    models = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=models, help="the folder whose train.py takes the flags")
    own, rest = parser.parse_known_args(argv)
    return own.model, parse_args(importlib.import_module(f"{own.model}.presets"), rest)


def fill(datasets: list, workers: int) -> None:
    """Decode all pairs of the data sets that are not in their cache yet.

    Raises InputError, naming the file, for one that cannot be read, and when the cache cannot be written.
    """
    kept = [(dataset.read, pair) for dataset in datasets for pair in dataset.pairs if dataset.read.keeps(pair)]
    missing = [(read, pair) for read, pair in kept if not read.holds(pair)]
    with ThreadPoolExecutor(workers) as pool:  # decoders and file systems work without the interpreter's lock
        try:
            kept = pool.map(lambda job: keep(*job), missing)
            for _ in progress(kept, "decoding", len(missing), "picture"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def keep(read: CachedReader, pair: Sequence[Path]) -> None:
    """See that the pair is in the cache. Raises InputError where it cannot be put there."""
    read(pair)
    if not read.holds(pair):
        raise InputError(f"the cache {read.folder} cannot take more; free some space on its disk and start again")


def main(argv: list[str] | None = None) -> None:
    """Decode what is missing, and print what there is."""
    model, args = parse(argv)
    with exit_codes():
        if not args.cache:
            raise InputError("no --cache; name the folder for the decoded pictures")
        datasets = importlib.import_module(f"{model}.data").build_datasets(args).used
        check_cache(args.cache, datasets)
        fill(datasets, cpu_cores() if args.workers == "auto" else max(1, args.workers))
        size = sum(path.stat().st_size for path in Path(args.cache).glob(f"*{SUFFIX}"))
        kept = sum(dataset.read.keeps(pair) for dataset in datasets for pair in dataset.pairs)
        print(f"all {kept} pictures are in {args.cache}, which holds {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
