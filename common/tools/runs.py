"""What runs there are, how far each came and how it ended; --prune deletes what is old, after asking.

    python3 -m common.tools.runs [FOLDER ...] [--prune]

Without FOLDER it looks into the output folder of each model. --prune lists, with their sizes, runs that were moved
aside to backup/, and the older checkpoints of runs that are finished and whose last.pt is whole; it deletes them when
the answer is yes. Nothing of a run that is being written to is touched.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import argparse
import contextlib
import shutil

from common.args import Parser
from common.device.exits import exit_codes
from common.errors import InputError
from common.record.checkpoint import read
from common.record.files import size
from common.record.folder import RUN_MARK
from common.record.past import FINISHED, RUNNING, network_of, read_json, read_rows, state
from common.record.resuming import older_checkpoints
from common.terminal import GREEN, RED, painted

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("run", "model", "preset", "data", "step", "best", "images/s", "seed", "state")


def find_runs(folders: list[Path]) -> list[Path]:
    """The folders of runs, those that were moved aside included."""
    marks = {mark for folder in folders for mark in folder.rglob(RUN_MARK)}
    return sorted(mark.parent for mark in marks if isinstance(read_json(mark).get("values"), dict))


def seed_of(run: Path, seed: object) -> str:
    """The seed of a run; of one of several (--seeds), with those that have been started so far."""
    numbers = (mark.parent.name.removeprefix("seed-") for mark in run.parent.glob(f"seed-*/{RUN_MARK}"))
    others = sorted(int(number) for number in numbers if number.isdigit())
    is_one_of_several = run.name == f"seed-{seed}" and len(others) > 1
    return f"{seed} of {', '.join(map(str, others))}" if is_one_of_several else str(seed)


def describe(run: Path) -> tuple[str, ...]:
    """A cell for each of `COLUMNS`."""
    config, result, rows = read_json(run / RUN_MARK), read_json(run / "result.json"), list(read_rows(run))
    values, model = config["values"], network_of(config, result)
    step = max((row.get("step", 0) for row in rows), default=0)
    best, rate = (
        next((row[name] for row in reversed(rows) if isinstance(row.get(name), int | float)), None)
        for name in ("best", "images_per_second")
    )
    ended = state(run, step)
    if ended.startswith(FINISHED):  # of all its steps, and of an evaluation, which has no line of them
        rate = result.get("images_per_second", rate)
    numbers = ("-" if best is None else f"{best:.4f}", "-" if rate is None else f"{rate:.2f}")
    data = str(values.get("data_path") or "-")
    preset, seed = str(values.get("preset", "-")), seed_of(run, values.get("seed", "-"))
    return str(run), model, preset, data, str(step), *numbers, seed, ended


def table(runs: list[Path]) -> list[str]:
    """A line for each run, below the names of the columns."""
    rows = [COLUMNS, *map(describe, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *cells, ended in rows:
        colour = GREEN if ended.startswith(FINISHED) else None if ended in (RUNNING, COLUMNS[-1]) else RED
        last = painted(ended, colour, sys.stdout) if colour else ended
        lines.append("  ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)), last]))
    return lines


def prunable(runs: list[Path]) -> list[Path]:
    """Runs that were moved aside, and older checkpoints that nobody will continue from."""
    found: list[Path] = []
    for run in runs:
        ended = describe(run)[-1]
        if ended != RUNNING and run.parent.name == "backup":
            found.append(run)
        elif ended.startswith(FINISHED) and (older := list(older_checkpoints(run / "checkpoints").values())):
            with contextlib.suppress(InputError):  # a last.pt that is not whole: the older ones are needed
                read(run / "checkpoints" / "last.pt")
                found += older
    return found


def prune(runs: list[Path]) -> None:
    """List what is old with its size, and delete it if the answer is yes."""
    old = prunable(runs)
    for path in old:
        print(f"{size(path) / 2**20:10.1f} MiB  {path}")
    if not old:
        print("nothing to delete: no run was moved aside, and no finished run has older checkpoints")
        return
    try:
        answer = input(f"delete these {len(old)}, {sum(map(size, old)) / 2**20:.1f} MiB? [y/N] ")
    except EOFError:  # nobody is there to answer
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        print("nothing was deleted")
        return
    for path in old:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    print(f"{len(old)} deleted")


def main(argv: list[str] | None = None) -> None:
    """Print the table, or prune."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="where to look for runs")
    parser.add_argument("--prune", action="store_true", help="list what is old with its size, and ask")
    args = parser.parse_args(argv)
    with exit_codes():
        for folder in args.folders:
            if not folder.is_dir():
                raise InputError(f"no folder {folder}; name one that holds runs, such as the output folder of a model")
        runs = find_runs(args.folders or [path.parent / "output" for path in sorted(ROOT.glob("*/train.py"))])
        if args.prune:
            prune(runs)
        else:
            print(*table(runs), sep="\n")


if __name__ == "__main__":
    main()
