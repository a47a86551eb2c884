"""What the folder of a run holds, as far as it is there: the page is made from nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.record.files import size
from common.record.folder import RUN_MARK
from common.record.past import network_of, read_json, read_rows, read_text, state

NOTABLE = (  # in a line of train.log: what a reader of the page is shown as a warning
    "warning",
    "waited for data",
    "could not be read",
    "cannot be written",
    "not written",
    "not repeatable",
    "not finite",
    "changed since",
    "is of an earlier version",
    "stopped by",
)


class Record(NamedTuple):
    """A run. Each part is empty where its file is missing or damaged."""

    folder: Path
    network: str  # its name
    state: str  # see `common.record.past.state`
    result: dict  # result.json
    values: dict  # of the last piece: flag -> value
    environment: dict  # of the last piece
    pieces: list[dict]  # of config.json
    training: list[dict]  # the rows of metrics.jsonl, of training
    evaluations: list[dict]  # and of evaluations
    lines: list[str]  # train.log
    checkpoints: list[tuple[str, int]]  # name, bytes

    @property
    def last(self) -> dict:
        """The last evaluation: that of result.json, else that of metrics.jsonl."""
        if self.result.get("scores"):
            return self.result
        row = self.evaluations[-1] if self.evaluations else {}
        details = row.get("details") or {}
        return row | (details if isinstance(details, dict) else {})

    @property
    def scores(self) -> dict[str, float]:
        """Those of the last evaluation."""
        names = self.result.get("scores") or [name for name in self.last if name in ("miou", "jaccard")]
        return {name: self.last.get(name) for name in names}

    def warnings(self) -> list[str]:
        """The lines of train.log that tell of something to look at."""
        return [line for line in self.lines if any(words in line.lower() for words in NOTABLE)]

    def data_wait(self) -> tuple[float, float] | None:
        """(Seconds of training steps, share of them that passed in waiting for data), of what metrics.jsonl rates."""
        total = waited = before = 0.0
        for row in self.training:
            seconds = (row.get("rated") or [0, before])[1]
            if seconds > before and isinstance(row.get("data_wait_share"), float):
                total += seconds - before
                waited += (seconds - before) * row["data_wait_share"]
            before = seconds
        return (total, waited / total) if total else None


def read_record(folder: Path, state: Callable[[Path, int], str] = state) -> Record:
    """Raises InputError where there is no run. state: what tells it, from the folder and the last step."""
    config = read_json(folder / RUN_MARK)
    if not isinstance(config.get("values"), dict):
        raise InputError(f"{folder} holds no run (no readable {RUN_MARK}); name an --output_dir of train.py")
    rows = list(read_rows(folder))
    checkpoints = sorted((folder / "checkpoints").glob("*.pt"))
    result = read_json(folder / "result.json")
    return Record(
        folder=folder,
        network=network_of(config, result),
        state=state(folder, max((row.get("step", 0) for row in rows), default=0)),
        result=result,
        values=config["values"],
        environment=config.get("environment") or {},
        pieces=config.get("pieces") or [],
        training=[row for row in rows if row.get("kind") == "train"],
        evaluations=[row for row in rows if row.get("kind") == "eval"],
        lines=read_text(folder / "train.log").splitlines(),
        checkpoints=[(path.name, size(path)) for path in checkpoints],
    )
