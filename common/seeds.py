"""--seeds: one recipe several times, one run after the other, and how far their scores lie apart."""

import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

from common.device.launch import in_torchrun
from common.errors import InputError
from common.record.files import write_json
from common.record.spread import means, read_group, table

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run_seeds(args: Namespace) -> int:
    """Start this script once for each seed from --seed on, below --output_dir; the exit code of the first that fails.

    The runs are in the folders seed-0, seed-1, ...; seeds.json has their scores, mean and deviation. A signal is passed
    on to the run that is at work, and ends those that were to come. With --resume auto, runs that are complete are
    passed over. Raises InputError where several seeds make no sense.
    """
    check_seeds(args)
    for seed in range(args.seed, args.seed + args.seeds):
        folder = folder_of_seed(args, seed)
        print(f"seed {seed}: {folder}", flush=True)
        if code := _carried_out([*sys.argv, "--seeds=1", f"--seed={seed}", f"--output_dir={folder}"]):
            return code
    group = read_group(Path(args.output_dir))
    summary = {name: mean._asdict() for name, mean in means(group).items()}
    write_json(Path(args.output_dir, "seeds.json"), {"scores": group.scores, "means": summary})
    print(*table([group]), sep="\n", flush=True)
    return 0


def check_seeds(args: Namespace) -> None:
    """Raise InputError where several seeds make no sense."""
    if args.evaluate:
        raise InputError("--seeds is for training, and --evaluate trains nothing; leave one of them out")
    if not args.validate:
        raise InputError("--seeds compares scores, and --no_validate has none; leave one of them out")
    if in_torchrun():
        raise InputError("--seeds starts one run after the other; start it without torchrun or srun")
    if args.resume not in ("", "auto"):
        raise InputError(f"--resume {args.resume} is one run, and --seeds several; give --resume auto, or one seed")


def folder_of_seed(args: Namespace, seed: int) -> Path:
    """Where the run of one of several seeds is."""
    return Path(args.output_dir, f"seed-{seed}")


def _carried_out(command: list[str]) -> int:
    """The exit code of a run; it hears the signals of this process, and not those of the terminal besides."""
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    handlers = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in FORWARDED}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
