"""The numbers of a run, for programs and for TensorBoard: metrics.jsonl and events."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.record.files import Appended, finite, write_atomically
from common.scores.drawing import for_cards

METRICS, EVENTS = "metrics.jsonl", "events"
NO_CURVES = {  # the names in a row that are neither losses nor scores
    "kind",
    "step",
    "epoch",
    "best",
    "pixels",
    "class_iou",
    "details",
    "time",
    "elapsed_seconds",
    "rated",
}
SPEED = {"images_per_second", "data_wait_share", "device_memory_gib", "resident_memory_gib"}  # curves of a group apart


class Before(NamedTuple):
    """What the rows of metrics.jsonl tell of the pieces of a run before this one."""

    scores: dict[str, float] = {}  # of the last evaluation,
    scored_step: int | None = None  # after so many steps
    loss: float = math.nan  # of the last line
    rated: tuple[int, float] = (0, 0.0)  # images that count in images/s, and their seconds
    elapsed_seconds: float = 0.0  # of all pieces, steps that were done in vain included
    details: dict = {}  # noqa: RUF012  what else result.json says of the last evaluation


class Numbers:
    """Rows of metrics.jsonl, and TensorBoard's events with the same numbers; only the main process has them.

    Both are written with each row, and so before the checkpoint of its step. tensorboardX's own SummaryWriter hands
    events to a thread, for which its `flush` does not wait: what a killed run had not written by then was lost.
    """

    def __init__(self, output_dir: Path, config: dict, purge_step: int | None):
        """purge_step: hides the events that an interrupted run wrote from this step on, which is done again.

        Where the run continues, curves that its events lack are added from metrics.jsonl.
        """
        from tensorboardX import summary  # takes a second to import
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event, self._writer = summary, Event, EventsWriter
        self._path, self._folder = output_dir / METRICS, output_dir / EVENTS
        self._rows, self._events = Appended(self._path), None
        self._complete_events() if purge_step is not None else self._new_events()
        if purge_step is not None:
            self._write(purge_step, session_log=SessionLog(status=SessionLog.START))
        text = "\n".join(f"    {name}: {value}" for name, value in config.items())
        text = text.encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
        self._write(0, summary=summary.text("config", text))
        self._events.flush()

    def append(self, row: dict) -> None:
        """One row, as a line of JSON and as points of curves; values that are not finite become null.

        Raises OSError where the disk cannot take more; the row is written with the next one for which it has room.
        """
        with self._writing():
            self._rows.append(json.dumps(finite(row)) + "\n")
            if self._events is None:
                self._complete_events()
            else:
                self._add_curves(row)

    def pictures(self, panels: list[np.ndarray], step: int) -> None:
        """Panels [H, 3 W, 3] uint8 of `drawing.panel`.

        Raises OSError where the disk cannot take more: then there are none of this step.
        """
        with self._writing():
            if self._events is None:  # the next row begins another file
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
            for index, panel in enumerate(panels):
                name = f"examples/{index}"  # curves are in other groups
                self._write(step, summary=self._summary.image(name, for_cards(panel), dataformats="HWC"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Bring what is written to the disk; after what it does not take, which may be half an event, a file ends."""
        try:
            yield
            self._events.flush()
        except OSError:
            self.close()
            self._events = None
            raise

    def _new_events(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # a name of its own: tensorboardX knows seconds, in which a run can be started twice
        self._events = self._writer(str(self._folder / "events"), f".{len(list(self._folder.iterdir()))}")

    def _complete_events(self) -> None:
        """Begin a file of events with the points of curves that those before lack."""
        known = curves_written(self._folder)
        self._new_events()
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._add_curves(json.loads(line), known)

    def close(self) -> None:
        """All is written, or there is no room for it."""
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()

    def _add_curves(self, row: dict, but: frozenset | set = frozenset()) -> None:
        for name, value in curves(row):
            if (name, row["step"]) not in but:
                self._write(row["step"], summary=self._summary.scalar(name, value))

    def _write(self, step: int, **content) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, **content))


def curves(row: dict) -> Iterator[tuple[str, float]]:
    """(curve, value) of a row of metrics.jsonl; what is not a finite number has no point.

    TensorBoard makes groups of what stands before a /, of which it opens the first two: eval, examples (the pictures),
    iou, speed, train.
    """
    values = {
        f"{'speed' if name in SPEED else row['kind']}/{name.removeprefix('eval_')}": value
        for name, value in row.items()
        if name not in NO_CURVES
    }
    values |= {f"iou/{name}": value for name, value in row.get("class_iou", {}).items()}
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield name, value


def curves_written(folder: Path) -> set[tuple[str, int]]:
    """(curve, step) of all points in the event files of a folder, up to where one is cut off."""
    from tensorboardX.proto.event_pb2 import Event

    found = set()
    for path in folder.glob("*tfevents*"):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):  # TFRecord: length (8 bytes), its check sum (4), the event, its check sum (4)
            end = at + 12 + int.from_bytes(data[at : at + 8], "little")
            if end + 4 > len(data):
                break
            event = Event.FromString(data[at + 12 : end])
            found |= {(value.tag, event.step) for value in event.summary.value}
            at = end + 4
    return found


def cut_rows(output_dir: Path, first_step: int) -> Before:
    """Drop the rows that an interrupted run wrote after the checkpoint from which this one continues.

    Returns what the rows tell that are kept; time has passed for the others too.
    """
    path = output_dir / METRICS
    if not path.exists():
        return Before()
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    elapsed = max((json.loads(line).get("elapsed_seconds", 0.0) for line in lines), default=0.0)
    kept = [line for line in lines if json.loads(line)["step"] <= first_step]
    write_atomically(path, lambda file: file.write("".join(kept).encode()))
    before = Before(elapsed_seconds=elapsed)
    for row in map(json.loads, kept):
        if row["kind"] == "train":
            before = before._replace(
                loss=math.nan if row["loss"] is None else row["loss"], rated=tuple(row.get("rated", (0, 0.0)))
            )
        else:
            scores = {name: value for name, value in row.items() if name not in NO_CURVES}
            before = before._replace(scores=scores, details=row.get("details", {}), scored_step=row["step"])
    return before
