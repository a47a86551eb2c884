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

import argparse
import contextlib
import fcntl
import json
import shutil

from common.args import Parser
from common.device.exits import exit_codes
from common.errors import InputError
from common.record.checkpoint import read
from common.record.folder import RUN_MARK
from common.record.resuming import older_checkpoints

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("run", "model", "preset", "data", "step", "best", "images/s", "seed", "state")
FINISHED, RUNNING = "finished", "running"


def find_runs(folders: list[Path]) -> list[Path]:
    """The folders of runs, those that were moved aside included."""
    marks = {mark for folder in folders for mark in folder.rglob(RUN_MARK)}
    return sorted(mark.parent for mark in marks if "values" in _json(mark))


def _json(path: Path) -> dict:
    """The object of a JSON file; none for one that is missing or was cut off."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _rows(run: Path) -> list[dict]:
    """The rows of metrics.jsonl, without one that a killed process has left half written."""
    rows = []
    with contextlib.suppress(OSError, ValueError):
        rows.extend(json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return rows


def state(run: Path, step: int) -> str:
    """running, finished, with the reason where that was before the end, or why it ended otherwise.

    step: the last one that its record has.
    """
    with contextlib.suppress(FileNotFoundError), open(run / ".lock", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return RUNNING
        except OSError:
            pass  # some network file systems know no locks
    result = _json(run / "result.json")
    if result.get("steps", -1) >= step:
        return ": ".join(filter(None, (FINISHED, result.get("stopped_early"))))
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (run / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1].partition("; ")[0] if lines else ""
    said = last.startswith(("stopped", "interrupted", "failed", "the loss", "the gradients"))
    return last if said else "ended without a word: killed, or an error"


def seed_of(run: Path, seed: object) -> str:
    """The seed of a run; of one of several (--seeds), with those that have been started so far."""
    numbers = (mark.parent.name.removeprefix("seed-") for mark in run.parent.glob(f"seed-*/{RUN_MARK}"))
    others = sorted(int(number) for number in numbers if number.isdigit())
    is_one_of_several = run.name == f"seed-{seed}" and len(others) > 1
    return f"{seed} of {', '.join(map(str, others))}" if is_one_of_several else str(seed)


def describe(run: Path) -> tuple[str, ...]:
    """A cell for each of `COLUMNS`."""
    values, result, rows = _json(run / RUN_MARK)["values"], _json(run / "result.json"), _rows(run)
    step = max((row.get("step", 0) for row in rows), default=0)
    best = next((row["best"] for row in reversed(rows) if row.get("best") is not None), None)
    rate = next((row["images_per_second"] for row in reversed(rows) if "images_per_second" in row), None)
    model = result.get("network") or values.get("arch") or "-"
    numbers = ("-" if best is None else f"{best:.4f}", "-" if rate is None else f"{rate:.2f}")
    data = str(values.get("data_path") or "-")
    preset, seed = str(values.get("preset", "-")), seed_of(run, values.get("seed", "-"))
    return str(run), str(model), preset, data, str(step), *numbers, seed, state(run, step)


def table(runs: list[Path]) -> list[str]:
    """A line for each run, below the names of the columns."""
    rows = [COLUMNS, *map(describe, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


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


def size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


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
