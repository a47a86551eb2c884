"""The numbers of a run, for programs and for TensorBoard: metrics.jsonl and events."""

import json
from pathlib import Path

import numpy as np

from common.record.files import finite, write_atomically

METRICS = "metrics.jsonl"


class Numbers:
    """Rows of metrics.jsonl and TensorBoard's events; only the main process has them."""

    def __init__(self, output_dir: Path, config: dict, purge_step: int | None):
        """purge_step: hides the events that an interrupted run wrote from this step on, which is done again."""
        from tensorboardX import SummaryWriter  # takes a second to import

        self._path = output_dir / METRICS
        self._events = SummaryWriter(str(output_dir / "events"), purge_step=purge_step)
        # an event at once: tensorboardX cannot close a file at exit to which it has not written (Python 3.12)
        self._events.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def append(self, row: dict) -> None:
        """One row, as a line of JSON; values that are not finite become null."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def curve(self, name: str, value: float, step: int) -> None:
        """A point of one of TensorBoard's curves."""
        self._events.add_scalar(name, value, step)

    def pictures(self, panels: list[np.ndarray], step: int) -> None:
        """Pictures [H, W, 3] uint8."""
        for index, panel in enumerate(panels):
            self._events.add_image(f"eval/example_{index}", panel, step, dataformats="HWC")
        self._events.flush()

    def close(self) -> None:
        """All is written."""
        self._events.close()


def cut_rows(output_dir: Path, first_step: int) -> tuple[dict[str, float], int] | None:
    """Drop the rows that an interrupted run wrote after the checkpoint from which this one continues.

    Returns the scores of the last evaluation that is kept, and after how many steps it was; None where there is none.
    """
    path = output_dir / METRICS
    if not path.exists():
        return None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= first_step]
    write_atomically(path, lambda file: file.write("".join(kept).encode()))
    evaluations = [row for row in map(json.loads, kept) if row["kind"] == "eval"]
    if not evaluations:
        return None
    last = evaluations[-1]
    return {key: last[key] for key in last if key not in ("kind", "step", "best", "pixels", "class_iou")}, last["step"]
