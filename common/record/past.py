"""What the folder of a run says of it afterwards; of a file that is missing or damaged, nothing."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

FINISHED, RUNNING = "finished", "running"


def read_text(path: Path) -> str:
    """The text of a file."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def read_json(path: Path) -> dict:
    """The object of a JSON file."""
    with contextlib.suppress(ValueError):
        content = json.loads(read_text(path))
        return content if isinstance(content, dict) else {}
    return {}


def network_of(config: dict, result: dict) -> str:
    """The name of a run's network, by its config.json and its result.json: the same before and after its end.

    A run of an earlier version that has no result tells of --arch alone.
    """
    return str(result.get("network") or config.get("network") or config["values"].get("arch") or "-")


def read_rows(folder: Path) -> Iterator[dict]:
    """The rows of metrics.jsonl, without what is none: one that a killed process has left half written."""
    for line in read_text(folder / "metrics.jsonl").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step", 0), int):
                yield row


def state(run: Path, step: int) -> str:
    """running, or how it ended. step: the last one that its record has."""
    with contextlib.suppress(FileNotFoundError), open(run / ".lock", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return RUNNING
        except OSError:
            pass  # some network file systems know no locks
    return how_it_ended(run, step)


def how_it_ended(run: Path, step: int) -> str:
    """finished, with the reason where that was before the end of the schedule, or why it ended otherwise."""
    result = read_json(run / "result.json")
    if isinstance(steps := result.get("steps", -1), int) and steps >= step:
        return ": ".join(filter(None, (FINISHED, result.get("stopped_early"))))
    lines = read_text(run / "train.log").splitlines()
    last = lines[-1].partition("; ")[0] if lines else ""
    said = last.startswith(("stopped", "interrupted", "failed", "the loss", "the gradients"))
    return last if said else "ended without a word: killed, or an error"
